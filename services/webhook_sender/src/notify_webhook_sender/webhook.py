"""Delivers as signed POSTs: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md."""

import asyncio
import hashlib
import hmac
import json
import logging
import ssl
import time
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit

import httpcore
from notify_common.contracts.channels import WebhookRecipient
from notify_common.contracts.ids import accepted_at
from notify_common.contracts.messages import DeliveryRequested
from notify_common.runtime.clock import utc_now
from notify_common.sending.errors import (
    PermanentFailure,
    ProviderFailure,
    TemporaryFailure,
    Throttled,
    UnknownOutcome,
    Unreachable,
)
from pydantic import TypeAdapter, ValidationError

from notify_webhook_sender.addresses import (
    AddressRefused,
    GuardedBackend,
    HostUnknown,
    Resolver,
    is_in,
    is_public,
    networks,
)
from notify_webhook_sender.settings import WebhookSenderSettings, keys

CONNECT_TIMEOUT = 10.0  # seconds for all of it: name, connection, TLS; at most half of an attempt's
KEEPALIVE = 20.0  # seconds
READ_LENGTH, READ_TIMEOUT = 10_000, 1.0  # bytes and seconds of what follows an answer's status
LONGEST_WAIT = timedelta(hours=1)  # whatever the answer says
RECIPIENT = TypeAdapter(WebhookRecipient)


def host_of(url: str) -> str:
    """Host and port: what is down or busy together."""
    try:
        parts = urlsplit(url)
        return f"{(parts.hostname or '').rstrip('.')}:{parts.port or parts.scheme}"
    except ValueError:
        return ""  # whatever it is, it will be refused


class Webhook:
    """One POST per attempt. Redirects are not followed: where they lead, nobody has named."""

    def __init__(self, settings: WebhookSenderSettings) -> None:
        for library in ("httpcore.connection", "httpcore.http11"):
            logging.getLogger(library).setLevel(logging.WARNING)  # they log headers
        self._keys = keys(settings.webhook_secrets) if settings.webhook_secrets else []
        allowed = networks(settings.webhook_allowed_networks or "")
        context = ssl.create_default_context(cafile=settings.webhook_ca_file)
        connect_timeout = min(CONNECT_TIMEOUT, settings.provider_timeout / 2)
        # It holds for the connection and for TLS, each.
        self._extensions = {"timeout": {"connect": connect_timeout / 2}}
        self._finishing: set[asyncio.Task[bytes]] = set()
        self._resolver = Resolver()

        def pool(backend: GuardedBackend) -> httpcore.AsyncConnectionPool:
            return httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=settings.concurrency,
                max_keepalive_connections=settings.concurrency,
                keepalive_expiry=KEEPALIVE,
                network_backend=backend,
            )

        self._pools = {
            "https": pool(
                GuardedBackend(self._resolver, lambda address: is_public(address) or is_in(address, allowed))
            ),
            # Everybody on the way could read it.
            "http": pool(GuardedBackend(self._resolver, lambda address: is_in(address, allowed))),
        }

    async def send(self, request: DeliveryRequested) -> str:
        """Post it; returns the `webhook-id`, which is the delivery's own: a repeat can be recognised by it."""
        if request.recipient is None:
            raise PermanentFailure("no_recipient")
        try:
            url = RECIPIENT.validate_python(request.recipient)
        except ValidationError:
            raise PermanentFailure("bad_address") from None
        content = payload(request)
        message_id = str(request.delivery_id)
        timestamp = str(int(time.time()))
        headers = {
            "host": urlsplit(url).netloc,
            "content-type": "application/json",
            "content-length": str(len(content)),
            "user-agent": "notification-service",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(signature(key, message_id, timestamp, content) for key in self._keys),
        }
        failure = await self._post(url, headers, content)
        if failure is not None:
            raise failure
        return message_id

    async def aclose(self) -> None:
        """Close the connections."""
        if self._finishing:
            await asyncio.wait(self._finishing)
        self._resolver.close()
        for pool in self._pools.values():
            await pool.aclose()

    async def _post(self, url: str, headers: dict[str, str], content: bytes) -> ProviderFailure | None:
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = httpcore.Request("POST", url, headers=fields, content=content, extensions=self._extensions)
        try:
            response = await self._pools[urlsplit(url).scheme].handle_async_request(request)
            told = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                await self._finish_accepted(response, told.get(b"content-length"))
                return None
            return refusal(response.status, told.get(b"retry-after", ""), await _finish(response))
        except TimeoutError:
            raise  # of the whole attempt
        except AddressRefused:
            return PermanentFailure("address_refused")
        except HostUnknown as unknown:
            return Unreachable("dns", str(unknown))
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            return broken(error)

    async def _finish_accepted(self, response: httpcore.Response, length: str | None) -> None:
        """It has been taken: nothing that comes now changes that, and nobody waits for it."""
        finishing = asyncio.create_task(_finish(response))
        self._finishing.add(finishing)
        finishing.add_done_callback(self._finishing.discard)
        if response.status == HTTPStatus.NO_CONTENT or length == "0":
            # All of it is here.
            await asyncio.shield(finishing)


