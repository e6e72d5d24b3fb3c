"""The outbox as the relay uses it: rows that make statements fail are skipped, so that they hold up no others.

As long as no statement fails, this only passes calls on to `OutboxStore`, so a first reading may skip this file. But a
page may be bad, or somebody may have added a trigger that raises an error. Then the rows are bisected to find those
that fail.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar
from uuid import UUID

from notify_common.contracts.channels import Channel
from notify_database.errors import ROW_ERRORS, StatementFailed

from notify_gateway.outbox.store import MAX_TAKEN_BYTES, DueDeliveries, Held, OutboxStore, RowKey

log = logging.getLogger(__name__)

RETRY_INTERVAL = 60.0  # seconds before a row that failed is tried again
# If more rows fail, the cause is not a few bad ones, and the failure is taken for an outage.
MAX_UNTAKABLE = 500
MAX_UNDELETABLE = 100
ROWS_PER_POLL = 100  # per channel, while some rows are skipped

Item = TypeVar("Item")
Result = TypeVar("Result")


class SkippingOutbox:
    """Passes calls on to `OutboxStore`, but takes and deletes no rows that have made statements fail.

    A row that cannot be taken is tried again after `RETRY_INTERVAL`. If the row of a published delivery cannot be
    deleted, this process never takes it again, because it would publish the delivery again.
    """

    def __init__(self, outbox: OutboxStore) -> None:
        self._outbox = outbox
        self._untakable: dict[RowKey, float] = {}  # the time of each row's next try
        self._undeletable: set[RowKey] = set()
        self._next_delete = 0.0

    async def take_due(self, limit: int, channels: Sequence[Channel]) -> DueDeliveries:
        """Take due deliveries as `OutboxStore.take_due` does, except for those whose rows fail.

        Raise `StatementFailed` if no row can be taken, and too many have failed.
        """
        if self._untakable or self._undeletable:
            await self._retry_skipped()
        if not self._untakable and not self._undeletable:
            with suppress(*ROW_ERRORS):
                return await self._outbox.take_due(limit, channels)
        return await self._take_by_channel(channels)

    async def delete(self, confirmed: Sequence[Held]) -> None:
        """Delete the rows of confirmed deliveries. Raise `StatementFailed` if too many rows cannot be deleted."""
        rows = [held for held in confirmed if _key(held) not in self._undeletable]
        room = MAX_UNDELETABLE - len(self._undeletable)
        # Normally, this calls `OutboxStore.delete` once.
        _, failed = await _call_or_bisect(rows, self._outbox.delete, most_failures=room)
        if failed:
            self._skip_undeletable(failed)

    async def renew(self, held: Sequence[Held]) -> set[UUID]:
        """Renew leases as `OutboxStore.renew` does."""
        return await self._outbox.renew(held)

    async def release(self, held: Sequence[Held]) -> None:
        """End leases as `OutboxStore.release` does."""
        await self._outbox.release(held)

    async def postpone(self, held: Sequence[Held]) -> None:
        """End leases as `OutboxStore.postpone` does."""
        await self._outbox.postpone(held)

    async def _take_by_channel(self, channels: Sequence[Channel]) -> DueDeliveries:
        """Take the due deliveries of one channel after the other, without the rows that are skipped."""
        taken: list[DueDeliveries] = []
        failures: list[Exception] = []
        for channel in channels:
            try:
                taken += await self._take_of(channel)
            except ROW_ERRORS as error:
                failures.append(error)
        if failures and not taken:
            raise StatementFailed(str(failures[0])) from failures[0]
        return DueDeliveries(
            held=[held for due in taken for held in due.held],
            ended=[change for due in taken for change in due.ended],
            more={channel for due in taken for channel in due.more},
        )

    async def _take_of(self, channel: Channel) -> list[DueDeliveries]:
        """Take the channel's first due rows that are not skipped; raise an error if too many fail and none is taken."""
        skipped = self._untakable.keys() | self._undeletable
        due = await self._outbox.due_rows(channel, ROWS_PER_POLL + len(skipped))
        rows = [row for row in due if row not in skipped][:ROWS_PER_POLL]
        room = MAX_UNTAKABLE - len(self._untakable)

        async def take(group: Sequence[RowKey]) -> DueDeliveries:
            # The rows share the bytes that a poll may take, however they are bisected.
            return await self._outbox.take_rows(channel, group, max_bytes=MAX_TAKEN_BYTES * len(group) // len(rows))

        taken, failed = await _call_or_bisect(rows, take, most_failures=room)
        self._untakable |= {row: time.monotonic() + RETRY_INTERVAL for row, _ in failed[:room]}
        _report("outbox rows cannot be taken, so their deliveries wait", failed[:room])
        if len(failed) > room and not taken:
            raise failed[-1][1]
        return taken

    def _skip_undeletable(self, failed: Sequence[tuple[Held, Exception]]) -> None:
        room = MAX_UNDELETABLE - len(self._undeletable)  # another lane may have skipped rows meanwhile
        skipped = [(_key(held), error) for held, error in failed[:room]]
        self._undeletable |= {row for row, _ in skipped}
        _report("outbox rows of published deliveries cannot be deleted", skipped)
        if len(failed) > room:
            raise StatementFailed(str(failed[-1][1]))

    async def _retry_skipped(self) -> None:
        """Stop skipping the rows that can be deleted now, and those whose time for the next take has come."""
        await self._delete_again()
        now = time.monotonic()
        self._untakable = {row: retry_at for row, retry_at in self._untakable.items() if retry_at > now}

    async def _delete_again(self) -> None:
        """Try again to delete the rows that could not be deleted, at most once per `RETRY_INTERVAL`."""
        if not self._undeletable or time.monotonic() < self._next_delete:
            return
        self._next_delete = time.monotonic() + RETRY_INTERVAL
        for row in list(self._undeletable):
            with suppress(*ROW_ERRORS):
                await self._outbox.delete_published(row)
                self._undeletable.discard(row)


async def _call_or_bisect(
    items: Sequence[Item], operation: Callable[[Sequence[Item]], Awaitable[Result]], *, most_failures: int
) -> tuple[list[Result], list[tuple[Item, Exception]]]:
    """Call `operation` with all items; bisect them if it fails. Return its results, and each item that fails by itself.

    This is like `Batcher._flush_or_bisect`, but it stops once more than `most_failures` items have failed.
    """
    results: list[Result] = []
    failed: list[tuple[Item, Exception]] = []
    groups = [items] if items else []
    while groups and len(failed) <= most_failures:
        group = groups.pop()
        middle = len(group) // 2
        try:
            results.append(await operation(group))
        except ROW_ERRORS as error:
            if middle:
                groups += [group[middle:], group[:middle]]
            else:
                failed.append((group[0], error))
    return results, failed


def _key(held: Held) -> RowKey:
    return held.request.delivery_id, held.request.round


def _report(message: str, failed: Sequence[tuple[RowKey, Exception]]) -> None:
    if failed:
        (delivery_id, _), error = failed[0]
        log.error(message, extra={"rows": len(failed), "delivery_id": str(delivery_id), "error": str(error)})
