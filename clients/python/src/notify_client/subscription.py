"""The state of a subscription to events, which outlives its connections. Nothing here does any I/O."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal, TypeAlias
from uuid import UUID

import httpx
from pydantic import BaseModel, ValidationError

from notify_client.config import Config
from notify_client.errors import ApiError, UnexpectedResponse, unexpected
from notify_client.models import Channel, DeliveryStatus, ErrorClass, Model, Problem
from notify_client.requests import Request
from notify_client.retrying import backoff, connection_error, is_retryable, response_error
from notify_client.server_sent import EventParser, ServerSentEvent

SILENCE = 45.0  # seconds without a byte until the connection counts as lost; the gateway sends a comment every 15
REMEMBERED = 10_000  # events; the gateway repeats those of the last seconds after a reconnect
MEDIA_TYPE = "text/event-stream"


class StatusEvent(Model):
    """A delivery has a new status, or has made another attempt."""

    type: Literal["status"] = "status"
    delivery_id: UUID
    notification_id: UUID
    user_id: str
    channel: Channel
    status: DeliveryStatus
    round: int
    attempt: int
    error_class: ErrorClass | None = None
    error_code: str | None = None
    changed_at: datetime


class Reset(Model):
    """Some events are missing and cannot be repeated: read again what you follow."""

    type: Literal["reset"] = "reset"


class _Live(BaseModel):
    live: bool


Event: TypeAlias = StatusEvent | Reset


class Subscription:
    """A position in the events, and what has become of the connections."""

    def __init__(self, request: Request[None], config: Config, last_event_id: str | None) -> None:
        self.last_event_id = last_event_id
        """The position. Another subscription can begin there, in another process as well."""
        self.live: bool | None = None
        """False while the gateway is not connected to RabbitMQ, so that events arrive late. None before connecting."""
        self._request = request
        self._config = config
        self._parser = EventParser()
        self._remembered: dict[tuple[object, ...], None] = {}
        self._retries = 0

    def http_request(self) -> httpx.Request:
        """Return the request that begins at this position."""
        headers = {"Accept": MEDIA_TYPE}
        if self.last_event_id is not None:
            headers["Last-Event-ID"] = self.last_event_id
        request = self._request.to_httpx(self._config, **headers)
        request.extensions["timeout"]["read"] = SILENCE
        return request

    def not_a_stream(self, response: httpx.Response) -> ApiError:
        """Return the error that another response stands for; its content has been read."""
        if not response.is_success:
            return response_error(response, self._config)
        detail = f"The response is not {MEDIA_TYPE}."
        return UnexpectedResponse(Problem(title="", status=response.status_code, detail=detail, code="unexpected"))

    def connected(self) -> list[Event]:
        """Begin a new connection. Return `Reset` if events may be missing, because there was no position yet."""
        missing = self.live is not None and self.last_event_id is None
        self._parser = EventParser()
        self._retries = 0
        self.live = bool(self.live)
        return [Reset()] if missing else []

    def received(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events in what has arrived. The position follows them one by one."""
        for event_id, sent in self._parser.feed(chunk):
            event = None if sent is None else self._event(sent)
            if event_id is not None:
                self.last_event_id = event_id
            if event is not None:
                yield event

    def wait_after(self, error: httpx.RequestError | ApiError | None) -> float:
        """Return the seconds until the next attempt to connect; None as error means that the stream ended.

        Only the first connection is given up after some retries. Raises the error if another attempt cannot help.
        """
        failure = connection_error(error) if isinstance(error, httpx.RequestError) else error
        first = self.live is None
        if failure is not None and (
            not is_retryable(failure, idempotent=True) or (first and self._retries >= self._config.max_retries)
        ):
            if failure is error:
                raise failure
            raise failure from error
        wait = backoff(self._retries, failure.retry_after if isinstance(failure, ApiError) else None)
        self._retries += 1
        return wait

    def _event(self, sent: ServerSentEvent) -> Event | None:
        try:
            if sent.type == "live":
                self.live = _Live.model_validate_json(sent.data).live
            elif sent.type == "reset":
                return Reset()
            elif sent.type == "status":
                event = StatusEvent.model_validate_json(sent.data)
                return event if self._is_new(event) else None
        except ValidationError as error:
            raise unexpected(httpx.codes.OK, None, error) from None
        return None  # a newer gateway may send other types

    def _is_new(self, event: StatusEvent) -> bool:
        key = (event.delivery_id, event.round, event.attempt, event.status)
        if key in self._remembered:
            return False
        self._remembered[key] = None
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return True


def is_stream(response: httpx.Response) -> bool:
    """Return whether the content is a stream of events, which never ends."""
    return response.is_success and response.headers.get("Content-Type", "").startswith(MEDIA_TYPE)
