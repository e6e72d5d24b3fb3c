# /// script
# requires-python = ">=3.11"
# dependencies = ["httpx>=0.28", "playwright>=1.50"]
# ///
"""Take the screenshots in rabbitmq.md from containers under load.

This needs Chromium on the PATH:

    make env && docker compose up --build -d --wait --scale telegram_sender=4 --scale email_sender=2
    .venv/bin/uv run docs/take_screenshots.py
"""

import asyncio
import itertools
import shutil
import sys
from pathlib import Path

import httpx
from playwright.async_api import Page, async_playwright

GATEWAY, MANAGEMENT = "http://127.0.0.1:8080", "http://127.0.0.1:15672"
FOLDER = Path(__file__).parent / "images"
SECRETS = Path(__file__).parents[1] / "secrets"
SIZE = {"width": 1180, "height": 800}  # pixels
REQUEST_INTERVAL = 0.005  # seconds
WARM_UP = 50.0  # seconds; the charts show the last minute, so the load must run before the first screenshot
REFRESH = 6.0  # seconds; the management UI refreshes every 5
MAIN_QUEUES = r"^notifications\.[a-z.]+$"
POISON = {
    "properties": {"delivery_mode": 2, "message_id": "9d0d5d0e-example"},
    "routing_key": "telegram",
    "payload": '{"version": 1, "delivery_id": "not an id"}',
    "payload_encoding": "string",
}


async def generate_load(client: httpx.AsyncClient, stop: asyncio.Event) -> None:
    """Send at most 200 notifications a second to all channels until `stop` is set."""
    requests: set[asyncio.Task[httpx.Response]] = set()
    for user_id in itertools.takewhile(lambda _: not stop.is_set(), itertools.count(1)):
        body = {"user_id": user_id, "message": "Your order has left.", "channels": ["telegram", "email", "webhook"]}
        task = asyncio.create_task(client.post("/api/notifications", json=body))
        requests.add(task)
        task.add_done_callback(requests.discard)
        await asyncio.sleep(REQUEST_INTERVAL)
    await asyncio.gather(*requests)


async def take(page: Page, path: str, name: str, *, height: int, filter_regex: str = "") -> None:
    """Take a screenshot of a page of the management UI without its header."""
    await page.goto(f"{MANAGEMENT}/#/{path}")
    await asyncio.sleep(1)
    if filter_regex:
        await page.check(f"#{path}-filter-regex-mode")
        await page.fill(f"#{path}-name", filter_regex)
        await page.press(f"#{path}-name", "Enter")
    await asyncio.sleep(REFRESH)
    await page.screenshot(path=FOLDER / f"{name}.png", clip={"x": 0, "y": 98, "width": SIZE["width"], "height": height})
    print(f"docs/images/{name}.png")


def secret(name: str) -> str:
    """Return a secret that `make env` has created."""
    return (SECRETS / name).read_text().strip()


async def main() -> None:
    """Put the system under load, log in and take all screenshots."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not on the PATH")
    login = ("admin", secret("rabbitmq_admin_password"))
    key = {"Authorization": f"Bearer {secret('bootstrap_api_key')}"}
    async with httpx.AsyncClient(base_url=MANAGEMENT, auth=login) as management:
        response = await management.post("/api/exchanges/%2F/notifications/publish", json=POISON)
        response.raise_for_status()
    stop = asyncio.Event()
    async with httpx.AsyncClient(base_url=GATEWAY, headers=key, timeout=30) as client, async_playwright() as playwright:
        loading = asyncio.create_task(generate_load(client, stop))
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport=SIZE)
        await page.goto(MANAGEMENT)
        await page.fill("input[name=username]", login[0])
        await page.fill("input[name=password]", login[1])
        await page.click("input[type=submit]")
        await page.wait_for_selector("#tabs")
        print(f"warming up for {WARM_UP:.0f} s")
        await asyncio.sleep(WARM_UP)
        await take(page, "", "rabbitmq-overview", height=560)
        await take(page, "queues", "rabbitmq-queues", height=420, filter_regex=MAIN_QUEUES)
        await take(page, "queues/%2F/notifications.telegram", "rabbitmq-telegram", height=640)
        await take(page, "connections", "rabbitmq-connections", height=505)
        stop.set()
        await loading
        await browser.close()


asyncio.run(main())
