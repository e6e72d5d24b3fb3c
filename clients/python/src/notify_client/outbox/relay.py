"""The relay sends what has been committed to the outbox."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

import httpx
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_client.client import AsyncClient, Client
from notify_client.errors import NotifyError, TimedOut
from notify_client.models import CreatedNotification
from notify_client.outbox.database import DatabaseFailed, transaction
from notify_client.outbox.decisions import SENT, UNTRIED, Outcome, Verdict, outcome_of
from notify_client.outbox.store import TakenRow, finish, take
from notify_client.requests import Request, one, path
from notify_client.retrying import LONGEST_RETRY_AFTER, Call, backoff, connection_error

log = logging.getLogger("notify_client.outbox")

BATCH_SIZE = 20
POLL_INTERVAL = 0.5  # seconds
ATTEMPT_TIMEOUT = 15.0  # seconds, for one request
# A request that has not begun by then is left out, so that it ends within the lease, which lasts 30 seconds. A process
# that has been suspended must not send what it took before.
BEGIN_WITHIN = 10.0  # seconds
SHORTEST_PAUSE = 0.05  # seconds
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # CLOCK_MONOTONIC stops while a machine is suspended


def relay(
    engine: Engine | AsyncEngine,
    client: Client | AsyncClient,
    *,
    batch_size: int = BATCH_SIZE,
    poll_interval: float = POLL_INTERVAL,
) -> "Relay":
    """Return a relay, which sends while `with` or `async with` runs it. Any number of them may run at once."""
    return Relay(engine, client, batch_size, poll_interval)


class Relay:
    """A relay: `async with` runs it as a task of the event loop, `with` in a thread of its own.

    Leaving the context waits for the requests that are being sent. Failures of the gateway and the database are logged
    and retried, and never raised.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        client: Client | AsyncClient,
        batch_size: int = BATCH_SIZE,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        self._engine = engine
        self._client = client
        self._config = replace(client.config, max_retries=0)  # each attempt is recorded
        self._batch_size = batch_size
        self._poll_interval = poll_interval
        self._unfinished: list[tuple[TakenRow, Outcome]] = []
        self._gateway, self._database = _Outage("the gateway"), _Outage("the database of the outbox")
        self._stop: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._request_stop: Callable[[], object] = lambda: None

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set."""
        log.info("sending from the outbox to %s", self._config.base_url)
        while not stop.is_set():
            wait = await self._advance()
            if wait:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await stop.wait()
        if self._unfinished:
            with suppress(DatabaseFailed):  # the leases end by themselves
                await transaction(self._engine, finish, self._unfinished)

    async def _advance(self) -> float:
        """Send one batch; return the seconds to wait before the next one."""
        try:
            if self._unfinished:
                await transaction(self._engine, finish, self._unfinished)
                self._unfinished = []
            # While the gateway fails, one row at a time finds out whether it has recovered.
            limit = 1 if self._gateway.failures else self._batch_size
            began = time.clock_gettime(CLOCK)
            taken = await transaction(self._engine, take, limit)
            for held in taken.held:
                log.error("notification %s is held, because its first attempt was too long ago", held)
            outcomes = await asyncio.gather(*(self._attempt(row, began) for row in taken.rows))
            self._unfinished = list(zip(taken.rows, outcomes, strict=True))
            await transaction(self._engine, finish, self._unfinished)
        except DatabaseFailed as error:
            return self._database.failed(str(error))
        self._unfinished = []
        self._database.ended()
        for row, outcome in zip(taken.rows, outcomes, strict=True):
            if outcome.verdict is Verdict.REFUSED:
                log.error("notification %s is held, because the gateway refuses it", row.id)
        pause = self._pause_after(outcomes)
        return pause or (0.0 if len(taken.rows) + len(taken.held) == limit else self._poll_interval)

    def _pause_after(self, outcomes: Sequence[Outcome]) -> float:
        """Return the seconds to wait for the gateway: none if it has accepted or refused any row."""
        failed = [each for each in outcomes if not each.is_final and each.verdict is not Verdict.UNTRIED]
        if failed and len(failed) == len(outcomes):
            retry_after = max((each.retry_after or 0.0 for each in failed), default=0.0)
            return self._gateway.failed(failed[0].error or "", min(retry_after, LONGEST_RETRY_AFTER))
        if outcomes:
            self._gateway.ended()
        return 0.0

    async def _attempt(self, row: TakenRow, began: float) -> Outcome:
        request = Request(
            method="POST",
            path=path("notifications"),
            body=json.loads(row.body),
            read=one(CreatedNotification),
            idempotency_key=str(row.id),
        )
        call = Call(request, self._config)
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                if isinstance(self._client, AsyncClient):
                    response = await self._send(self._client, call, began)
                else:
                    response = await asyncio.to_thread(self._send_in_thread, self._client, call, began)
            if response is None:
                return UNTRIED
            call.result(response)
        except TimeoutError:
            return outcome_of(TimedOut(f"There was no response within {ATTEMPT_TIMEOUT:g} seconds."))
        except httpx.RequestError as error:
            return outcome_of(connection_error(error))
        except NotifyError as error:
            return outcome_of(error)
        return SENT

    @staticmethod
    async def _send(client: AsyncClient, call: Call[CreatedNotification], began: float) -> httpx.Response | None:
        return await client.http.send(call.http_request) if _may_begin(began) else None

    @staticmethod
    def _send_in_thread(client: Client, call: Call[CreatedNotification], began: float) -> httpx.Response | None:
        return client.http.send(call.http_request) if _may_begin(began) else None

    async def __aenter__(self) -> Self:
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self.run(self._stop))
        self._task.add_done_callback(_log_death)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stop is not None and self._task is not None:
            self._stop.set()
            await self._task

    def __enter__(self) -> Self:
        if isinstance(self._engine, AsyncEngine) or isinstance(self._client, AsyncClient):
            raise TypeError("`with` runs the relay in a thread, which needs an Engine and a Client: use `async with`.")
        started = threading.Event()
        self._thread = threading.Thread(target=self._run_in_thread, args=(started,), name="notify-outbox", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._request_stop()
            self._thread.join()

    def _run_in_thread(self, started: threading.Event) -> None:
        async def main() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            self._request_stop = lambda: loop.call_soon_threadsafe(stop.set)
            started.set()
            await self.run(stop)

        asyncio.run(main())


class _Outage:
    """Counts consecutive failures; logs the first one, and the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.failures = 0

    def failed(self, error: str, retry_after: float = 0.0) -> float:
        """Return the seconds to wait."""
        if not self.failures:
            log.warning("%s fails; retrying: %s", self._what, error)
        self.failures += 1
        return max(SHORTEST_PAUSE, backoff(self.failures - 1, retry_after))

    def ended(self) -> None:
        if self.failures:
            log.info("%s works again", self._what)
        self.failures = 0


def _may_begin(taken_at: float) -> bool:
    return time.clock_gettime(CLOCK) - taken_at < BEGIN_WITHIN


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("the relay has stopped", exc_info=task.exception())
