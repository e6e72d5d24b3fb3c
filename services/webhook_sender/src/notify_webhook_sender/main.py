"""Start the webhook sender with the configured provider."""

from datetime import timedelta

from notify_common.contracts.channels import Channel
from notify_common.runtime.settings import load_settings
from notify_common.sending.provider import Provider
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.service import run_sender

from notify_webhook_sender.settings import WebhookProvider, WebhookSenderSettings
from notify_webhook_sender.webhook import Webhook, host_of

# The limit is short, because a receiver that is down or slow must not delay messages to other receivers.
ADMISSION_TIMEOUT = timedelta(seconds=1)


def main() -> None:
    """Run the webhook sender."""
    settings = load_settings(WebhookSenderSettings)
    simulator = settings.simulator(settings.webhook_sleep)
    provider: Provider = simulator
    limits = None
    if settings.webhook_provider is WebhookProvider.HTTP:
        provider = Webhook(settings)
        limits = ProviderLimits(
            concurrency=settings.webhook_calls_per_host, admission_timeout=ADMISSION_TIMEOUT, provider_of=host_of
        )
    run_sender(settings, Channel.WEBHOOK, provider, simulator, limits)
