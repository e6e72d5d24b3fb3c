"""The telegram sender's settings."""

import re
from enum import StrEnum
from typing import Annotated, Self

from notify_common.runtime.networks import is_loopback
from notify_common.sending.service import SenderSettings
from pydantic import AfterValidator, Field, HttpUrl, SecretStr, model_validator

TOKEN = re.compile(r"[0-9]+:[A-Za-z0-9_-]+")  # https://core.telegram.org/bots/api#authorizing-your-bot


class TelegramProvider(StrEnum):
    """A way to send Telegram messages: simulated, or over the Bot API."""

    SIMULATOR = "simulator"
    BOT_API = "bot_api"


class ParseMode(StrEnum):
    """A message markup: https://core.telegram.org/bots/api#formatting-options."""

    HTML = "HTML"
    MARKDOWN = "MarkdownV2"


def _token(token: SecretStr) -> SecretStr:
    if not TOKEN.fullmatch(token.get_secret_value()):
        raise ValueError("must look like 123456:ABC-DEF, as issued by BotFather")
    return token


class TelegramSenderSettings(SenderSettings):
    """The settings specific to this sender; times are in seconds."""

    telegram_sleep: float = Field(0.2, ge=0, le=600)
    health_port: int = Field(8081, ge=1, le=65535)
    telegram_provider: TelegramProvider = TelegramProvider.SIMULATOR
    telegram_bot_token: Annotated[SecretStr, AfterValidator(_token)] | None = None
    telegram_api_url: HttpUrl = HttpUrl("https://api.telegram.org")
    telegram_parse_mode: ParseMode | None = None
    telegram_silent: bool = False
    # The defaults are Telegram's limits: https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this
    telegram_rate: float = Field(30, ge=0)
    telegram_rate_per_chat: float = Field(1, ge=0)
    telegram_connections: int = Field(30, ge=1, le=1000)

    @model_validator(mode="after")
    def _bot_api_is_complete(self) -> Self:
        if self.telegram_provider is not TelegramProvider.BOT_API:
            return self
        if self.telegram_bot_token is None:
            raise ValueError("TELEGRAM_PROVIDER=bot_api requires TELEGRAM_BOT_TOKEN")
        url = self.telegram_api_url
        if url.scheme == "http" and not is_loopback(url.host or "") and not self.allow_insecure:
            # The token is part of every URL.
            raise ValueError(
                "TELEGRAM_API_URL would send TELEGRAM_BOT_TOKEN over the network unencrypted: "
                "use https, an address of this machine, or set ALLOW_INSECURE=1"
            )
        return self
