"""Write a notification into the caller's transaction."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Concatenate, ParamSpec, TypeAlias
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import Connection, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from typing_extensions import TypedDict

from notify_client.models import Channel
from notify_client.outbox.table import OutboxRow
from notify_client.outbox.validation import validate
from notify_client.resources.notifications import Overrides, Recipients, create_notification

P = ParamSpec("P")
Target: TypeAlias = Session | scoped_session[Session] | AsyncSession | async_scoped_session[AsyncSession] | Connection


class NewRow(TypedDict):
    """The columns of a new row of `notify_outbox`; all others are NULL."""

    id: UUID
    body: str
    created_at: datetime
    attempts: int


def new_row(
    *,
    user_id: str,
    channels: Sequence[Channel],
    message: str,
    subject: str | None = None,
    to: Recipients | None = None,
    overrides: Overrides | None = None,
    reference: str | None = None,
    metadata: Mapping[str, str] | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
) -> NewRow:
    """Return the row that `enqueue` writes, to write it without SQLAlchemy. Its id is the idempotency key.

    The arguments are those of `client.notifications.create`, and are checked: `InvalidRequest` is raised for what the
    gateway would refuse.
    """
    request = create_notification(
        user_id=user_id,
        channels=channels,
        message=message,
        subject=subject,
        to=to,
        overrides=overrides,
        reference=reference,
        metadata=metadata,
        send_at=send_at,
        expires_at=expires_at,
    )
    now = datetime.now(UTC)
    body = request.body or {}
    validate(body, now)
    return {"id": uuid4(), "body": to_json(body).decode(), "created_at": now, "attempts": 0}


def _into_transaction(build: Callable[P, NewRow]) -> Callable[Concatenate[Target, P], UUID]:
    def enqueue(session: Target, /, *args: P.args, **kwargs: P.kwargs) -> UUID:
        """Send a notification if, and only if, the transaction of `session` is committed; return its idempotency key.

        The arguments are those of `client.notifications.create`, and are checked here: `InvalidRequest` is raised for
        what the gateway would refuse. A session writes the row with its next flush, at the latest when it commits, so
        that nothing has to be awaited. With an `AsyncConnection`, use `await connection.run_sync(enqueue, …)`.
        """
        if isinstance(session, AsyncConnection):
            raise TypeError("Use `await connection.run_sync(outbox.enqueue, …)` with an AsyncConnection.")
        row = build(*args, **kwargs)
        if isinstance(session, Connection):
            session.execute(insert(OutboxRow).values(row))
        else:
            session.add(OutboxRow(**row))
        return row["id"]

    first = inspect.Parameter("session", inspect.Parameter.POSITIONAL_ONLY, annotation=Target)
    parameters = [first, *inspect.signature(build).parameters.values()]
    enqueue.__signature__ = inspect.Signature(parameters, return_annotation=UUID)  # type: ignore[attr-defined]
    return enqueue


enqueue = _into_transaction(new_row)
