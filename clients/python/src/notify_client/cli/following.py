"""Follow a notification until it is final."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext

from rich.live import Live

from notify_client import AsyncClient
from notify_client.cli.connection import connect_async
from notify_client.cli.output import console, print_json_line
from notify_client.cli.views import notification_view, timeline
from notify_client.models import Notification

LONGEST_SILENCE = 2.0  # seconds until the notification is read without an event, which may be late


async def states(client: AsyncClient, notification_id: str) -> AsyncIterator[Notification]:
    """Yield the notification, and again whenever it has changed, until it is final."""
    last = None
    async with client.events.stream(notification_id=notification_id) as events:
        event = asyncio.ensure_future(anext(events))
        try:
            while True:
                notification = await client.notifications.get(notification_id)
                if notification != last:
                    last = notification
                    yield notification
                if notification.is_final:
                    return
                await asyncio.wait({event}, timeout=LONGEST_SILENCE)  # a cancelled `anext` would connect again
                if event.done():
                    event.result()
                    event = asyncio.ensure_future(anext(events))
        finally:
            event.cancel()
            await asyncio.gather(event, return_exceptions=True)


async def watch(profile_name: str | None, notification_id: str, *, as_json: bool) -> Notification:
    """Show the notification until it is final, and return it: live on a terminal, otherwise line by line."""
    output = console()
    notification: Notification | None = None
    shown = 0
    async with connect_async(profile_name) as client:
        live = Live(console=output, auto_refresh=False) if output.is_terminal and not as_json else None
        with live or nullcontext():
            async for notification in states(client, notification_id):
                if as_json:
                    print_json_line(notification)
                elif live is not None:
                    live.update(notification_view(notification), refresh=True)
                else:
                    lines = timeline(notification)
                    for line in lines[shown:]:
                        output.print(line)
                    shown = len(lines)
    assert notification is not None  # noqa: S101 - the last state is final
    return notification
