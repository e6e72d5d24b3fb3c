"""Many requests at once, which neither stop the requests in progress nor delay those of others for long."""

import asyncio
import time
from collections import Counter
from contextlib import suppress

from notify_gateway.http.arriving_body import BODY, ArrivingBody, BodyMemory
from notify_gateway.http.middleware import FLOW, TRANSPORT, LimitsMiddleware
from notify_gateway.http.origin import OriginCheck
from notify_gateway.http.turns import LONGEST_TURN, REQUESTS_PER_TURN, SEARCHED_FROM
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.flow_control import FlowControl

MANY = 500
TIMEOUT = 20.0
TENANTS = {"key": "a tenant", "another key": "a tenant", "many": "many", "one": "one"}


class Connection(asyncio.Transport):
    """A connection that its client may end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = False
        self.paused = False

    @override
    def pause_reading(self) -> None:
        self.paused = True

    @override
    def is_closing(self) -> bool:
        return self.ended


class Server:
    """The middleware around an application that responds in a single step, and what it has served."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.turns = 0  # of the event loop
        self.per_turn = Counter[int]()
        self.cost = 0.0  # seconds of each request
        self.reading = 0  # requests whose bodies have not arrived
        self.more_body = False
        self.bodies = asyncio.Event()  # set when all of them arrive
        self._middleware = LimitsMiddleware(
            self._respond, lambda *_: None, OriginCheck(any_host=True), tenant_of=TENANTS.get
        )

    def send(self, key: str, transport: asyncio.Transport | None = None, *, path: str = "/") -> "asyncio.Task[None]":
        scope = {
            TRANSPORT: transport,
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"authorization", key.encode())],
        }
        return asyncio.create_task(self._middleware(scope, self._receive, self._discard))

    def send_head(self, key: str, transport: asyncio.Transport | None = None) -> "asyncio.Task[None]":
        """Send a request whose body arrives later."""
        scope = {
            TRANSPORT: transport,
            FLOW: None if transport is None else FlowControl(transport),
            BODY: ArrivingBody(BodyMemory()),
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"authorization", key.encode()), (b"content-length", b"2")],
        }
        return asyncio.create_task(self._middleware(scope, self._receive_body, self._discard))

    async def count_turns(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (await receive())["type"] == "http.disconnect" and scope["method"] == "POST":
            return
        self.served.append(dict(scope["headers"])[b"authorization"].decode())
        self.per_turn[self.turns] += 1
        time.sleep(self.cost)  # noqa: ASYNC251 - the request is expensive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def _receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def _receive_body(self) -> Message:
        if self.bodies.is_set():
            return {"type": "http.disconnect"}
        self.reading += 1
        await self.bodies.wait()
        return {"type": "http.request", "body": b"{}", "more_body": self.more_body}

    async def _discard(self, message: Message) -> None:
        pass


async def test_other_tasks_run_between_few_of_many_requests() -> None:
    server = Server()
    counting = asyncio.create_task(server.count_turns())
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(server.send("key") for _ in range(MANY)))
    counting.cancel()
    assert len(server.served) == MANY
    assert max(server.per_turn.values()) <= MANY / 10


async def test_many_requests_with_one_key_do_not_delay_a_request_with_another() -> None:
    server = Server()
    requests = [*(server.send("many") for _ in range(MANY)), server.send("one")]
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests)
    assert server.served.index("one") < MANY / 10
    assert len(server.served) == MANY + 1


async def test_requests_with_many_made_up_keys_do_not_delay_a_request_with_a_valid_one() -> None:
    server = Server()
    requests = [*(server.send(f"made up {number}") for number in range(MANY)), server.send("one")]
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests)
    assert server.served.index("one") < MANY / 10
    assert len(server.served) == MANY + 1


async def test_health_checks_do_not_wait_for_other_requests_without_a_key() -> None:
    server = Server()
    requests = [*(server.send("made up") for _ in range(MANY)), server.send("check", path="/readyz")]
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests)
    assert server.served.index("check") < MANY / 10
    assert len(server.served) == MANY + 1


