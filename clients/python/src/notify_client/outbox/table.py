"""The table `notify_outbox`, which is part of the caller's database."""

from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from sqlalchemy import Connection, DateTime, Engine, Index, MetaData, Table, Text, Uuid, func, select
from sqlalchemy.dialects.mysql import DATETIME, MEDIUMTEXT
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TIME = DateTime(timezone=True).with_variant(DATETIME(fsp=6), "mysql", "mariadb")
"""Times are in UTC. SQLite and MySQL store them without a time zone."""
BODY = Text().with_variant(MEDIUMTEXT(), "mysql", "mariadb")


class Base(DeclarativeBase):
    """The base class of the only model, so that its metadata contain nothing else."""


class OutboxRow(Base):
    """A notification that has been enqueued and not yet sent."""

    __tablename__ = "notify_outbox"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    """The idempotency key of all attempts."""
    body: Mapped[str] = mapped_column(BODY)
    """The body of the request, in JSON."""
    created_at: Mapped[datetime] = mapped_column(TIME)
    """The time at which it was enqueued, by the caller's clock. It only determines the order."""
    due_at: Mapped[datetime | None] = mapped_column(TIME)
    """No relay takes the row before this time: its lease, or the wait after a failed attempt. NULL means at once."""
    lease: Mapped[UUID | None] = mapped_column(Uuid)
    """Identifies the lease of the relay that took the row last."""
    attempts: Mapped[int] = mapped_column(default=0)
    first_attempt_at: Mapped[datetime | None] = mapped_column(TIME)
    """The time of the first attempt that may have succeeded, by the database's clock, or NULL."""
    held_at: Mapped[datetime | None] = mapped_column(TIME)
    """The time since which it waits for an operator, or NULL."""
    error: Mapped[str | None] = mapped_column(Text)
    """The error of the last attempt, or NULL."""


table = cast("Table", OutboxRow.__table__)
metadata: MetaData = Base.metadata
"""Pass it to Alembic: `target_metadata = [your.metadata, outbox.metadata]`."""

# Held rows are left out, because a relay would otherwise read them again and again.
_WAITING = table.c.held_at.is_(None)
Index("notify_outbox_waiting", table.c.created_at, table.c.id, postgresql_where=_WAITING, sqlite_where=_WAITING)


def create_table(bind: Engine | Connection) -> None:
    """Create the table unless it exists. With an `AsyncConnection`: `await connection.run_sync(create_table)`."""
    metadata.create_all(bind)


def database_time(connection: Connection) -> datetime:
    """Return the database's time, so that all relays use the same clock."""
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now
    if connection.dialect.name in {"mysql", "mariadb"}:
        seconds = connection.execute(select(func.unix_timestamp(func.now(6)))).scalar_one()
        return datetime.fromtimestamp(float(seconds), UTC)
    return datetime.now(UTC)  # SQLite runs in this process


def in_utc(time: datetime | None) -> datetime | None:
    """Return a time from the table with its time zone, which SQLite and MySQL do not store."""
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
