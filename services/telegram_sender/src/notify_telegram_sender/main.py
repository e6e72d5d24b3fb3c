"""Start the telegram sender with the configured provider."""

from notify_common.contracts.channels import Channel
from notify_common.runtime.settings import load_settings
from notify_common.sending.provider import Provider
from notify_common.sending.provider_limits import ProviderLimits
from notify_common.sending.service import run_sender

from notify_telegram_sender.bot_api import BotApi
from notify_telegram_sender.limits import telegram_limits
from notify_telegram_sender.settings import TelegramProvider, TelegramSenderSettings


def main() -> None:
    """Run the telegram sender."""
    settings = load_settings(TelegramSenderSettings)
    provider: Provider | None = None
    limits: ProviderLimits | None = None
    if settings.telegram_provider is TelegramProvider.BOT_API:
        provider = BotApi(settings)
        limits = telegram_limits(settings)
    run_sender(settings, Channel.TELEGRAM, settings.with_simulation(provider, latency=settings.telegram_sleep), limits)
