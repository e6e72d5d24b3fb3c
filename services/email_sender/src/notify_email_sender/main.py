"""Start the email sender with the configured provider."""

from notify_common.contracts.channels import Channel
from notify_common.runtime.settings import load_settings
from notify_common.sending.provider import Provider
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.service import run_sender

from notify_email_sender.settings import EmailProvider, EmailSenderSettings
from notify_email_sender.smtp import Smtp


def main() -> None:
    """Run the email sender."""
    settings = load_settings(EmailSenderSettings)
    provider: Provider | None = None
    limits: ProviderLimits | None = None
    if settings.email_provider is EmailProvider.SMTP:
        provider = Smtp(settings)
        limits = ProviderLimits(concurrency=settings.smtp_connections, rate=settings.email_rate)
    run_sender(settings, Channel.EMAIL, settings.with_simulation(provider, latency=settings.email_sleep), limits)
