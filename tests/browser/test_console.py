"""Test the console in a real browser, against services that use real servers.

`make screenshots` sets SCREENSHOTS=docs/images, so that these tests also take the screenshots for the documentation.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe
from notify_common.contracts.channels import Channel
from notify_common.contracts.ids import new_id
from notify_common.contracts.messages import DeliveryRequested
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.clock import utc_now
from notify_common.sending.errors import PermanentFailure, TemporaryFailure
from notify_database.engine import PostgresSettings
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.deliveries.queries import LISTED_ATTEMPTS
from notify_gateway.http.principal import Scope
from playwright.async_api import Browser, Page, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.browser import PHONE, TIMEOUT, Chromium, find_chromium, opened, running_browser
from support.fakes import CuttableNetwork, FakeProvider
from support.processes import local_command, running_system
from support.servers import PROJECT, Servers
from support.services import eventually, running_sender, running_status_writer, served_gateway

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
MARKUP = '<img src=x onerror=alert(1)><script>alert(2)</script> & "quoted" </td></table> {{7*7}} \u202eabc'
PAGES = ["#/", "#/notifications", "#/send", "#/retry"]
# The browser logs these texts when a request fails or gets an error response.
REQUEST_ERRORS = ("net::ERR_", "Failed to load resource")
MANY = 10_000
STORE = text("""
    WITH stored AS (
        INSERT INTO notifications (id, tenant, user_id, message, created_at)
        SELECT id, 'default', number, 'Message ' || number, now()
        FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS n (id, number)
    )
    INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
    SELECT id, notification_id, 'telegram', 'sent', 1, 1, 0, now()
    FROM unnest(CAST(:delivery_ids AS uuid[]), CAST(:ids AS uuid[])) AS d (id, notification_id)
""")
ADD_ATTEMPTS = text("""
    INSERT INTO attempts (delivery_id, attempt, round, outcome, started_at, finished_at)
    SELECT id, number, 1, 'sent', now(), now() FROM deliveries, generate_series(1, CAST(:count AS int)) AS number
""")


@pytest.fixture(autouse=True)
def _longer_timeout() -> None:
    expect.set_options(timeout=TIMEOUT)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Chromium:
    return find_chromium(tmp_path_factory.mktemp("chromium"))


@pytest.fixture
async def browser(chromium: Chromium) -> AsyncIterator[Browser]:
    async with running_browser(chromium) as browser:
        yield browser


async def screenshot(page: Page, name: str) -> None:
    """Take a screenshot if SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        await page.screenshot(path=Path(folder) / f"{name}.png")


@dataclass
class Providers:
    """Fake providers for all channels; each accepts every message unless `behaviours` says otherwise."""

    behaviours: dict[Channel, Callable[[DeliveryRequested], str]] = field(default_factory=dict)

    async def send(self, request: DeliveryRequested) -> str:
        behaviour = self.behaviours.get(request.channel)
        return behaviour(request) if behaviour else f"message-{request.attempt}"


def reject(_: DeliveryRequested) -> str:
    raise PermanentFailure("blocked", "The user has blocked us.")


def fail_temporarily(_: DeliveryRequested) -> str:
    raise TemporaryFailure("busy")


@asynccontextmanager
async def running_services(
    servers: Servers,
    rabbit: RabbitSettings,
    postgres: PostgresSettings,
    providers: Providers,
    **settings: object,
) -> AsyncIterator[httpx.AsyncClient]:
    """Run all services; yield a client whose base URL serves both the API and the console."""
    gateway_settings = {
        "rabbitmq_management_url": servers.management_url,
        "rabbitmq_ui_url": servers.management_url,
        "trace_url": "http://traces.invalid/{trace_id}",
        **settings,
    }
    async with AsyncExitStack() as stack:
        for channel in Channel:
            delay = timedelta(milliseconds=300)
            sender = running_sender(rabbit, FakeProvider(providers.send), channel=channel, first_delay=delay)
            await stack.enter_async_context(sender)
        await stack.enter_async_context(running_status_writer(rabbit, postgres))
        url = await stack.enter_async_context(served_gateway(rabbit, postgres, settings=gateway_settings))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20, trust_env=False))


@asynccontextmanager
async def outage(network: CuttableNetwork) -> AsyncIterator[None]:
    """Cut the network until the context ends."""
    await network.close()
    try:
        yield
    finally:
        await network.open()


