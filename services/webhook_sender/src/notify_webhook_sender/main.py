"""Start the webhook sender with the configured provider."""

from notify_common.contracts.channels import Channel
from notify_common.runtime.settings import load_settings
from notify_common.sending.provider import Provider
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.service import run_sender

from notify_webhook_sender.limits import webhook_limits
from notify_webhook_sender.settings import WebhookProvider, WebhookSenderSettings
from notify_webhook_sender.webhook import Webhook


def main() -> None:
    """Run the webhook sender."""
    settings = load_settings(WebhookSenderSettings)
    provider: Provider | None = None
    limits: ProviderLimits | None = None
    if settings.webhook_provider is WebhookProvider.HTTP:
        provider = Webhook(settings)
        limits = webhook_limits(settings)
    run_sender(settings, Channel.WEBHOOK, settings.with_simulation(provider, latency=settings.webhook_sleep), limits)
