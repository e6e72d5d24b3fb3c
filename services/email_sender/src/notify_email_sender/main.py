"""The email sender's settings, its provider, and its start."""

from notify_common.channels import Channel
from notify_common.process import load_settings, run
from notify_common.sending.service import SenderSettings, run_sender
from pydantic import Field


class EmailSenderSettings(SenderSettings):
    """What only this sender has; times are seconds."""

    email_sleep: float = Field(1.0, ge=0, le=600)
    health_port: int = Field(8082, ge=1, le=65535)


def main() -> None:
    """Run the email sender."""
    settings = load_settings(EmailSenderSettings)
    provider = settings.simulator(settings.email_sleep)
    run(
        lambda: run_sender(settings, channel=Channel.EMAIL, provider=provider, health_port=settings.health_port),
        settings.log_level,
    )
