"""The gateway's parts and their life: what is built, in which order it starts and ends."""

import asyncio

from notify_common import topology
from notify_common.channels import Channel
from notify_common.process import Refused
from notify_common.rabbitmq import create_broker, prepare_topology
from notify_database.engine import await_database, create_engine, database_problem

from notify_gateway.intake import NotificationIntake
from notify_gateway.notification_queries import NotificationQueries
from notify_gateway.outbox import Outbox
from notify_gateway.outbox_relay import OutboxRelay
from notify_gateway.settings import GatewaySettings

ROLE = "gateway"
READINESS_TIMEOUT = 2.0  # seconds
RELAY_STOP_TIMEOUT = 10.0  # seconds; what is not published by then is left to the next relay


class Gateway:
    """Intake, queries and relay on one engine and one broker connection."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._engine = create_engine(settings, pool_size=settings.postgres_pool_size)
        self._broker = create_broker(settings, ROLE)
        self.relay = OutboxRelay(self._broker, Outbox(self._engine))
        self.intake = NotificationIntake(self._engine, self.relay, max_waiting=settings.max_waiting_requests)
        self.queries = NotificationQueries(self._engine)

    async def database_problem(self) -> str | None:
        """Why PostgreSQL can not be used now, or None."""
        try:
            async with asyncio.timeout(READINESS_TIMEOUT):
                return await database_problem(self._engine)
        except TimeoutError:
            return "does not answer"
        except Refused as refusal:
            return str(refusal)

    async def work(self, stop: asyncio.Event) -> None:
        """Relay until `stop`, then finish what was accepted. Either server may be away when this begins."""
        stopping = asyncio.create_task(stop.wait())
        relaying = asyncio.create_task(self._relay(stop))
        await asyncio.wait({stopping, relaying}, return_when=asyncio.FIRST_COMPLETED)
        await self.intake.drained()
        if self.relay.connected:
            await asyncio.wait({relaying}, timeout=RELAY_STOP_TIMEOUT)
        if not relaying.done():
            relaying.cancel()
            await asyncio.wait({relaying})
        elif relaying.exception() is not None or not stop.is_set():
            await relaying
        await self._broker.stop()
        await self._engine.dispose()

    async def _relay(self, stop: asyncio.Event) -> None:
        await await_database(self._engine)
        bindings = [*topology.dead_letters(), *(topology.deliveries(channel) for channel in Channel)]
        await prepare_topology(self._settings, bindings, role=ROLE)
        await self.relay.run(stop)