async def test_tenant_with_several_keys_has_the_turns_of_one() -> None:
    server = Server()
    keys = ["key", "another key", "one"]
    requests = [server.send(key) for key in keys for _ in range(MANY)]
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests)
    half = server.served[:MANY]
    assert abs(half.count("one") - MANY / 2) < MANY / 10


async def reading_server(*requests: tuple[str, asyncio.Transport | None]) -> tuple[Server, list["asyncio.Task[None]"]]:
    """Return a server on which these requests have begun, and wait for their bodies."""
    server = Server()
    sent = [server.send_head(*request) for request in requests]
    async with asyncio.timeout(TIMEOUT):
        while server.reading < len(requests):  # noqa: ASYNC110 - each needs its turn
            await asyncio.sleep(0)
    return server, sent


async def test_other_tasks_run_between_few_of_many_requests_whose_bodies_arrive_at_once() -> None:
    server, requests = await reading_server(*[("many", None)] * MANY)
    counting = asyncio.create_task(server.count_turns())
    server.bodies.set()
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests)
    counting.cancel()
    assert len(server.served) == MANY
    assert max(server.per_turn.values()) <= MANY / 10


async def test_many_bodies_that_arrive_at_once_do_not_delay_a_request_with_another_key() -> None:
    server, requests = await reading_server(*[("many", None)] * MANY)
    server.bodies.set()
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests, server.send("one"))
    assert server.served.index("one") < MANY / 10


async def test_requests_whose_clients_leave_after_the_body_are_not_served() -> None:
    connection = Connection()
    server, requests = await reading_server(*[("many", connection)] * MANY)
    server.bodies.set()
    await asyncio.sleep(0)
    connection.ended = True
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests)
    assert len(server.served) <= 2 * REQUESTS_PER_TURN


async def test_no_more_is_read_of_a_body_while_a_part_of_it_waits_for_its_turn() -> None:
    connection = Connection()
    server, requests = await reading_server(*[("many", None)] * MANY, ("one", connection))
    server.more_body = True
    assert not connection.paused
    server.bodies.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(server.served) < MANY
    assert connection.paused
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests)


async def test_fewer_expensive_requests_begin_in_each_turn() -> None:
    server = Server()
    server.cost = LONGEST_TURN / 4
    counting = asyncio.create_task(server.count_turns())
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(server.send("key") for _ in range(10 * REQUESTS_PER_TURN)))
    counting.cancel()
    first, *later = server.per_turn.values()
    assert first == REQUESTS_PER_TURN
    assert max(later[-5:]) <= REQUESTS_PER_TURN / 4


async def test_requests_whose_clients_leave_while_they_wait_are_not_served() -> None:
    server, connection = Server(), Connection()
    requests = [server.send("many", connection) for _ in range(MANY)]
    await asyncio.sleep(0)
    connection.ended = True
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*requests, server.send("many", Connection()))
    assert len(server.served) <= REQUESTS_PER_TURN + 1


async def test_requests_whose_clients_leave_do_not_pile_up_behind_others() -> None:
    server, connection = Server(), Connection()
    connection.ended = True
    ahead = [server.send("many", Connection()) for _ in range(MANY)]
    left = [server.send("many", connection) for _ in range(10 * SEARCHED_FROM)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(server.served) < MANY
    assert sum(not request.done() for request in left) <= 2 * SEARCHED_FROM
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*ahead, *left)
    assert len(server.served) == MANY


async def test_requests_that_are_cancelled_while_they_wait_leave_the_room_to_others() -> None:
    server = Server()
    cancelled = [server.send("many") for _ in range(MANY)]
    await asyncio.sleep(0)
    last = server.send("many")
    for request in cancelled:
        request.cancel()
    async with asyncio.timeout(TIMEOUT):
        await last
    for request in cancelled:
        with suppress(asyncio.CancelledError):
            await request
    assert server.served[-1] == "many"
    assert len(server.served) < MANY / 10
