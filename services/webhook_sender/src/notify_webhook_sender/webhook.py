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
from notify_common.channels import WebhookRecipient
from notify_common.messages import DeliveryRequested
from notify_common.process import utc_now
from notify_common.sending.provider import (
    PermanentFailure,
    ProviderFailure,
    TemporaryFailure,
    Throttled,
    UnknownOutcome,
    Unreachable,
)
from pydantic import TypeAdapter, ValidationError

from notify_webhook_sender.addresses import AddressRefused, GuardedBackend, HostUnknown, is_in, is_public, networks
from notify_webhook_sender.settings import WebhookSenderSettings, keys

CONNECT_TIMEOUT = 10.0  # seconds for the connection, and for TLS; an answer may take as long as an attempt may
KEEPALIVE = 20.0  # seconds
IDLE_CONNECTIONS = 100
READ_LENGTH, READ_TIMEOUT = 10_000, 1.0  # bytes and seconds of what follows an answer's status
LONGEST_WAIT = timedelta(hours=1)  # whatever the answer says
MILLISECOND = timedelta(milliseconds=1)
EPOCH = datetime.fromtimestamp(0, UTC)
RECIPIENT = TypeAdapter(WebhookRecipient)


def host_of(url: str) -> str:
    """Host and port: what is down or busy together."""
    return urlsplit(url).netloc.lower()


class Webhook:
    """One POST per attempt. Redirects are not followed: where they lead, nobody has named."""

    def __init__(self, settings: WebhookSenderSettings) -> None:
        for library in ("httpcore.connection", "httpcore.http11"):
            logging.getLogger(library).setLevel(logging.WARNING)  # they log headers
        self._keys = keys(settings.webhook_secrets) if settings.webhook_secrets else []
        allowed = networks(settings.webhook_allowed_networks or "")
        context = ssl.create_default_context(cafile=settings.webhook_ca_file)

        def pool(backend: GuardedBackend) -> httpcore.AsyncConnectionPool:
            return httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=settings.concurrency,
                max_keepalive_connections=IDLE_CONNECTIONS,
                keepalive_expiry=KEEPALIVE,
                network_backend=backend,
            )

        self._pools = {
            "https": pool(GuardedBackend(lambda address: is_public(address) or is_in(address, allowed))),
            # Everybody on the way could read it.
            "http": pool(GuardedBackend(lambda address: is_in(address, allowed))),
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
            "host": host_of(url),
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
        for pool in self._pools.values():
            await pool.aclose()

    async def _post(self, url: str, headers: dict[str, str], content: bytes) -> ProviderFailure | None:
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        timeouts = {"timeout": {"connect": CONNECT_TIMEOUT}}
        pool = self._pools[urlsplit(url).scheme]
        try:
            async with pool.stream("POST", url, headers=fields, content=content, extensions=timeouts) as response:
                retry_after = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
                return judged(response.status, retry_after.decode("latin-1"), await _beginning(response))
        except AddressRefused:
            return PermanentFailure("address_refused")
        except HostUnknown as unknown:
            return Unreachable("dns", str(unknown) or None)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            # The pool takes the cause away and leaves the context.
            reason = "tls" if isinstance(error.__context__, ssl.SSLError) else "connect"
            return Unreachable(reason, str(error) or None)
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            return UnknownOutcome("connection_lost", str(error) or None)


def payload(request: DeliveryRequested) -> bytes:
    """What is posted."""
    body = {
        "type": "notification",
        # When it was accepted: its id carries the time (UUIDv7, RFC 9562).
        "timestamp": (EPOCH + (request.notification_id.int >> 80) * MILLISECOND).isoformat(),
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


def judged(status: int, retry_after: str, told: bytes) -> ProviderFailure | None:
    """What an answer means: any 2xx is a success, 410 says that nobody wants it any more."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    code, text = f"http_{status}", told.decode("utf-8", "replace") or None
    wait = _wait(retry_after)
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and wait is not None):
        return Throttled(code, text, retry_after=wait)
    if status == HTTPStatus.UNAUTHORIZED:
        # The secret is wrong: no delivery is to pay for that.
        return Unreachable(code, text)
    if status == HTTPStatus.GONE:
        return PermanentFailure(code, text)
    return TemporaryFailure(code, text)


def _wait(retry_after: str) -> timedelta | None:
    """Of seconds or a date: RFC 9110, 10.2.3."""
    with suppress(ValueError, OverflowError):
        wait = timedelta(seconds=int(retry_after))
        return min(max(wait, timedelta()), LONGEST_WAIT)
    with suppress(ValueError, OverflowError):
        wait = parsedate_to_datetime(retry_after).astimezone(UTC) - utc_now()
        return min(max(wait, timedelta()), LONGEST_WAIT)
    return None


async def _beginning(response: httpcore.Response) -> bytes:
    """Of what the receiver says. The status has told how it ended, whatever becomes of the rest."""
    told = b""
    with suppress(TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        async with asyncio.timeout(READ_TIMEOUT):
            async for part in response.aiter_stream():
                told += part
                if len(told) >= READ_LENGTH:
                    break
    return told
