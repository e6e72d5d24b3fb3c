"""Declare the topology once RabbitMQ is available, and again whenever some of it turns out to be missing."""

import asyncio
import logging
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from functools import partial
from typing import Any

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from faststream.rabbit import RabbitExchange

from notify_common.contracts.topology import Binding
from notify_common.errors import BrokerUnavailable, StartupError
from notify_common.rabbitmq.connection import RabbitSettings, broker_errors, connect
from notify_common.runtime.outage import Outage

log = logging.getLogger(__name__)

MINIMUM_VERSION = (3, 10)  # the first version with at-least-once dead-lettering
# Seconds before missing queues are declared again. RabbitMQ 3.10 may lose the messages of a queue that is declared
# again before all channels have noticed that it was deleted.
RESTORE_DELAY = 1.0
DECLARE_TIMEOUT = 30.0  # seconds
WATCH_INTERVAL = 60.0  # seconds; most losses are noticed earlier, when a message cannot be routed
PROBLEM_INTERVAL = 10.0  # seconds between attempts to declare missing or mismatched queues again
# RabbitMQ answers `precondition_failed` both to different arguments and to one queue too many. Only the text differs.
TOO_MANY_QUEUES = "queue limit"
MISMATCH_ADVICE = "Another version declared it. Delete it once it is empty; this service then declares it again."


class DeclaredTopology:
    """The exchanges, queues and bindings that a service declares. Each declaration opens its own connection."""

    def __init__(
        self,
        settings: RabbitSettings,
        bindings: Sequence[Binding],
        exchanges: Sequence[RabbitExchange] = (),
        *,
        role: str,
    ) -> None:
        self._settings = settings
        self._bindings = bindings
        self._exchanges = exchanges
        self._role = role
        self._start_outage = Outage(log, f"RabbitMQ at {settings.rabbitmq_nodes()} is not ready")
        self._restore_outage = Outage(log, "queues or exchanges in RabbitMQ may be missing and could not be declared")
        self._restoring: asyncio.Task[None] | None = None
        self._restore_delay = RESTORE_DELAY
        self.mismatches: Set[str] = frozenset()
        """The queues and exchanges that exist with different arguments. They are left as they are."""
        self.missing: Set[str] = frozenset()
        """The queues and exchanges that do not exist, and that RabbitMQ does not let this user declare."""

    async def declare(self) -> None:
        """Wait for RabbitMQ, and declare everything that this user may declare.

        Raise `StartupError` if RabbitMQ is too old. What is missing is only logged, so that the rest works.
        """
        await self._start_outage.retry(self._declare, BrokerUnavailable)
        self._check_missing()

    def require_match(self) -> None:
        """Raise `StartupError` if a queue or exchange exists with different arguments."""
        if self.mismatches:
            raise StartupError(
                f"RabbitMQ has {' and '.join(sorted(self.mismatches))} with different arguments.\n{MISMATCH_ADVICE}"
            )

    async def restore(self) -> None:
        """Declare everything again, because some of it may be missing. Concurrent calls share one attempt.

        A failure is only logged, because a caller that still misses something calls again.
        """
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.create_task(self._restore())
        await asyncio.shield(self._restoring)

    async def watch(self) -> None:
        """Declare everything again each minute, or every 10 s while something is missing or differs. Never return."""
        next_declaration = time.monotonic() + WATCH_INTERVAL
        while True:
            await asyncio.sleep(PROBLEM_INTERVAL)
            if self.mismatches or self.missing or time.monotonic() >= next_declaration:
                await self.restore()
                next_declaration = time.monotonic() + WATCH_INTERVAL

    async def _restore(self) -> None:
        await asyncio.sleep(self._restore_delay)
        try:
            await self._declare()
        except (BrokerUnavailable, StartupError) as error:
            self._restore_delay = max(RESTORE_DELAY, self._restore_outage.failed(error))
        else:
            self._check_missing()

    def _check_missing(self) -> None:
        if self.missing:
            names = ", ".join(sorted(self.missing))
            problem = f"this user may not declare {names}, or there are too many queues"
            self._restore_delay = max(RESTORE_DELAY, self._restore_outage.failed(problem))
        else:
            self._restore_delay = RESTORE_DELAY
            self._restore_outage.ended()

    async def _declare(self) -> None:
        with broker_errors():
            async with await connect(self._settings, self._role) as connection, asyncio.timeout(DECLARE_TIMEOUT):
                if connection.transport is not None:
                    _check_version(connection.transport.connection.server_properties)
                mismatches, self.missing = await declare(connection, self._bindings, self._exchanges)
        for name in sorted(mismatches - self.mismatches):
            log.error("%s exists in RabbitMQ with different arguments. %s", name, MISMATCH_ADVICE)
        self.mismatches = mismatches


def _check_version(server_properties: Any) -> None:  # noqa: ANN401 - an AMQP field table
    version = server_properties.get("version", "")
    text = version.decode() if isinstance(version, bytes) else str(version)
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers < MINIMUM_VERSION:
        raise StartupError(f"RabbitMQ {text} is too old: 3.10 or newer is needed")


async def declare(
    connection: AbstractConnection, bindings: Sequence[Binding], exchanges: Sequence[RabbitExchange] = ()
) -> tuple[Set[str], Set[str]]:
    """Declare everything in the given order.

    Dead-letter targets must come first, or the first dead letters are late. Return the names of the queues and
    exchanges that have different arguments, and of the missing ones that RabbitMQ does not let this user declare.
    """
    mismatches, missing = set[str](), set[str]()
    declarations = [
        (exchange.name, partial(_declare_exchange, connection, exchange))
        for exchange in dict.fromkeys([*exchanges, *(binding.exchange for binding in bindings)])
    ] + [(binding.queue.name, partial(_declare_queue, connection, binding)) for binding in bindings]
    for name, declare_it in declarations:
        try:
            await declare_it()
        except ChannelPreconditionFailed as error:
            (missing if TOO_MANY_QUEUES in str(error) else mismatches).add(name)
        except ChannelNotFoundEntity:
            missing.add(name)
    return mismatches, missing


async def _declare_exchange(connection: AbstractConnection, exchange: RabbitExchange) -> None:
    try:
        async with connection.channel() as channel:
            await channel.declare_exchange(exchange.name, exchange.type.value, durable=True)
    except ChannelAccessRefused:
        async with connection.channel() as channel:
            await channel.get_exchange(exchange.name, ensure=True)


async def _declare_queue(connection: AbstractConnection, binding: Binding) -> None:
    arguments: Any = binding.queue.arguments
    try:
        async with connection.channel() as channel:
            await channel.declare_queue(binding.queue.name, durable=True, arguments=arguments)
    except ChannelAccessRefused:
        async with connection.channel() as channel:
            await channel.get_queue(binding.queue.name, ensure=True)
    with suppress(ChannelAccessRefused):
        async with connection.channel() as channel:
            queue = await channel.get_queue(binding.queue.name, ensure=False)
            await queue.bind(binding.exchange.name, binding.routing_key)