async def post(api: httpx.AsyncClient, **change: Any) -> dict[str, Any]:
    headers = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
    body = {"user_id": 123, "message": "hello", "type": "telegram", **change}
    response = await api.post("/api/notifications", json=body, headers=headers)
    assert response.status_code == 201, response.text
    notification: dict[str, Any] = response.json()
    return notification


async def wait_for_status(api: httpx.AsyncClient, notification: dict[str, Any], status: str) -> None:
    async def has_status() -> bool:
        return bool((await api.get(f"/v1/notifications/{notification['id']}")).json()["status"] == status)

    await eventually(has_status, f"the notification is {status}")


async def test_console_sends_a_notification_and_shows_each_attempt(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    providers = Providers({Channel.EMAIL: lambda request: fail_temporarily(request) if request.attempt < 3 else "sent"})
    async with (
        running_services(servers, rabbit, postgres, providers) as api,
        opened(browser, str(api.base_url)) as page,
    ):
        await page.get_by_role("link", name="Send", exact=True).click()
        # A JavaScript number cannot represent this id exactly.
        await page.get_by_label("User ID").fill("9007199254740993")
        await page.get_by_role("checkbox", name="email").check()
        await page.get_by_label("Message").fill("Hello from the console")
        await page.get_by_role("button", name="Send").click()
        for channel, attempts in (("telegram", 1), ("email", 3)):
            history = page.get_by_role("region", name=f"{channel} delivery")
            await expect(history.get_by_role("heading")).to_contain_text("sent")
            await expect(history.get_by_text(re.compile(r"^Attempt \d+$"))).to_have_count(attempts)
        await page.get_by_role("link", name="Notification details").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Notification")
        await expect(page.get_by_role("link", name="9007199254740993")).to_be_visible()


async def test_console_explains_a_failed_delivery_and_can_retry_it(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    providers = Providers({Channel.EMAIL: reject})
    async with (
        running_services(servers, rabbit, postgres, providers) as api,
        opened(browser, str(api.base_url)) as page,
    ):
        failed = await post(api, type="email", recipient={"email": "a@example.org"})
        row = page.get_by_role("row", name="email permanent blocked")
        await row.get_by_role("link").first.click()
        history = page.get_by_role("region", name="email delivery")
        await expect(history).to_contain_text("permanent: blocked")
        await expect(history).to_contain_text("The user has blocked us.")
        await expect(history).to_contain_text(f"delivery_id: {failed['deliveries'][0]['id']}")
        trace = page.get_by_role("link", name=TRACE_ID)
        assert await trace.get_attribute("href") == f"http://traces.invalid/{TRACE_ID}"
        await screenshot(page, "console-failure")

        providers.behaviours.clear()
        await history.get_by_role("button", name="Retry…").click()
        await page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        await expect(history.get_by_role("heading")).to_contain_text("sent")
        await expect(history).to_contain_text("Attempt 2 (round 2)")


async def test_bulk_retry_shows_the_count_before_confirming(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    providers = Providers({Channel.EMAIL: reject, Channel.WEBHOOK: reject})
    async with (
        running_services(servers, rabbit, postgres, providers) as api,
        opened(browser, str(api.base_url)) as page,
    ):
        posted = [await post(api, type="email") for _ in range(7)]
        other = await post(api, type="webhook")
        for each in (*posted, other):
            await wait_for_status(api, each, "failed")
        await page.get_by_role("row", name="email permanent blocked 7").get_by_role("link", name="Retry these").click()
        providers.behaviours.clear()
        await page.get_by_role("button", name="Count").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Retry 7 deliveries?")
        await dialog.get_by_role("button", name="Go back").click()
        await wait_for_status(api, posted[0], "failed")
        await page.get_by_role("button", name="Count").click()
        await dialog.get_by_role("button", name="Retry 7").click()
        await expect(page.get_by_role("main").get_by_role("status")).to_have_text("7 of 7 queued for retry")
        for each in posted:
            await wait_for_status(api, each, "sent")
        await wait_for_status(api, other, "failed")


async def test_console_shows_a_rabbitmq_outage_and_the_recovery(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    async with (
        CuttableNetwork.before(rabbit.rabbitmq_host, rabbit.rabbitmq_port) as network,
        running_services(
            servers,
            rabbit.model_copy(update={"rabbitmq_host": "127.0.0.1", "rabbitmq_port": network.port}),
            postgres,
            Providers(),
        ) as api,
        opened(browser, str(api.base_url)) as page,
    ):
        state = page.get_by_role("banner").get_by_role("status")
        await expect(state).to_have_text("Live")
        history = page.get_by_role("region", name="telegram delivery")
        async with outage(network):
            await expect(state).to_have_text("RabbitMQ unavailable")
            waiting = [await post(api) for _ in range(3)]
            await expect(page.get_by_role("alert").first).to_contain_text("nothing is lost. Deliveries waiting: 3.")
            await screenshot(page, "console-rabbitmq-outage")
            await page.goto(f"{api.base_url}#/notifications/{waiting[0]['id']}")
            await expect(history).to_contain_text("Waiting for the first attempt")
        await expect(state).to_have_text("Live")
        await expect(history.get_by_role("heading")).to_contain_text("sent")
        await expect(page.get_by_role("alert").first).to_be_empty()


async def test_console_keeps_its_content_during_a_postgresql_outage(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    async with (
        CuttableNetwork.before(postgres.postgres_host, postgres.postgres_port) as network,
        running_services(
            servers,
            rabbit,
            postgres.model_copy(update={"postgres_host": "127.0.0.1", "postgres_port": network.port}),
            Providers(),
        ) as api,
        opened(browser, f"{api.base_url}#/notifications", expected=REQUEST_ERRORS) as page,
    ):
        await post(api, message="Still on the page")
        await expect(page.get_by_text("Still on the page")).to_be_visible()
        state = page.get_by_role("banner").get_by_role("status")
        async with outage(network):
            await expect(state).to_have_text("PostgreSQL unavailable")
            await expect(page.get_by_text("Still on the page")).to_be_visible()
        await expect(state).to_have_text("Live")


async def test_console_shows_that_the_gateway_is_unreachable(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_services(servers, rabbit, postgres, Providers()))
        async with opened(browser, str(api.base_url), expected=REQUEST_ERRORS) as page:
            state = page.get_by_role("banner").get_by_role("status")
            await expect(state).to_have_text("Live")
            await stack.aclose()
            await expect(state).to_have_text("Gateway unavailable")


async def test_console_is_usable_with_the_keyboard_alone(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    providers = Providers({Channel.TELEGRAM: reject})
    async with (
        running_services(servers, rabbit, postgres, providers) as api,
        opened(browser, str(api.base_url)) as page,
    ):

        async def tab_to(name: str) -> None:
            """Press Tab until the element called `name` has focus."""
            for _ in range(60):
                await page.keyboard.press("Tab")
                focus = page.locator(":focus")
                if await focus.count() and name in (
                    await focus.text_content() or await focus.get_attribute("name") or ""
                ):
                    return
            pytest.fail(f"Tab never reached {name}")

        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text("Skip to content")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("main")).to_be_focused()
        await page.keyboard.press("Shift+Tab")
        await page.reload()
        await tab_to("Send")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("main")).to_be_focused()
        await tab_to("message")
        await page.keyboard.press("Control+A")
        await page.keyboard.type("Typed")
        await tab_to("Send")
        await page.keyboard.press("Enter")
        history = page.get_by_role("region", name="telegram delivery")
        await expect(history.get_by_role("heading")).to_contain_text("failed")
        await tab_to("Retry…")
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        providers.behaviours.clear()
        await page.keyboard.press("Enter")
        await expect(dialog).to_be_visible()
        await expect(page.locator(":focus")).to_have_text("Go back")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(history.get_by_role("heading")).to_contain_text("sent")


async def test_markup_in_messages_is_escaped(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    def reject_with_markup(_: DeliveryRequested) -> str:
        raise PermanentFailure(MARKUP[:100], MARKUP)

    providers = Providers({Channel.EMAIL: reject_with_markup})
    async with (
        running_services(servers, rabbit, postgres, providers) as api,
        opened(browser, str(api.base_url)) as page,
    ):
        user = MARKUP.replace("/", "")  # a user id cannot have a slash
        texts = {"user_id": user, "reference": MARKUP, "message": MARKUP, "subject": MARKUP}
        posted = (
            await api.post("/v1/notifications", json={**texts, "metadata": {MARKUP: MARKUP}, "channels": ["email"]})
        ).json()
        await wait_for_status(api, posted, "failed")
        await expect(page.get_by_role("cell", name=MARKUP[:100])).to_have_count(1)
        await page.goto(f"{api.base_url}#/notifications")
        await expect(page.get_by_role("cell", name="<img src=x")).to_have_count(2)  # user and message
        await page.goto(f"{api.base_url}#/notifications/{posted['id']}")
        await expect(page.locator(".message")).to_have_text(MARKUP)
        await expect(page.get_by_text(MARKUP, exact=True)).to_have_count(4)  # reference, subject, message, error
        await expect(page.get_by_role("link", name=user)).to_be_visible()
        await expect(page.locator("q")).to_have_text(" ".join(MARKUP.split()))
        assert await page.locator("main img, main script").count() == 0


async def test_console_says_how_many_attempts_are_not_shown(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, browser: Browser
) -> None:
    async with running_services(servers, rabbit, postgres, Providers()) as api:
        now = utc_now()
        id_, delivery_id = new_id(now), new_id(now)
        async with engine.begin() as connection:
            await connection.execute(STORE, {"ids": [id_], "delivery_ids": [delivery_id]})
            await connection.execute(ADD_ATTEMPTS, {"count": LISTED_ATTEMPTS + 23})
        async with opened(browser, f"{api.base_url}#/notifications/{id_}") as page:
            steps = page.get_by_role("region", name="telegram delivery").get_by_role("listitem")
            await expect(steps.nth(1)).to_contain_text("23 earlier attempts are not shown")
            await expect(steps.nth(2)).to_contain_text("Attempt 24")


async def test_ten_thousand_notifications_are_paginated_and_searchable(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, browser: Browser
) -> None:
    begin = utc_now() - timedelta(hours=1)
    times = [begin + number * timedelta(milliseconds=100) for number in range(MANY)]
    ids, delivery_ids = [new_id(at) for at in times], [new_id(at) for at in times]
    async with engine.begin() as connection:
        await connection.execute(STORE, {"ids": ids, "delivery_ids": delivery_ids})
    async with (
        running_services(servers, rabbit, postgres, Providers()) as api,
        opened(browser, f"{api.base_url}#/notifications", expected=("Failed to load resource",)) as page,
    ):
        rows = page.get_by_role("table").get_by_role("row")
        await expect(rows.nth(1)).to_contain_text(f"Message {MANY}")
        await expect(rows).to_have_count(51)
        await page.get_by_role("link", name="Older").click()
        await expect(rows.nth(1)).to_contain_text(f"Message {MANY - 50}")
        await page.get_by_role("link", name="Newest").click()
        await expect(rows.nth(1)).to_contain_text(f"Message {MANY}")
        search = page.get_by_role("searchbox")
        for searched_id in (ids[0], delivery_ids[0]):
            await page.goto(f"{api.base_url}#/notifications")
            await search.fill(str(searched_id))
            await search.press("Enter")
            await expect(page.locator(".message")).to_have_text("Message 1")
        await page.goto(f"{api.base_url}#/notifications")
        await search.fill("4711")
        await search.press("Enter")
        await expect(rows).to_have_count(2)
        await expect(rows.nth(1)).to_contain_text("Message 4711")
        await search.fill("not an id")
        await search.press("Enter")
        await expect(page.get_by_text("No notifications match.")).to_be_visible()
        await search.fill(str(new_id(begin)))
        await search.press("Enter")
        await expect(page.get_by_text("No notification, delivery or user has the ID")).to_be_visible()


async def test_page_loads_without_a_key_but_data_requires_a_key(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, browser: Browser
) -> None:
    tokens = {}
    for name, scopes in {"all": frozenset(Scope), "reader": frozenset({Scope.READ})}.items():
        _, tokens[name] = await ApiKeyStore(engine).create("default", name, scopes)
    async with (
        running_services(servers, rabbit, postgres, Providers(), auth="on") as api,
        opened(browser, str(api.base_url), expected=("Failed to load resource",)) as page,
    ):
        dialog = page.get_by_role("dialog", name="Enter your API key")
        await dialog.get_by_label("API key", exact=True).fill("ntf_" + "x" * 43)
        await dialog.get_by_role("button").click()
        await expect(dialog).to_contain_text("revoked")
        await dialog.get_by_label("API key", exact=True).fill(tokens["all"])
        await dialog.get_by_role("button").click()
        await expect(page.get_by_role("region", name="telegram")).to_be_visible()
        await page.reload()
        await expect(page.get_by_role("region", name="telegram")).to_be_visible()
        stored = await page.evaluate(
            "JSON.stringify([{...localStorage}, document.cookie, Object.values({...sessionStorage})])"
        )
        assert json.loads(stored) == [{}, "", [tokens["all"]]]

        await page.get_by_role("button", name="Change key").click()
        await dialog.get_by_label("API key", exact=True).fill(tokens["reader"])
        await dialog.get_by_role("button").click()
        await expect(page.get_by_text("needs a key with the scope operator")).to_be_visible()
        await page.get_by_role("link", name="Send", exact=True).click()
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_text("This key does not have the scope send.")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_page_is_accessible_and_fits_a_phone(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser, *, dark: bool
) -> None:
    providers = Providers({Channel.EMAIL: reject})
    async with running_services(servers, rabbit, postgres, providers) as api:
        posted = await post(api, channels=["telegram", "email"], message="long " * 60, type=None)
        await wait_for_status(api, posted, "partially_sent")
        async with opened(browser, str(api.base_url), size=PHONE, dark=dark) as page:
            for path in (*PAGES, f"#/notifications/{posted['id']}"):
                await page.goto(f"{api.base_url}{path}")
                await expect(page.locator("[aria-busy]")).to_have_count(0)
                await expect(page.get_by_role("heading").first).to_be_attached()
                report = await Axe().run(page)
                assert report.violations_count == 0, f"{path}: {report.generate_report()}"
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            await screenshot(page, f"console-phone-{'dark' if dark else 'light'}")


async def test_empty_console_offers_to_send_a_test_notification(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    async with (
        running_services(servers, rabbit, postgres, Providers()) as api,
        opened(browser, str(api.base_url)) as page,
    ):
        await expect(page.get_by_text("No failed deliveries.")).to_be_visible()
        await page.get_by_role("link", name="Notifications", exact=True).click()
        await page.get_by_role("link", name="Send a test notification").click()
        await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_overview_shows_the_demo_live(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    with running_system(folder, {"ERROR_PROBABILITY": "0.1"}) as system:
        async with opened(browser, f"{system.addresses()['GATEWAY_URL']}/") as page:
            await expect(page.get_by_role("banner").get_by_role("status")).to_have_text("Live")
            rates = page.get_by_role("region", name="email").locator("figcaption")
            await expect(rates).to_contain_text("sent 0/s")
            demo = await asyncio.create_subprocess_exec(
                *local_command(folder, "demo", str(PROJECT / "examples/notifications.csv")),
                stdout=asyncio.subprocess.DEVNULL,
            )
            await expect(rates).not_to_contain_text("accepted 0/s")
            await expect(rates).not_to_contain_text("sent 0/s")
            await screenshot(page, "console")
            assert await demo.wait() == 0


async def test_docs_page_can_send_requests_but_runs_no_other_script(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, browser: Browser
) -> None:
    async with running_services(servers, rabbit, postgres, Providers()) as api:
        async with opened(browser, f"{api.base_url}/docs") as page:
            operation = page.locator("#operations-overview-get_links")
            await operation.get_by_role("button").first.click()
            await operation.get_by_role("button", name="Try it out").click()
            await operation.get_by_role("button", name="Execute").click()
            await expect(operation.locator(".live-responses-table")).to_contain_text("http://traces.invalid")
        violation = "Content Security Policy"
        async with opened(browser, f"{api.base_url}/docs", expected=(violation,)) as page:
            async with page.expect_console_message(lambda message: violation in message.text):
                await page.evaluate("""
                    const script = document.createElement("script");
                    script.textContent = "injected = 1";
                    document.body.append(script);
                """)
            assert await page.evaluate("typeof injected") == "undefined"


async def test_docs_page_opened_from_the_console_has_no_key(
    servers: Servers, rabbit: RabbitSettings, postgres: PostgresSettings, engine: AsyncEngine, browser: Browser
) -> None:
    _, token = await ApiKeyStore(engine).create("default", "all", frozenset(Scope))
    async with (
        running_services(servers, rabbit, postgres, Providers(), auth="on") as api,
        opened(browser, str(api.base_url), expected=("Failed to load resource",)) as page,
    ):
        dialog = page.get_by_role("dialog", name="Enter your API key")
        await dialog.get_by_label("API key", exact=True).fill(token)
        await dialog.get_by_role("button").click()
        await expect(page.get_by_role("region", name="telegram")).to_be_visible()
        async with page.context.expect_page() as opening:
            await page.get_by_role("link", name="API", exact=True).click()
        docs = await opening.value
        await expect(docs.locator("#swagger-ui .opblock").first).to_be_visible()
        assert await docs.evaluate("sessionStorage.length + localStorage.length") == 0
        assert await page.evaluate("sessionStorage.length") == 1
