"""Show notifications in a terminal."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from notify_client.cli.output import one_line, styled, table
from notify_client.models import Attempt, Delivery, Notification, NotificationDelivery

LONGEST_TEXT = 200  # characters of a message, or of a provider's error


def local(time: datetime) -> str:
    """Return a time in the time zone of this machine."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def words(*parts: str | Text | None) -> Text:
    """Return the parts, if they are not empty, with gaps between them."""
    return Text("  ").join(part if isinstance(part, Text) else Text(one_line(part)) for part in parts if part)


def timeline(notification: Notification) -> list[Text]:
    """Return one line for each thing that has happened to the notification, in order."""
    moments = [(notification.created_at, Text("accepted"))]
    if notification.send_at is not None:
        moments.append((notification.created_at, Text(f"scheduled for {local(notification.send_at)}")))
    for delivery in notification.deliveries:
        moments += [(attempt.finished_at, _attempt(delivery, attempt)) for attempt in delivery.attempts or ()]
        if delivery.status in {"expired", "cancelled"}:
            moments.append((delivery.updated_at, words(delivery.channel, styled(delivery.status), delivery.reason)))
    if notification.is_final:
        last = max(time for time, _ in moments)
        moments.append((last, words("final", styled(notification.status))))
    return [words(local(time), text) for time, text in sorted(moments, key=lambda moment: moment[0])]


def notification_view(notification: Notification) -> Group:
    """Return a notification with its deliveries and its timeline."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(notification):
        facts.add_row(Text(name, "bold"), value)
    rows = (
        (each.id, each.channel, styled(each.status), each.recipient, _count(each)) for each in notification.deliveries
    )
    deliveries = table("delivery", "channel", "status", "recipient", "attempts", rows=rows)
    return Group(facts, Text(), deliveries, Text(), *timeline(notification))


def notifications_table(notifications: Iterable[Notification]) -> Table:
    """Return a line for each notification."""
    rows = (
        (
            local(each.created_at), each.id, styled(each.status), each.user_id, each.reference,
            ", ".join(f"{delivery.channel} {delivery.status}" for delivery in each.deliveries),
        )
        for each in notifications
    )  # fmt: skip
    return table("created", "id", "status", "user", "reference", "deliveries", rows=rows)


def failures_table(deliveries: Iterable[Delivery]) -> Table:
    """Return a line for each failed delivery."""
    rows = (
        (local(each.updated_at), each.channel, each.error_class, each.error_code, each.user_id, each.id)
        for each in deliveries
    )
    return table("failed", "channel", "error class", "error code", "user", "delivery", rows=rows)


def _facts(notification: Notification) -> Iterator[tuple[str, Text]]:
    yield "notification", Text(str(notification.id))
    yield "status", styled(notification.status)
    yield "user", Text(one_line(notification.user_id))
    if notification.subject is not None:
        yield "subject", Text(one_line(notification.subject))
    if notification.message is not None:
        yield "message", Text(_beginning(one_line(notification.message)))
    if notification.reference is not None:
        yield "reference", Text(one_line(notification.reference))
    if notification.metadata:
        yield "metadata", Text(one_line(", ".join(f"{name}={value}" for name, value in notification.metadata.items())))
    if notification.expires_at is not None:
        yield "expires", Text(local(notification.expires_at))
    if notification.test:
        yield "test", Text("yes: nothing is really sent")


def _beginning(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _attempt(delivery: NotificationDelivery, attempt: Attempt) -> Text:
    error = " ".join(filter(None, (attempt.error_class, attempt.error_code)))
    details = one_line(attempt.error_text or "")[:LONGEST_TEXT]
    following = f"next attempt at {local(attempt.next_attempt_at)}" if attempt.next_attempt_at else ""
    rest = "; ".join(filter(None, (": ".join(filter(None, (error, details))), following)))
    return words(delivery.channel, f"attempt {attempt.number}", styled(attempt.outcome), rest)


def _count(delivery: NotificationDelivery) -> int:
    return len(delivery.attempts or ()) + (delivery.earlier_attempts or 0)
