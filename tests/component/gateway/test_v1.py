"""The API under `/v1`, and how it goes together with the deprecated URLs under `/api`."""

import re
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_database.engine import PostgresSettings
from notify_gateway.http.principal import Scope
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.amqp import Hand
from support.gateway import Json, bearer, rows, soon
from support.services import eventually, running_gateway

USER = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
BODY: Json = {"user_id": USER, "channels": ["telegram"], "message": "Your code: 11111"}
FAIL = text("UPDATE deliveries SET status = 'failed', attempt = 1, failures = 1 WHERE channel = :channel")
ADD_ATTEMPTS = text("""
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, error_code, started_at, finished_at)
    SELECT id, 1, 1, 'failed', 'permanent', 'blocked', now(), now() FROM deliveries WHERE status = 'failed'
""")


async def create(api: httpx.AsyncClient, **change: Any) -> Json:
    """Post `BODY`, overridden by `change`, and return the whole notification."""
    response = await api.post("/v1/notifications", json={**BODY, **change})
    assert response.status_code == 201, response.text
    whole: Json = (await api.get(response.headers["Location"])).raise_for_status().json()
    assert whole["id"] == response.json()["id"]
    return whole


async def listed(api: httpx.AsyncClient, **query: Any) -> list[str]:
    page = (await api.get("/v1/notifications", params=query)).raise_for_status().json()
    return [item["id"] for item in page["items"]]


def without_nulls(value: object) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is not None and all(map(without_nulls, children))


async def test_created_notification_is_slim_and_its_location_has_everything(api: httpx.AsyncClient) -> None:
    body = {
        **BODY,
        "channels": ["telegram", "email"],
        "subject": "Code",
        "to": {"email": "a@example.org"},
        "overrides": {"email": {"html": "<b>11111</b>"}},
        "reference": "order-1",
        "metadata": {"order": "1"},
    }
    response = await api.post("/v1/notifications", json=body)
    created = response.json()
    assert response.status_code == 201
    assert set(created) == {"id", "status", "created_at", "deliveries"}
    assert [set(each) for each in created["deliveries"]] == [{"id", "channel", "status"}] * 2
    assert response.headers["Location"] == f"/v1/notifications/{created['id']}"
    whole = (await api.get(response.headers["Location"])).json()
    assert {name: whole[name] for name in body if name not in {"to", "channels"}} == {
        name: value for name, value in body.items() if name not in {"to", "channels"}
    }
    assert [(each["channel"], each.get("recipient")) for each in whole["deliveries"]] == [
        ("email", "a@example.org"),
        ("telegram", None),
    ]
    assert without_nulls(whole)


async def test_repeated_request_gets_the_same_location(api: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "1"}
    first, second = [await api.post("/v1/notifications", json=BODY, headers=headers) for _ in range(2)]
    assert (first.content, first.headers["Location"]) == (second.content, second.headers["Location"])
    assert second.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("user_id", ["", "x" * 201, "a/b", "a\nb", "a\u0085", "..", 123, None])
async def test_user_id_is_a_short_text(api: httpx.AsyncClient, user_id: object) -> None:
    response = await api.post("/v1/notifications", json={**BODY, "user_id": user_id})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "user_id")


@pytest.mark.parametrize("user_id", ["0", "0123", "+1", "٣", str(2**63), "x" * 200, "a|b@c d"])
async def test_any_other_text_is_a_user_of_its_own(api: httpx.AsyncClient, user_id: str) -> None:
    created = await create(api, user_id=user_id)
    await create(api)
    assert created["user_id"] == user_id
    assert await listed(api, user_id=user_id) == [created["id"]]


@pytest.mark.parametrize("user_id", ["a\u00a0b", "\U0001f469\u200d\U0001f4bb", "\u3000", "a%2Fb", "\ufeff", "\u202e"])
async def test_user_who_can_be_notified_can_also_opt_out(api: httpx.AsyncClient, user_id: str) -> None:
    await create(api, user_id=user_id)
    path = f"/v1/users/{quote(user_id, safe='')}/channels/telegram"
    assert (await api.put(path, json={"opted_out": True})).status_code == 200
    assert (await create(api, user_id=user_id))["status"] == "cancelled"


