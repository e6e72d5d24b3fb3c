"""Deliver over the Telegram Bot API: https://core.telegram.org/bots/api."""

import asyncio
import logging
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import httpx
from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending import errors
from pydantic import BaseModel, ValidationError

from notify_telegram_sender.settings import TelegramSenderSettings

CONNECT_TIMEOUT = 10.0  # seconds; a response may take as long as the whole attempt
PART_INTERVAL = 1.0  # seconds between two messages to the same chat
MAX_WAIT = 3600  # seconds, an upper limit for the response's retry_after
MESSAGE_BYTES = 2 * 4096  # Telegram's limit is 4096 UTF-16 code units
# These mean that the token is wrong or revoked, which must not consume the deliveries' retry budgets.
TOKEN_REJECTED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND})


class _Parameters(BaseModel):
    retry_after: int | None = None


class _Message(BaseModel):
    message_id: int


class _Response(BaseModel):
    """A response from the Bot API: https://core.telegram.org/bots/api#making-requests."""

    ok: bool
    result: _Message | None = None
    error_code: int | None = None
    description: str = ""
    parameters: _Parameters = _Parameters()


class BotApi:
    """A client for the Bot API's `sendMessage` method, which keeps its connections open."""

    def __init__(self, settings: TelegramSenderSettings) -> None:
        # These libraries log every URL, which contains the token.
        for library in ("httpx", "httpcore"):
            logging.getLogger(library).setLevel(logging.WARNING)
        token = settings.telegram_bot_token
        secret = token.get_secret_value() if token else ""
        self._url = f"{str(settings.telegram_api_url).rstrip('/')}/bot{secret}/sendMessage"
        self._options: dict[str, Any] = {"link_preview_options": {"is_disabled": True}}
        if settings.telegram_silent:
            self._options["disable_notification"] = True
        if settings.telegram_parse_mode is not None:
            self._options["parse_mode"] = settings.telegram_parse_mode.value
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=settings.telegram_connections),
        )

    async def send(self, request: DeliveryRequested) -> str:
        """Send the message, in several parts if it is too long, and return the last part's id."""
        if request.recipient is None:
            raise errors.PermanentFailure("no_recipient")
        # A message with markup is never split, because a cut could break the markup.
        first, *others = [request.content.message] if "parse_mode" in self._options else split(request.content.message)
        message_id = await self._send_message(request.recipient, first)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for text in others:
            # Each part counts towards the rates at its planned time (`limits.py`), which slow responses must not shift.
            due = max(due + PART_INTERVAL, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                message_id = await self._send_message(request.recipient, text)
            except (errors.Throttled, errors.Unreachable) as failure:
                # A retry repeats the first parts, so this attempt must count towards the retry budget.
                raise errors.UnknownOutcome("sent_in_part", failure.text) from None
        return message_id

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _send_message(self, chat_id: str, text: str) -> str:
        try:
            response = await self._client.post(self._url, json={"chat_id": chat_id, "text": text, **self._options})
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise errors.Unreachable("connect", str(error)) from None
        except httpx.RequestError as error:
            raise errors.UnknownOutcome("connection_lost", str(error)) from None
        try:
            parsed = _Response.model_validate_json(response.content)
        except ValidationError:
            # The response did not come from the Bot API, but perhaps from a proxy in front of it.
            if response.is_success:
                raise errors.UnknownOutcome("unreadable_answer") from None
            raise errors.TemporaryFailure(f"http_{response.status_code}") from None
        if not parsed.ok or parsed.result is None:
            raise _failure(parsed)
        return str(parsed.result.message_id)


def _failure(response: _Response) -> errors.ProviderFailure:
    status = response.error_code or 0
    code, text = f"bot_api_{status}", response.description
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        seconds = response.parameters.retry_after
        wait = None if seconds is None else timedelta(seconds=min(seconds, MAX_WAIT))
        return errors.Throttled(code, text, retry_after=wait, scope_unknown=True)
    if status in TOKEN_REJECTED:
        return errors.Unreachable(code, text)
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return errors.PermanentFailure(code, text)
    return errors.TemporaryFailure(code, text)


def is_split(text: str) -> bool:
    """Return True if the text is too long for a single message."""
    return len(text.encode("utf-16-le")) > MESSAGE_BYTES


def split(text: str) -> list[str]:
    """Split the text into parts that Telegram accepts, preferably after a paragraph, a line or a word."""
    parts = []
    while len(encoded := text.encode("utf-16-le")) > MESSAGE_BYTES:
        # If the limit would split a surrogate pair, the pair goes into the next part.
        fitting = encoded[:MESSAGE_BYTES].decode("utf-16-le", errors="ignore")
        ends = (fitting.rfind(mark) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > len(fitting) // 2), len(fitting))
        parts.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [part for part in (*parts, text) if part]
