"""Deliver as signed POSTs: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md."""

import asyncio
import hashlib
import hmac
import json
import logging
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

import httpcore
from notify_common.contracts.channels import WebhookRecipient
from notify_common.contracts.ids import accepted_at
from notify_common.contracts.messages import DeliveryRequested
from notify_common.runtime.clock import utc_now
from notify_common.runtime.networks import Address, networks
from notify_common.sending import errors
from pydantic import TypeAdapter, ValidationError

from notify_webhook_sender import addresses
from notify_webhook_sender.bounded_tls import ResponseTooLarge, tls_context
from notify_webhook_sender.connections import IdleConnections
from notify_webhook_sender.resolver import Resolver
from notify_webhook_sender.settings import WebhookSenderSettings, keys

KEEPALIVE = 20.0  # seconds
# Limits for reading the body of a response: bytes, parts (a hostile receiver may send single bytes) and seconds.
READ_LENGTH, MAX_PARTS, READ_TIMEOUT = 10_000, 100, 1.0
MAX_FINISHING = 100  # successful responses that are still being read
MAX_WAIT = timedelta(hours=1)  # an upper limit for the response's Retry-After
RECIPIENT = TypeAdapter(WebhookRecipient)


class Webhook:
    """A provider that makes one POST per attempt. It follows no redirects, because no client chose their targets."""

    def __init__(self, settings: WebhookSenderSettings) -> None:
        for library in ("httpcore.connection", "httpcore.http11"):
            logging.getLogger(library).setLevel(logging.WARNING)  # because they log headers
        self._keys = keys(settings.webhook_secrets) if settings.webhook_secrets else []
        context = tls_context(settings.webhook_ca_file)
        # httpcore applies this timeout to the connection and to TLS separately, so each gets half of the time.
        self._extensions = {"timeout": {"connect": settings.connect_timeout() / 2}}
        self._finishing: dict[asyncio.Task[bytes], None] = {}  # in the order in which they began
        self._resolver = Resolver()
        allowed_networks = networks(settings.webhook_allowed_networks or "")
        may_connect: dict[str, Callable[[Address], bool]] = {
            "https": lambda address: addresses.is_public(address) or addresses.is_in(address, allowed_networks),
            # Plain HTTP is limited to the allowed networks, because anyone on the path could read it.
            "http": lambda address: addresses.is_in(address, allowed_networks),
        }
        backends = {
            scheme: addresses.GuardedBackend(self._resolver, allowed) for scheme, allowed in may_connect.items()
        }

        def connect(origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
            backend = backends[origin.scheme.decode()]
            return httpcore.AsyncHTTPConnection(origin, context, KEEPALIVE, network_backend=backend)

        self._connections = IdleConnections(connect, settings.concurrency)

    async def send(self, request: DeliveryRequested) -> str:
        """Post the message and return its `webhook-id`. A retry has the same id, so receivers can recognize it."""
        if request.recipient is None:
            raise errors.PermanentFailure("no_recipient")
        try:
            url = RECIPIENT.validate_python(request.recipient)
        except ValidationError:
            raise errors.PermanentFailure("bad_address") from None
        await self._post(self._signed(request, url))
        return str(request.delivery_id)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._finishing:
            await asyncio.wait(self._finishing)
        self._resolver.close()
        await self._connections.aclose()

    def _signed(self, request: DeliveryRequested, url: str) -> httpcore.Request:
        """Return the POST, which alone holds its content."""
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
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        return httpcore.Request("POST", url, headers=fields, content=sent_once(content), extensions=self._extensions)

    async def _post(self, request: httpcore.Request) -> None:
        try:
            connection = await self._connections.take(request.url.origin)
            response = await connection.handle_async_request(request)
            response_headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            finish = partial(self._finish, response, connection, request.url.origin)
            if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                raise refusal(response.status, response_headers.get(b"retry-after", ""), await finish())
            if response.status == HTTPStatus.NO_CONTENT or response_headers.get(b"content-length") == "0":
                await finish()  # there is no body to wait for, and the connection becomes reusable at once
            else:
                await self._finish_later(finish())
        except TimeoutError:
            raise  # the caller handles an attempt's timeout
        except addresses.AddressRefused:
            raise errors.PermanentFailure("address_refused") from None
        except addresses.HostUnknown as unknown:
            raise errors.Unreachable("dns", str(unknown)) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise broken(error) from None

    async def _finish_later(self, finish: Coroutine[None, None, bytes]) -> None:
        """Read the rest of a successful response in the background, because it cannot change the outcome."""
        task = asyncio.create_task(finish)
        self._finishing[task] = None
        task.add_done_callback(lambda _: self._finishing.pop(task, None))
        # The task must begin, because otherwise it could be cancelled without closing the connection.
        await asyncio.sleep(0)
        if len(self._finishing) > MAX_FINISHING:
            # Receivers that hold back a body must not occupy ever more connections. Others have long sent theirs.
            oldest = next(iter(self._finishing))
            del self._finishing[oldest]
            oldest.cancel()

    async def _finish(
        self, response: httpcore.Response, connection: httpcore.AsyncConnectionInterface, origin: httpcore.Origin
    ) -> bytes:
        """Return the start of the body. The connection is reusable only if this was the whole body."""
        body, parts = b"", 0
        async with aclosing(response):
            # `OSError` includes `TimeoutError`.
            with suppress(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
                async with asyncio.timeout(READ_TIMEOUT):
                    async for part in response.aiter_stream():
                        body += part
                        parts += 1
                        if len(body) >= READ_LENGTH or parts >= MAX_PARTS:
                            break
        await self._connections.put(origin, connection)
        return body


def payload(request: DeliveryRequested) -> bytes:
    """Return the body of the POST."""
    body = {
        "type": "notification",
        "timestamp": datetime.fromtimestamp(accepted_at(request.notification_id), UTC).isoformat(),
        "data": {
            "notification_id": str(request.notification_id),
            "user_id": request.user_id,
            "user": request.user,
            "subject": request.content.subject,
            "message": request.content.message,
        },
    }
    return json.dumps(body, ensure_ascii=False).encode()


async def sent_once(content: bytes) -> AsyncIterator[bytes]:
    """Yield the content, and do not keep it while the response is awaited, because hundreds of calls may wait."""
    yield content


def signature(key: bytes, message_id: str, timestamp: str, content: bytes) -> str:
    """Return the HMAC-SHA256 signature of the id, timestamp and content."""
    signed = f"{message_id}.{timestamp}.".encode() + content
    return f"v1,{b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def refusal(status: int, retry_after: str, body: bytes) -> errors.ProviderFailure:
    """Classify an unsuccessful response, which concerns only this URL and not the whole host."""
    code, text, wait = f"http_{status}", body.decode("utf-8", "replace") or None, _wait(retry_after)
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and wait is not None):
        return errors.Throttled(code, text, retry_after=wait, of_recipient=True)
    if status == HTTPStatus.UNAUTHORIZED:
        # The secret is wrong, which must not consume the deliveries' retry budgets.
        return errors.Unreachable(code, text, of_recipient=True)
    if status == HTTPStatus.GONE:  # Standard Webhooks: the receiver has been disabled
        return errors.PermanentFailure(code, text)
    return errors.TemporaryFailure(code, text)


def broken(error: Exception) -> errors.ProviderFailure:
    """Classify a call that ended without a complete response."""
    text = str(error) or None
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
        return errors.Unreachable("tls" if isinstance(error.__cause__, ssl.SSLError) else "connect", text)
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        # In TLS 1.3, a server can reject the client only after the client has finished the handshake.
        return errors.Unreachable("tls", text)
    code = "response_too_large" if isinstance(error, ResponseTooLarge) else "connection_lost"
    return errors.UnknownOutcome(code, text)


def _wait(retry_after: str) -> timedelta | None:
    """Return the wait that Retry-After requests, in seconds or as a date (RFC 9110, 10.2.3); None if it is invalid."""
    with suppress(ValueError, OverflowError):
        return min(max(timedelta(seconds=int(retry_after)), timedelta()), MAX_WAIT)
    with suppress(ValueError, OverflowError):
        wait = parsedate_to_datetime(retry_after).astimezone(UTC) - utc_now()
        return min(max(wait, timedelta()), MAX_WAIT)
    return None