async def test_integer_and_its_text_are_one_user(api: httpx.AsyncClient) -> None:
    old = (await api.post("/api/notifications", json={"user_id": 123, "message": "x", "type": "telegram"})).json()
    new = await create(api, user_id="123")
    assert await listed(api, user_id="123") == [new["id"], old["id"]]
    assert [each["id"] for each in (await api.get("/api/notifications/123")).json()] == [new["id"], old["id"]]
    assert (await api.get(f"/api/notifications/{new['id']}")).json()["user_id"] == 123


async def test_old_urls_know_only_users_with_integer_ids(api: httpx.AsyncClient) -> None:
    named, integer = await create(api), await create(api, user_id="1")
    response = await api.get(f"/api/notifications/{named['id']}")
    assert (response.status_code, response.json()["detail"].partition(":")[0]) == (409, "user_id")
    assert (await api.post(f"/api/notifications/{named['id']}/cancel")).status_code == 409
    assert (await api.get(f"/v1/notifications/{named['id']}")).json()["status"] == "pending"
    assert [each["id"] for each in (await api.get("/api/notifications")).json()["items"]] == [integer["id"]]


async def test_list_filters_and_expands(api: httpx.AsyncClient) -> None:
    one = await create(api, reference="a", metadata={"order": "1", "shop.name": "x"})
    two = await create(api, reference="b", metadata={"order": "2"}, send_at=soon(hours=1))
    assert (await api.post(f"/v1/notifications/{two['id']}/cancel")).json()["status"] == "cancelled"
    assert await listed(api) == [two["id"], one["id"]]
    assert await listed(api, reference="a") == [one["id"]]
    assert await listed(api, status=["pending", "sent"]) == [one["id"]]
    assert await listed(api, status=["pending", "cancelled"]) == [two["id"], one["id"]]
    assert await listed(api, **{"metadata.order": "2"}) == [two["id"]]
    assert await listed(api, **{"metadata.shop.name": "x", "metadata.order": "1"}) == [one["id"]]
    page = (await api.get("/v1/notifications", params={"limit": 1})).json()
    assert (page["has_more"], page["next_cursor"], without_nulls(page)) == (True, two["id"], True)
    assert not {"message", "attempts"} & {*page["items"][0], *page["items"][0]["deliveries"][0]}
    rest = (await api.get("/v1/notifications", params={"cursor": two["id"], "expand": ["content", "attempts"]})).json()
    assert (rest["has_more"], "next_cursor" in rest) == (False, False)
    assert rest["items"] == [one]


