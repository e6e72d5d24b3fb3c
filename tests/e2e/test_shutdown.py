"""What services finish after SIGTERM."""

import asyncio
import signal
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content, DeliveryRequested, DeliveryResult, Outcome
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings
from notify_local.ports import Ports
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import hand_on, prepare_topology
from support.database import waiting_for_locks
from support.event_stream import BODY, reading
from support.processes import STOP_TIMEOUT, answers, running_service
from support.services import NOWHERE, eventually
from support.stored import Stored


@pytest.fixture
def port() -> int:
    """Return an unused port."""
    return Ports().free(18_900)


@pytest.mark.parametrize(
    ("error_probability", "outcome", "retries"), [("0", Outcome.SENT, 0), ("1", Outcome.RETRYING, 20)]
)
async def test_sender_finishes_in_flight_deliveries_on_sigterm(
    rabbit: RabbitSettings, port: int, error_probability: str, outcome: Outcome, retries: int
) -> None:
    await prepare_topology(rabbit, [*topology.status_writer(), topology.deliveries(Channel.TELEGRAM)])
    settings = {
        "TELEGRAM_SLEEP": "5", "ERROR_PROBABILITY": error_probability, "CONCURRENCY": "20", "RETRY_DELAY": "3600",
        "HEALTH_PORT": str(port),
    }  # fmt: skip
    with running_service("telegram_sender", rabbit, **settings) as sender:
        await answers(f"http://127.0.0.1:{port}/readyz", 200)
        async with hand_on(rabbit) as hand:
            for _ in range(50):
                await hand.request(
                    DeliveryRequested(
                        delivery_id=uuid4(),
                        notification_id=uuid4(),
                        user_id=1,
                        channel=Channel.TELEGRAM,
                        content=Content(message="x"),
                    )
                )

            async def twenty_in_flight() -> bool:
                return await hand.depth("notifications.telegram") == 30

            await eventually(twenty_in_flight, "20 deliveries are in flight")
            sender.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(sender.wait, STOP_TIMEOUT) == 0
            results = await hand.results(20)
            assert {result.outcome for result in results} == {outcome}
            assert await hand.depth(topology.retry_queue_name(Channel.TELEGRAM, timedelta(hours=1))) == retries
            assert await hand.depth("notifications.results.telegram") == 0
            assert await hand.depth("notifications.telegram") == 30


async def test_status_writer_finishes_results_on_sigterm(
    rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, port: int
) -> None:
    await prepare_topology(rabbit, topology.status_writer())
    stored = Stored(engine)
    delivery = await stored.add(Channel.TELEGRAM)
    result = DeliveryResult(
        delivery_id=delivery, round=1, attempt=1, failures=0, outcome=Outcome.SENT,
        started_at=utc_now(), finished_at=utc_now(),
    )  # fmt: skip
    with running_service("status_writer", rabbit, postgres, HEALTH_PORT=str(port)) as writer:
        await answers(f"http://127.0.0.1:{port}/readyz", 200)
        async with hand_on(rabbit) as hand:
            async with engine.begin() as connection:
                await connection.execute(text("LOCK TABLE deliveries IN EXCLUSIVE MODE"))
                await hand.report(result)

                async def is_writing() -> bool:
                    return await waiting_for_locks(engine) > 0

                await eventually(is_writing, "the writer waits for the table")
                writer.send_signal(signal.SIGTERM)
                await refuses_connections(port)
            assert await asyncio.to_thread(writer.wait, STOP_TIMEOUT) == 0
            assert (await stored.state(delivery))[0] == "sent"
            assert await hand.depth("notifications.results.telegram") == 0


async def test_gateway_finishes_and_publishes_accepted_requests_on_sigterm(
    rabbit: RabbitSettings, postgres: PostgresSettings, port: int
) -> None:
    with running_service("gateway", rabbit, postgres, APP_PORT=str(port)) as gateway:
        url = f"http://127.0.0.1:{port}"
        await answers(f"{url}/readyz", 200)
        body = {"user_id": 1, "message": "x", "type": "email"}
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30, limits=limits) as client:
            posting = [asyncio.create_task(client.post("/api/notifications", json=body)) for _ in range(100)]
            await asyncio.wait(posting, return_when=asyncio.FIRST_COMPLETED)
            gateway.send_signal(signal.SIGTERM)
            outcomes = await asyncio.gather(*posting, return_exceptions=True)
        assert await asyncio.to_thread(gateway.wait, STOP_TIMEOUT) == 0
    accepted = [each for each in outcomes if isinstance(each, httpx.Response) and each.status_code == 201]
    assert accepted
    async with hand_on(rabbit) as hand:
        assert await hand.depth("notifications.email") >= len(accepted)


async def refuses_connections(port: int) -> None:
    """Wait until nothing listens on `port`."""

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    await eventually(refused, f"nothing listens on port {port}")


async def read_response(reader: asyncio.StreamReader) -> str:
    """Read a response to `GET /livez`, and return its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len(b'{"status":"alive"}'))
    return head.decode()


async def test_gateway_drains_before_it_stops(postgres: PostgresSettings, port: int) -> None:
    settings = {"APP_PORT": str(port), "SHUTDOWN_DELAY": "600"}
    live = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
    url = f"http://127.0.0.1:{port}"
    with running_service("gateway", NOWHERE, postgres, **settings) as gateway:
        await answers(f"{url}/readyz", 200)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", port)
        for connection in ((reader, writer), (late_reader, late_writer)):
            connection[1].write(live + b"\r\n")
            assert "connection: close" not in await read_response(connection[0])
        async with reading(httpx.URL(url)) as (stream, _):
            gateway.send_signal(signal.SIGTERM)
            ready = await answers(f"{url}/readyz", 503)
            assert ready.json()["status"] == "draining"
            # New connections are accepted, and those that clients have kept alive are closed after their next response.
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                response = await client.post("/api/notifications", json=BODY)
            assert (response.status_code, response.headers["connection"]) == (201, "close")
            writer.write(live + b"\r\n")
            assert "connection: close" in await read_response(reader)
            assert await reader.read() == b""
            writer.close()
            # A second signal ends the delay. A request that has begun to arrive still gets its response.
            late_writer.write(live)
            gateway.send_signal(signal.SIGTERM)
            while await stream.next() is not None:
                pass
            await refuses_connections(port)
            late_writer.write(b"\r\n")
            assert "connection: close" in await read_response(late_reader)
            assert await late_reader.read() == b""
            late_writer.close()
        assert await asyncio.to_thread(gateway.wait, STOP_TIMEOUT) == 0
