"""Listing notifications: pages, time windows and filters."""

from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID

import httpx
import pytest
from notify_common.contracts.messages import DeliveryStatus
from notify_gateway.notifications.status import NotificationStatus, notification_status
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.gateway import Json, post

OLD_ID = "01890000-0000-7000-8000-000000000000"
SET_STATUS = text("""
    UPDATE deliveries SET status = :status
    WHERE notification_id = :id AND channel = coalesce(:channel, channel)
""")


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    body = response.json()
    return [item["id"] for item in (body if isinstance(body, list) else body["items"])]


async def set_status(engine: AsyncEngine, notification_id: str, status: str, channel: str | None = None) -> None:
    async with engine.begin() as connection:
        parameters = {"status": status, "id": UUID(notification_id), "channel": channel}
        await connection.execute(SET_STATUS, parameters)


async def test_list_pages_are_newest_first_without_gaps_or_overlaps(api: httpx.AsyncClient) -> None:
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


@pytest.mark.parametrize("text", ["\U0001f600", "\x01"], ids=["4 bytes", "escaped with 6 bytes"])
async def test_page_ends_after_4_megabytes(api: httpx.AsyncClient, text: str) -> None:
    metadata = {f"key {number}": text * 700 for number in range(50)}
    created = [(await post(api, user_id=7, metadata=metadata))["id"] for _ in range(60)]
    newest_first = created[::-1]
    plain = await api.get("/api/notifications/7")
    listed = ids(plain)
    assert listed == newest_first[: len(listed)]
    assert 4_000_000 < len(plain.content) < 4_300_000
    collected: list[str] = []
    query: Json = {"user_id": 7, "limit": 200}
    sizes = []
    while "cursor" not in query or query["cursor"] is not None:
        page = await api.get("/api/notifications", params=query)
        collected += ids(page)
        sizes.append(len(page.content))
        query["cursor"] = page.json()["next_cursor"]
    assert collected == newest_first
    assert max(sizes) < 4_300_000


async def test_list_without_a_user_covers_the_last_24_hours(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
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


async def test_time_window_is_exact_to_the_millisecond(api: httpx.AsyncClient) -> None:
    created = await post(api)
    at = datetime.fromisoformat(created["created_at"])
    assert ids(await api.get("/api/notifications", params={"created_after": at.isoformat()})) == [created["id"]]
    assert ids(await api.get("/api/notifications", params={"created_before": at.isoformat()})) == []
    later = (at + timedelta(microseconds=1)).isoformat()
    assert ids(await api.get("/api/notifications", params={"created_after": later})) == []


async def test_list_can_be_filtered_by_status_and_channel(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
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


async def test_list_filters_can_be_combined(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created_ids: list[str] = []
    for number in range(12):
        channels = (["telegram"], ["email"], ["telegram", "email"])[number % 3]
        created = await post(api, type=None, channels=channels, user_id=1 + number % 2)
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
            given = {name: value for name, value in query.items() if value is not None}
            assert ids(await api.get("/api/notifications", params=given)) == expected, given


async def test_sql_status_filter_matches_the_derived_status(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    created = (await post(api, type=None, channels=["telegram", "email"]))["id"]
    for telegram in DeliveryStatus:
        for email in DeliveryStatus:
            await set_status(engine, created, telegram, "telegram")
            await set_status(engine, created, email, "email")
            expected = notification_status([telegram, email])
            for status in NotificationStatus:
                found = ids(await api.get("/api/notifications", params={"status": status}))
                assert bool(found) == (status is expected), (telegram, email, status)


async def test_user_id_in_the_path_returns_a_plain_list(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    first, second = (await post(api, user_id=123))["id"], (await post(api, user_id=123))["id"]
    await post(api, user_id=124)
    await set_status(engine, first, "sent")
    assert ids(await api.get("/api/notifications/123")) == [second, first]
    assert ids(await api.get("/api/notifications/123?status=sent")) == [first]
    assert ids(await api.get("/api/notifications/123?status=pending")) == [second]
    assert ids(await api.get("/api/notifications/123/?status=failed")) == []
    assert ids(await api.get(f"/api/notifications/{2**63 - 1}")) == []