@pytest.mark.parametrize("path", ["/v1/notifications", "/v1/deliveries"])
@pytest.mark.parametrize(
    "query",
    ["unknown=1", "metadata.=1", "status=sent&status=pigeon", "cursor=1", "metadata=1", "metadata.a=1&metadata.a=2"],
)
async def test_unknown_filter_is_refused(api: httpx.AsyncClient, path: str, query: str) -> None:
    response = await api.get(f"{path}?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert response.json()["errors"][0]["location"] == "query"


async def test_number_is_no_time(api: httpx.AsyncClient) -> None:
    """The older URLs take it for seconds or milliseconds since 1970."""
    seconds = 2_000_000_000
    assert (
        await api.post(
            "/api/notifications", json={"user_id": 1, "message": "x", "type": "telegram", "expires_at": seconds}
        )
    ).status_code == 201
    for response in (
        await api.post("/v1/notifications", json={**BODY, "expires_at": seconds}),
        await api.post("/v1/retries/preview", json={"created_after": seconds}),
        await api.get("/v1/notifications", params={"created_after": seconds}),
        await api.get("/v1/deliveries", params={"created_before": f"{seconds}.5"}),
    ):
        assert response.status_code == 422, response.text
        assert "Input should be a time such as" in response.json()["detail"]


async def test_deliveries_are_listed_by_status_and_error(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = [await create(api, channels=["telegram", "email"]) for _ in range(3)]
    async with engine.begin() as connection:
        await connection.execute(FAIL, {"channel": "email"})
        await connection.execute(ADD_ATTEMPTS)
    query = {"status": "failed", "error_class": "permanent", "limit": "2"}
    page = (await api.get("/v1/deliveries", params=query)).raise_for_status().json()
    assert [each["notification_id"] for each in page["items"]] == [each["id"] for each in reversed(created[1:])]
    item = page["items"][0]
    assert (item["channel"], item["user_id"], item["error_code"]) == ("email", USER, "blocked")
    assert (page["has_more"], without_nulls(page), "attempts" in item) == (True, True, False)
    query = {**query, "cursor": page["next_cursor"], "expand": "attempts"}
    rest = (await api.get("/v1/deliveries", params=query)).raise_for_status().json()
    assert (len(rest["items"]), rest["has_more"], len(rest["items"][0]["attempts"])) == (1, False, 1)
    assert (await api.get("/v1/deliveries", params={"error_class": "timeout"})).json()["items"] == []
    whole = (await api.get(f"/v1/deliveries/{item['id']}")).json()
    assert (whole["message"], whole["attempts"][0]["error_code"]) == (BODY["message"], "blocked")


async def test_deliveries_are_listed_by_notification(api: httpx.AsyncClient) -> None:
    one = await create(api, reference="a", metadata={"order": "1"})
    two = await create(api, user_id="1", reference="b", metadata={"order": "2"}, channels=["email", "telegram"])
    of_one, of_two = [{each["id"] for each in notification["deliveries"]} for notification in (one, two)]
    for query, found in (
        ({}, of_one | of_two),
        ({"user_id": USER}, of_one),
        ({"user_id": "1"}, of_two),
        ({"reference": "a"}, of_one),
        ({"reference": "b", "metadata.order": "2"}, of_two),
        ({"reference": "b", "metadata.order": "1"}, set()),
        ({"metadata.order": "1"}, of_one),
        ({"reference": "a", "created_before": one["created_at"]}, set()),
    ):
        page = (await api.get("/v1/deliveries", params=query)).raise_for_status().json()
        assert {each["id"] for each in page["items"]} == found, query


async def test_retries_are_previewed_and_started(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = await create(api, channels=["email"])
    [delivery] = created["deliveries"]
    response = await api.post(f"/v1/deliveries/{delivery['id']}/retry")
    assert (response.status_code, response.json()["code"]) == (409, "not_retryable")
    async with engine.begin() as connection:
        await connection.execute(FAIL, {"channel": "email"})
        await connection.execute(ADD_ATTEMPTS)
    preview = await api.post("/v1/retries/preview", json={"error_class": "permanent"})
    assert (preview.status_code, preview.json()) == (200, {"count": 1})
    started = await api.post("/v1/retries", json={"error_class": "permanent"})
    assert (started.status_code, without_nulls(started.json())) == (202, True)
    progress = (await api.get(started.headers["Location"])).raise_for_status().json()
    assert progress["id"] == started.json()["id"]
    retried = await api.post(f"/v1/deliveries/{delivery['id']}/retry")
    assert (retried.status_code, retried.json()["round"]) == (202, 2)


async def test_stored_channels_of_a_named_user_apply_to_notifications(
    api: httpx.AsyncClient, engine: AsyncEngine, rabbit: RabbitSettings, postgres: PostgresSettings, hand: Hand
) -> None:
    url = f"/v1/users/{USER}/channels"
    await api.put(f"{url}/telegram", json={"recipient": "42"})
    await api.put(f"{url}/email", json={"opted_out": True})
    await api.put("/v1/users/other/channels/telegram", json={"recipient": "43"})
    assert [each["channel"] for each in (await api.get(url)).json()["items"]] == ["email", "telegram"]
    assert without_nulls((await api.get(f"{url}/email")).json())
    created = await create(api, channels=["telegram", "email"])
    assert [(each["status"], each.get("recipient")) for each in created["deliveries"]] == [
        ("cancelled", None),
        ("pending", "42"),
    ]
    later = await create(api, send_at=soon(seconds=-1))
    await api.put(f"{url}/telegram", json={"opted_out": True})
    # The opt-out also applies to what waits in the outbox.
    await rows_updated(engine, "UPDATE outbox SET leased_until = NULL")

    async def outbox_is_empty() -> bool:
        return not await rows(engine, "SELECT 1 FROM outbox")

    async with running_gateway(rabbit, postgres):
        await eventually(outbox_is_empty, "the relay has taken all rows")
    assert await hand.depth("notifications.telegram") == 0
    assert (await api.get(f"/v1/notifications/{later['id']}")).json()["status"] == "cancelled"
    assert (await api.delete(f"{url}/telegram")).status_code == 204


async def rows_updated(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement))


async def test_messages_carry_both_kinds_of_ids(
    api: httpx.AsyncClient, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, hand: Hand
) -> None:
    await create(api)
    await rows_updated(engine, "UPDATE outbox SET leased_until = NULL")
    async with running_gateway(rabbit, postgres) as client:
        due = await hand.next_message("notifications.telegram")
        await client.post("/v1/notifications", json={**BODY, "user_id": "7"})
        fresh = await hand.next_message("notifications.telegram")
    requests = [DeliveryRequested.model_validate_json(message.body) for message in (due, fresh)]
    assert [(each.user_id, each.user_key, each.user) for each in requests] == [(0, USER, USER), (7, None, "7")]


async def test_overview_and_links_omit_what_is_unknown(
    api: httpx.AsyncClient, rabbit: RabbitSettings, postgres: PostgresSettings
) -> None:
    await create(api)
    async with running_gateway(rabbit, postgres) as client:
        old = (await client.get("/api/overview")).raise_for_status().json()
        new = (await client.get("/v1/overview")).raise_for_status().json()
        assert (await client.get("/v1/links")).json() == {}
        assert (await client.get("/api/links")).json() == {"rabbitmq": None, "trace": None}
    assert without_nulls(new)
    [before, *_], [after, *_] = old["channels"], new["channels"]
    assert len(before["seconds"]["sent"]) == len(after["seconds"]["accepted"]) == 120
    assert (before["waiting"], before["latency_p50"], before["seconds"]["sent"][0]) == (None, None, None)
    assert not {"waiting", "latency_p50"} & {*after}


async def test_problem_has_a_code_a_documented_type_and_the_request_id(api: httpx.AsyncClient) -> None:
    response = await api.get(f"/v1/notifications/{uuid4()}", headers={"Request-Id": "my-request.1"})
    problem = response.json()
    assert (problem["code"], problem["type"]) == ("not_found", "/docs/problems#not_found")
    assert problem["request_id"] == response.headers["Request-Id"] == "my-request.1"
    page = await api.get("/docs/problems")
    assert 'id="not_found"' in page.text
    old = (await api.get(f"/api/notifications/{uuid4()}")).json()
    assert (old["type"], "code" in old) == ("about:blank", False)


@pytest.mark.parametrize("named", ["a b", "x" * 101, "{}"])
async def test_unacceptable_request_id_is_replaced(api: httpx.AsyncClient, named: str) -> None:
    first = await api.get("/v1/notifications", headers={"Request-Id": named})
    second = await api.get("/v1/notifications")
    assert first.headers["Request-Id"].startswith("req_")
    assert first.headers["Request-Id"] != second.headers["Request-Id"]


async def test_old_urls_are_marked_as_deprecated(api: httpx.AsyncClient) -> None:
    for method, old, new in (
        ("POST", "/api/notifications", "/v1/notifications"),
        ("GET", "/api/notifications", "/v1/notifications"),
        ("GET", f"/api/deliveries/retry/{uuid4()}", "/v1/retries"),
    ):
        headers = (await api.request(method, old)).headers
        assert headers["Deprecation"].startswith("@")
        assert f'<{new}>; rel="successor-version"' in headers["Link"]
    headers = (await api.get("/v1/notifications")).headers
    assert not {"Deprecation", "Link"} & {*headers}


async def test_deprecation_links_to_a_page_about_the_migration(api: httpx.AsyncClient) -> None:
    headers = (await api.get("/api/notifications")).headers
    assert "Sunset" not in headers  # no date is set for the removal of the old URLs
    [guide] = re.findall('<([^>]+)>; rel="deprecation"', headers["Link"])
    page = (await api.get(guide)).raise_for_status()
    assert page.headers["Content-Type"].startswith("text/html")
    assert "<code>POST /v1/retries</code>" in page.text
    assert "No date is set for their removal." in page.text


async def test_recipients_are_hidden_from_keys_without_the_scope(
    secured_api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    headers = await bearer(engine, Scope.SEND, Scope.READ)
    created = await secured_api.post("/v1/notifications", json={**BODY, "to": {"telegram": "42"}}, headers=headers)
    for path in ("/v1/notifications", created.headers["Location"], "/v1/deliveries"):
        assert "42" not in [*_recipients((await secured_api.get(path, headers=headers)).json())]


def _recipients(value: object) -> list[object]:
    if isinstance(value, dict):
        return [value.get("recipient"), *(each for child in value.values() for each in _recipients(child))]
    return [each for child in value for each in _recipients(child)] if isinstance(value, list) else []