def payload(request: DeliveryRequested) -> bytes:
    """What is posted."""
    body = {
        "type": "notification",
        "timestamp": datetime.fromtimestamp(accepted_at(request.notification_id), UTC).isoformat(),
        "data": {
            "notification_id": str(request.notification_id),
            "user_id": request.user_id,
            "subject": request.content.subject,
            "message": request.content.message,
        },
    }
    return json.dumps(body, ensure_ascii=False).encode()


def signature(key: bytes, message_id: str, timestamp: str, content: bytes) -> str:
    """HMAC-SHA256 over id, timestamp and content."""
    signed = f"{message_id}.{timestamp}.".encode() + content
    return f"v1,{b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def refusal(status: int, retry_after: str, told: bytes) -> ProviderFailure:
    """What an answer means that is no success; it is of one URL, not of its host. 410: nobody wants it any more."""
    code, text, wait = f"http_{status}", told.decode("utf-8", "replace") or None, _wait(retry_after)
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and wait is not None):
        return Throttled(code, text, retry_after=wait, of_recipient=True)
    if status == HTTPStatus.UNAUTHORIZED:
        # The secret is wrong: no delivery is to pay for that.
        return Unreachable(code, text, of_recipient=True)
    if status == HTTPStatus.GONE:
        return PermanentFailure(code, text)
    return TemporaryFailure(code, text)


def broken(error: Exception) -> ProviderFailure:
    """What it means that there is no answer."""
    text = str(error) or None
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
        # The pool takes the cause away and leaves the context.
        return Unreachable("tls" if isinstance(error.__context__, ssl.SSLError) else "connect", text)
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        # In TLS 1.3 a client that is not welcome is told so only now.
        return Unreachable("tls", text)
    return UnknownOutcome("connection_lost", text)


def _wait(retry_after: str) -> timedelta | None:
    """Of seconds or a date: RFC 9110, 10.2.3."""
    with suppress(ValueError, OverflowError):
        wait = timedelta(seconds=int(retry_after))
        return min(max(wait, timedelta()), LONGEST_WAIT)
    with suppress(ValueError, OverflowError):
        wait = parsedate_to_datetime(retry_after).astimezone(UTC) - utc_now()
        return min(max(wait, timedelta()), LONGEST_WAIT)
    return None


async def _finish(response: httpcore.Response) -> bytes:
    """Read the beginning of what the receiver says, and let the connection be used again if that was all."""
    told = b""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            async for part in response.aiter_stream():
                told += part
                if len(told) >= READ_LENGTH:
                    break
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
        pass  # a timeout is an OSError, too
    finally:
        await response.aclose()
    return told
