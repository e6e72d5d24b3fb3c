"""The gateway's API against PostgreSQL; RabbitMQ is away, which must not matter here."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import DeliveryStatus
from notify_common.rabbitmq.connection import create_broker
from notify_common.rabbitmq.events import EventPublisher
from notify_common.rabbitmq.publisher import ConfirmedPublisher
from notify_database.engine import PostgresSettings, create_engine
from notify_database.errors import DataRejected
from notify_gateway.notifications.intake import NotificationIntake
from notify_gateway.notifications.new_notification import new_notification
from notify_gateway.notifications.schemas import NotificationRequest
from notify_gateway.notifications.status import NotificationStatus, notification_status
from notify_gateway.outbox.relay import OutboxRelay
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.services import NOWHERE, gateway_metrics, running_gateway

Json = dict[str, Any]
JSON_HEADERS = {"content-type": "application/json"}
OLD_ID = "01890000-0000-7000-8000-000000000000"
SET_STATUS = text("""
    UPDATE deliveries SET status = :status
    WHERE notification_id = :id AND channel = coalesce(:channel, channel)
""")
TRANSACTIONS = text("SELECT pg_current_xact_id()::text::bigint")
BODY: Json = {"user_id": 123, "message": "Your code: 11111", "type": "telegram"}


async def post(api: httpx.AsyncClient, **change: Any) -> Json:
    answer = await api.post("/api/notifications", json={**BODY, **change})
    assert answer.status_code == 201, answer.text
    created: Json = answer.json()
    return created


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return [item["id"] for item in (body if isinstance(body, list) else body["items"])]


async def set_status(engine: AsyncEngine, notification_id: str, status: str, channel: str | None = None) -> None:
    async with engine.begin() as connection:
        parameters = {"status": status, "id": UUID(notification_id), "channel": channel}
        await connection.execute(SET_STATUS, parameters)


async def test_a_notification_is_created_and_told_back(api: httpx.AsyncClient) -> None:
    created = await post(api)
    assert created["user_id"] == 123
    assert created["message"] == "Your code: 11111"
    assert (created["type"], created["channels"], created["status"]) == ("telegram", ["telegram"], "pending")
    assert [delivery["status"] for delivery in created["deliveries"]] == ["pending"]
    answer = await api.get(f"/api/notifications/{created['id']}")
    assert (answer.status_code, answer.json()) == (200, created)


async def test_two_channels_are_two_deliveries(api: httpx.AsyncClient) -> None:
    created = await post(
        api,
        type=None,
        channels=["telegram", "email"],
        subject="Hello",
        recipient={"email": "a@example.org", "telegram": "123456789"},
        metadata={"order": "5512"},
    )
    assert (created["type"], created["subject"], created["metadata"]) == (None, "Hello", {"order": "5512"})
    recipients = {delivery["channel"]: delivery["recipient"] for delivery in created["deliveries"]}
    assert recipients == {"telegram": "123456789", "email": "a@example.org"}
    stored = (await api.get(f"/api/notifications/{created['id']}")).json()
    assert sorted(stored["channels"]) == ["email", "telegram"]


async def test_what_is_sent_for_real_needs_a_recipient(postgres: PostgresSettings) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, email_provider="smtp") as api:
        await post(api)
        both: Json = {**BODY, "type": None, "channels": ["telegram", "email"]}
        refused = await api.post("/api/notifications", json=both)
        assert refused.status_code == 422
        assert [error["field"] for error in refused.json()["errors"]] == ["recipient.email"]
        for address in ("a@example.org", "permanent@simulator.invalid"):
            await post(api, type="email", recipient={"email": address})


async def test_what_goes_by_email_only_is_stored_and_told(api: httpx.AsyncClient) -> None:
    own = {"html": "<p>Hello</p>", "reply_to": "a@example.org", "list_unsubscribe": "https://example.org/u?t=1"}
    created = await post(api, type="email", email=own)
    assert created["email"] == own
    assert (await api.get(f"/api/notifications/{created['id']}")).json() == created
    assert (await post(api))["email"] is None
    # In a list they could be thousands.
    assert all("email" not in each for each in (await api.get("/api/notifications")).json()["items"])


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_trailing_slash_works_without_a_redirect(api: httpx.AsyncClient, method: str) -> None:
    answer = await api.request(method, "/api/notifications/", json=BODY if method == "POST" else None)
    assert answer.status_code == (201 if method == "POST" else 200)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**BODY, "user_id": 0}, "user_id"),
        ({**BODY, "message": " "}, "message"),
        ({**BODY, "message": "a\x00b"}, "message"),
        ({**BODY, "message": "\ud800"}, "message"),
        ({**BODY, "type": "pigeon"}, "type"),
        ({**BODY, "channels": ["email"]}, "channels"),
        ({"user_id": 1, "message": "x"}, "channels"),
        ({"user_id": 1, "message": "x", "channels": ["email", "pigeon"]}, "channels.1"),
        ({**BODY, "colour": "red"}, "colour"),
        ({**BODY, "recipient": {"email": "a@example.org"}}, "recipient.email"),
        ({**BODY, "type": "email", "recipient": {"email": "a@example.invalid"}}, "recipient.email"),
        ({**BODY, "type": "email", "recipient": {"email": "delivery@simulator.invalid"}}, "recipient.email"),
        ({**BODY, "recipient": {"telegram": "@simulator_delivery"}}, "recipient.telegram"),
        ({**BODY, "type": "webhook", "recipient": {"webhook": "example.org"}}, "recipient.webhook"),
        ({**BODY, "type": "webhook", "recipient": {"webhook": "https://a:b@example.org"}}, "recipient.webhook"),
        (
            {**BODY, "type": "webhook", "recipient": {"webhook": "https://delivery.simulator.invalid"}},
            "recipient.webhook",
        ),
        ({**BODY, "email": {"html": "<p>x</p>"}}, "email"),
        ({**BODY, "type": "email", "email": {"html": " "}}, "email.html"),
        ({**BODY, "type": "email", "email": {"html": "<p>\x00"}}, "email.html"),
        ({**BODY, "type": "email", "email": {"reply_to": "a@example.org\r\nBcc: b@example.org"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"reply_to": "jörg@example.org"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"reply_to": "Shop <a@example.org>"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"reply_to": "delivered@simulator.invalid"}}, "email.reply_to"),
        ({**BODY, "type": "email", "email": {"list_unsubscribe": "http://example.org"}}, "email.list_unsubscribe"),
        (
            {**BODY, "type": "email", "email": {"list_unsubscribe": "https://example.org/" + "x" * 900}},
            "email.list_unsubscribe",
        ),
        ({**BODY, "type": "email", "email": {"text": "x"}}, "email.text"),
        ({**BODY, "metadata": {"a": 1}}, "metadata.a"),
        ({"message": "x", "type": "email"}, "user_id"),
        ([], "body"),
    ],
    ids=repr,
)
async def test_a_bad_body_gets_problem_details_that_name_the_field(
    api: httpx.AsyncClient,
    body: Any,
    field: str,
) -> None:
    answer = await api.post("/api/notifications", content=json.dumps(body), headers=JSON_HEADERS)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["status"]) == ("about:blank", 422)
    assert field in [error["field"] for error in problem["errors"]]
    assert field in problem["detail"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"user_id": 1'], ids=repr)
async def test_a_body_that_is_no_json_is_a_problem_of_the_body(api: httpx.AsyncClient, content: bytes) -> None:
    answer = await api.post("/api/notifications", content=content, headers=JSON_HEADERS)
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


async def test_unknown_ids_paths_and_methods_are_problems_too(api: httpx.AsyncClient) -> None:
    for method, path, status in (
        ("GET", f"/api/notifications/{uuid4()}", 404),
        ("GET", "/api/notifications/not-an-id", 422),
        ("GET", "/nowhere", 404),
        ("DELETE", "/api/notifications", 405),
        ("GET", "/api/notifications?colour=red", 422),
        ("GET", "/api/notifications/5?status=lost", 422),
        ("GET", f"/api/notifications/{2**63}", 422),
        ("GET", f"/api/notifications/{'9' * 5000}", 422),
        ("GET", "/api/notifications/0", 422),
        ("GET", f"/api/notifications/{uuid4()}?status=sent", 422),
        ("GET", "/api/notifications?created_before=0001-01-01T00:00:00Z", 422),
        ("GET", "/api/notifications?created_after=9999-12-31T23:59:59.999999Z", 200),
        ("GET", "/api/notifications?created_after=2026-01-01T00:00:00", 422),
    ):
        answer = await api.request(method, path)
        assert answer.status_code == status, path
        assert status == 200 or answer.headers["content-type"] == "application/problem+json", path


async def test_the_list_is_newest_first_in_pages_that_meet_exactly(api: httpx.AsyncClient) -> None:
    created = [(await post(api, user_id=7))["id"] for _ in range(5)]
    await post(api, user_id=8)
    collected: list[str] = []
    query: Json = {"user_id": 7, "limit": 2}
    while True:
        page = (await api.get("/api/notifications", params=query)).json()
        collected += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert collected == sorted(created, reverse=True)


async def test_the_list_without_a_user_is_the_last_24_hours(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    recent = (await post(api))["id"]
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "WITH notification AS (INSERT INTO notifications"
                " VALUES ('01890000-0000-7000-8000-000000000000', 1, 'old', NULL, NULL, now(), 'default'))"
                " INSERT INTO deliveries VALUES ('01890000-0000-7000-8000-000000000001',"
                " '01890000-0000-7000-8000-000000000000', 'telegram', NULL, 'sent', 1, 1, 0, now())"
            )
        )
    assert ids(await api.get("/api/notifications")) == [recent]
    since = {"created_after": "2020-01-01T00:00:00Z"}
    assert ids(await api.get("/api/notifications", params=since)) == [recent, OLD_ID]
    before = {"created_before": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}
    assert ids(await api.get("/api/notifications", params={**since, **before})) == [
        "01890000-0000-7000-8000-000000000000"
    ]


async def test_the_window_is_exact_to_the_millisecond(api: httpx.AsyncClient) -> None:
    created = await post(api)
    at = datetime.fromisoformat(created["created_at"])
    assert ids(await api.get("/api/notifications", params={"created_after": at.isoformat()})) == [created["id"]]
    assert ids(await api.get("/api/notifications", params={"created_before": at.isoformat()})) == []
    later = (at + timedelta(microseconds=1)).isoformat()
    assert ids(await api.get("/api/notifications", params={"created_after": later})) == []


async def test_the_list_filters_by_status_and_channel(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    both = (await post(api, type=None, channels=["telegram", "email"]))["id"]
    telegram = (await post(api))["id"]
    await set_status(engine, telegram, "sent")
    await set_status(engine, both, "sent", "email")
    for query, expected in (
        ({"status": "sent"}, [telegram]),
        ({"status": "pending"}, [both]),
        ({"channel": "email"}, [both]),
        ({"channel": "telegram"}, [telegram, both]),
        ({"channel": "telegram", "status": "sent"}, [telegram]),
        ({"status": "failed"}, []),
    ):
        assert ids(await api.get("/api/notifications", params=query)) == expected, query


async def test_all_filters_of_the_list_go_together(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created_ids: list[str] = []
    for number in range(12):
        over = (["telegram"], ["email"], ["telegram", "email"])[number % 3]
        created = await post(api, type=None, channels=over, user_id=1 + number % 2)
        created_ids.append(created["id"])
        await set_status(engine, created["id"], ("sent", "failed")[number % 4 // 2])
    stored = [(await api.get(f"/api/notifications/{id_}")).json() for id_ in sorted(created_ids, reverse=True)]
    times = [each["created_at"] for each in stored]
    for user, status, channel in product((None, 1), (None, "sent", "failed"), (None, "email")):
        for first, end, cursor in product(
            (None, times[-3]), (None, times[2]), (None, stored[4]["id"], str(UUID(int=2**128 - 1)))
        ):
            query = {
                "user_id": user, "status": status, "channel": channel, "created_after": first, "created_before": end,
                "cursor": cursor,
            }  # fmt: skip
            expected = [
                each["id"]
                for each in stored
                if user in (None, each["user_id"])
                and status in (None, each["status"])
                and (channel is None or channel in each["channels"])
                and (first is None or datetime.fromisoformat(each["created_at"]) >= datetime.fromisoformat(first))
                and (end is None or datetime.fromisoformat(each["created_at"]) < datetime.fromisoformat(end))
                and (cursor is None or each["id"] < cursor)
            ]
            asked = {name: value for name, value in query.items() if value is not None}
            assert ids(await api.get("/api/notifications", params=asked)) == expected, asked


async def test_the_status_rule_is_the_same_in_sql(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = (await post(api, type=None, channels=["telegram", "email"]))["id"]
    for telegram in DeliveryStatus:
        for email in DeliveryStatus:
            await set_status(engine, created, telegram, "telegram")
            await set_status(engine, created, email, "email")
            expected = notification_status([telegram, email])
            for status in NotificationStatus:
                found = ids(await api.get("/api/notifications", params={"status": status}))
                assert bool(found) == (status is expected), (telegram, email, status)


async def test_the_first_sketchs_url_answers_a_plain_list(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    first, second = (await post(api, user_id=123))["id"], (await post(api, user_id=123))["id"]
    await post(api, user_id=124)
    await set_status(engine, first, "sent")
    assert ids(await api.get("/api/notifications/123")) == [second, first]
    assert ids(await api.get("/api/notifications/123?status=sent")) == [first]
    assert ids(await api.get("/api/notifications/123?status=pending")) == [second]
    assert ids(await api.get("/api/notifications/123/?status=failed")) == []
    assert ids(await api.get(f"/api/notifications/{2**63 - 1}")) == []


async def test_500_at_once_share_transactions_and_all_are_stored(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        before = (await connection.execute(TRANSACTIONS)).scalar_one()
    await asyncio.gather(*(post(api, user_id=number) for number in range(1, 501)))
    async with engine.connect() as connection:
        transactions = (
            await connection.execute(text("SELECT pg_current_xact_id()::text::bigint"))
        ).scalar_one() - before
        stored = await connection.execute(text("SELECT count(*), (SELECT count(*) FROM outbox) FROM notifications"))
    assert stored.one() == (500, 500)
    assert transactions < 100


async def test_a_row_that_the_database_refuses_fails_alone(postgres: PostgresSettings) -> None:
    engine, broker = create_engine(postgres, pool_size=1), create_broker(NOWHERE, "gateway")
    relay = OutboxRelay(
        broker, ConfirmedPublisher(broker), OutboxStore(engine), EventPublisher(NOWHERE, "gateway"), gateway_metrics()
    )
    intake = NotificationIntake(engine, relay, max_waiting=100, metrics=gateway_metrics())
    good = NotificationRequest(user_id=1, message="fine", type=Channel.EMAIL)
    bad = NotificationRequest.model_construct(user_id=1, message="a\x00b", type=Channel.EMAIL, metadata=None)
    accepting = [intake.accept(new_notification(request, "default")) for request in (good, bad, good)]
    outcomes = await asyncio.gather(*accepting, return_exceptions=True)
    assert [isinstance(outcome, DataRejected) for outcome in outcomes] == [False, True, False]
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM notifications"))).scalar_one() == 2
    await engine.dispose()


async def test_a_full_waiting_room_says_when_to_come_back(postgres: PostgresSettings, engine: AsyncEngine) -> None:
    async with running_gateway(NOWHERE, postgres, relaying=False, max_waiting_requests=3) as api:
        async with engine.begin() as lock:
            await lock.execute(text("LOCK TABLE notifications IN ACCESS EXCLUSIVE MODE"))
            requests = [asyncio.create_task(api.post("/api/notifications", json=BODY)) for _ in range(20)]
            refused, waiting = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            while waiting and len(refused) < 20 - 2 * 3:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
        answers = [request.result() for request in refused]
        assert {(answer.status_code, answer.headers["retry-after"]) for answer in answers} == {(503, "1")}
        accepted = [answer.status_code for answer in await asyncio.gather(*waiting)]
        assert set(accepted) <= {201, 503}
        assert 201 in accepted


async def test_without_postgresql_requests_are_told_to_come_back(postgres: PostgresSettings) -> None:
    nowhere = postgres.model_copy(update={"postgres_port": 1})
    async with running_gateway(NOWHERE, nowhere, relaying=False) as api:
        for answer in (await api.post("/api/notifications", json=BODY), await api.get("/api/notifications")):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        ready = await api.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["postgresql"].startswith("not reachable")
        assert (await api.get("/livez")).status_code == 200


async def test_ready_without_rabbitmq_and_says_so(api: httpx.AsyncClient) -> None:
    answer = await api.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["postgresql"] == "ready"
    assert "outbox" in answer.json()["rabbitmq"]


async def test_the_documentation_loads_nothing_from_another_host(api: httpx.AsyncClient) -> None:
    page = (await api.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/assets/{asset}" in page
        assert (await api.get(f"/docs/assets/{asset}")).status_code == 200


async def test_the_openapi_document_has_examples_and_the_problem_schema(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    posting = document["paths"]["/api/notifications"]["post"]
    examples = posting["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        await post(api, **{"type": None, **example["value"]})
    assert posting["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")
    assert {"Problem", "FieldProblem"} <= set(document["components"]["schemas"])
