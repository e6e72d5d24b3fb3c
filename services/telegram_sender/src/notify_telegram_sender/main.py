"""The telegram sender's settings, its provider, and its start."""

from notify_common.channels import Channel
from notify_common.process import load_settings, run
from notify_common.sending.service import SenderSettings, run_sender
from pydantic import Field


class TelegramSenderSettings(SenderSettings):
    """What only this sender has; times are seconds."""

    telegram_sleep: float = Field(0.2, ge=0, le=600)
    health_port: int = Field(8081, ge=1, le=65535)


def main() -> None:
    """Run the telegram sender."""
    settings = load_settings(TelegramSenderSettings)
    provider = settings.simulator(settings.telegram_sleep)
    run(
        lambda: run_sender(settings, channel=Channel.TELEGRAM, provider=provider, health_port=settings.health_port),
        settings.log_level,
    )
