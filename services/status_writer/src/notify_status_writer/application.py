"""Wire up the status writer, for its process and for tests."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import create_broker
from notify_common.rabbitmq.declaration import DeclaredTopology
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.faststream_subscription import FastStreamSubscription
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.worker import Worker
from notify_common.runtime.metrics import process_registry
from notify_common.runtime.process import GRACEFUL_TIMEOUT
from notify_common.runtime.tracing import Tracing
from notify_database.engine import ROWS_BY_KEY, await_database, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

from notify_status_writer.handlers import DeadLetterHandler, ResultsHandler, decode_dead_letter, decode_results
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import ResultStore
from notify_status_writer.result_writer import MESSAGES_PER_TRANSACTION, ResultWriter
from notify_status_writer.settings import StatusWriterSettings

ROLE = "status_writer"
# For each queue: while one batch is written, the next one fills. A message of 200 results with errors takes 1 MiB, so a
# higher prefetch would need too much memory while the database is down.
RESULTS_PREFETCH = 3 * MESSAGES_PER_TRANSACTION // 2
DEAD_LETTERS_PREFETCH = 10
POOL_SIZE = 3  # connections: to write results, to isolate results that fail, and to look up dead-lettered deliveries


def create_status_writer(
    settings: StatusWriterSettings, *, events: EventPublisher | None = None, tracing: Tracing | None = None
) -> Worker:
    """Wire up a status writer; `events` and `tracing` replace the ones that `settings` would create."""
    broker, registry = create_broker(settings, f"{ROLE}.publish"), process_registry()
    engine = create_engine(settings, pool_size=POOL_SIZE, planner=ROWS_BY_KEY)
    events, tracing = events or EventPublisher(settings, ROLE), tracing or settings.tracing(ROLE)
    results = topology.all_results()
    declared = DeclaredTopology(settings, topology.status_writer(), [topology.EVENTS], role=ROLE)
    publisher, store = ConfirmedPublisher(broker, declared.restore), ResultStore(engine)
    writer = ResultWriter(publisher, store, events, StatusWriterMetrics(registry), tracing)
    _, older_inbox, inbox = (binding.queue.name for binding in topology.dead_letters())
    subscribe = partial(FastStreamSubscription, settings, ROLE, publisher=publisher, graceful_timeout=GRACEFUL_TIMEOUT)
    read_results = partial(subscribe, decode=decode_results, prefetch=RESULTS_PREFETCH)
    read_inbox = partial(subscribe, decode=decode_dead_letter, prefetch=DEAD_LETTERS_PREFETCH)
    subscriptions = [
        *(
            read_results(queue, handle=ResultsHandler(writer, tracing, queue).handle)
            for queue in (binding.queue.name for binding in results)
        ),
        read_inbox(inbox, handle=DeadLetterHandler(store, writer).handle),
        # Both inboxes get every dead letter, and only the older one is read by older versions.
        read_inbox(older_inbox, handle=DeadLetterHandler(store, writer, log_level=logging.DEBUG).handle),
        *(
            read_inbox(topology.dead_letters(channel)[1].queue.name, handle=handler.handle)
            for channel, handler in ((each, DeadLetterHandler(store, writer, each)) for each in Channel)
        ),
    ]
    return Worker(
        topology=declared,
        broker=broker,
        subscriptions=subscriptions,
        registry=registry,
        resources=[_ready(engine)],
        background=[events.running()],
        graceful_timeout=GRACEFUL_TIMEOUT,
    )


@asynccontextmanager
async def _ready(engine: AsyncEngine) -> AsyncIterator[None]:
    """Wait for the database, and close its connections when the context ends."""
    try:
        await await_database(engine)
        yield
    finally:
        await engine.dispose()
