"""The status writer's settings and its start."""

from notify_common.contracts import topology
from notify_common.rabbitmq.connection import RabbitSettings, create_broker
from notify_common.rabbitmq.consumer import Consumer
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_common.rabbitmq.worker import consume
from notify_common.runtime.metrics import process_registry
from notify_common.runtime.process import run
from notify_common.runtime.settings import WorkerSettings, load_settings
from notify_database.engine import ROWS_BY_KEY, PostgresSettings, await_database, create_engine
from pydantic import Field

from notify_status_writer.dead_inbox import DeadInbox
from notify_status_writer.metrics import StatusWriterMetrics
from notify_status_writer.result_store import ResultStore
from notify_status_writer.results_writer import MESSAGES_PER_TRANSACTION, ResultsWriter

ROLE = "status_writer"
RESULTS_PREFETCH = 2 * MESSAGES_PER_TRANSACTION  # one group is written, the next one gathers
DEAD_PREFETCH = 10
POOL_SIZE = 2  # one for the results, one to look at dead deliveries


class StatusWriterSettings(WorkerSettings, PostgresSettings, RabbitSettings):
    """What the status writer needs."""

    health_port: int = Field(8083, ge=1, le=65535)


async def run_status_writer(settings: StatusWriterSettings) -> None:
    """Write results until SIGTERM."""
    broker = create_broker(settings, ROLE)
    engine = create_engine(settings, pool_size=POOL_SIZE, planner=ROWS_BY_KEY)
    store = ResultStore(engine)
    events = EventPublisher(settings, ROLE)
    publisher = ConfirmedPublisher(broker)
    registry = process_registry()
    results_consumer = ResultsWriter(publisher, store, events, StatusWriterMetrics(registry), settings.tracing(ROLE))
    dead_inbox = DeadInbox(store, results_consumer)
    results, (archive, inbox) = topology.results(), topology.dead_letters()
    consumers = [
        Consumer(broker, publisher, results.queue.name, results_consumer.handle, prefetch=RESULTS_PREFETCH),
        Consumer(broker, publisher, inbox.queue.name, dead_inbox.handle, prefetch=DEAD_PREFETCH),
    ]
    try:
        async with events.running():
            await consume(
                broker,
                consumers,
                role=ROLE,
                rabbit=settings,
                health_host=settings.health_host,
                health_port=settings.health_port,
                registry=registry,
                declares=[archive, inbox, results],
                exchanges=[topology.EVENTS],
                prepare=lambda: await_database(engine),
            )
    finally:
        await engine.dispose()


def main() -> None:
    """Run the status writer."""
    settings = load_settings(StatusWriterSettings)
    run(lambda: run_status_writer(settings), settings)
