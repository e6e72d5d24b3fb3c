"""A fake Telegram Bot API."""

import asyncio
import json
from collections import defaultdict
from typing import Any

from notify_common.sending.provider import Provider
from notify_telegram_sender.bot_api import BotApi
from notify_telegram_sender.settings import TelegramSenderSettings
from typing_extensions import override

from support.conformance import SECRET, Behaviour
from support.http_peer import HttpPeer, HttpRequest

ERRORS: dict[Behaviour, tuple[int, dict[str, Any]]] = {
    Behaviour.PERMANENT: (403, {"description": "Forbidden: bot was blocked by the user"}),
    Behaviour.TEMPORARY: (500, {"description": "Internal Server Error"}),
    Behaviour.THROTTLE: (
        429,
        {"description": "Too Many Requests: retry after 1", "parameters": {"retry_after": 1}},
    ),
}


class BotApiPeer(HttpPeer):
    """An HTTP server that responds as https://core.telegram.org/bots/api#making-requests describes."""

    recipient = "987654321"

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[dict[str, Any]] = []
        self.sent_at: dict[str, list[float]] = defaultdict(list)
        """When each chat got its messages, on the event loop's clock."""
        self.response_time = 0.0  # seconds
        self.throttled: dict[str, int] = {}
        """Chats that are throttled, with the seconds that each response asks to wait."""
        self.refused: list[str] = []
        """The throttled chats that were called."""

    def settings(self, secret: str = SECRET, **change: object) -> TelegramSenderSettings:
        settings = {
            "telegram_provider": "bot_api",
            "telegram_bot_token": secret,
            "telegram_api_url": self.url,
            **change,
        }
        return TelegramSenderSettings.model_validate(settings)

    def provider(self, secret: str = SECRET) -> Provider:
        return BotApi(self.settings(secret))

    def received(self) -> list[str]:
        return [request["text"] for request in self.requests]

    @override
    async def answer(self, request: HttpRequest) -> tuple[int, dict[str, str], bytes]:
        body: dict[str, Any]
        if request.path != f"/bot{SECRET}/sendMessage":
            status, body = 401, {"description": "Unauthorized"}
        elif (chat := json.loads(request.body)["chat_id"]) in self.throttled:
            self.refused.append(chat)
            parameters = {"retry_after": self.throttled[chat]}
            status, body = 429, {"description": "Too Many Requests", "parameters": parameters}
        elif self.behaviour is Behaviour.ACCEPT:
            self.requests.append(json.loads(request.body))
            self.sent_at[chat].append(asyncio.get_running_loop().time())
            await asyncio.sleep(self.response_time)
            status, body = 200, {"ok": True, "result": {"message_id": len(self.requests), "date": 0}}
        else:
            status, body = ERRORS[self.behaviour]
        if status != 200:
            body = {"ok": False, "error_code": status, **body}
        return status, {}, json.dumps(body).encode()
