"""The tables. `migrations/` creates them, which a test compares; `partitions.py` makes their partitions."""

from datetime import datetime
from uuid import UUID

from notify_common.contracts.messages import DeliveryStatus, ErrorClass, Outcome
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def _one_of(column: str, values: type[DeliveryStatus | Outcome | ErrorClass]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


class Base(DeclarativeBase):
    """All tables; text everywhere and checks instead of PostgreSQL enums, which can not drop a value."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )
    type_annotation_map = {str: Text(), datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's protocol


class Notification(Base):
    """What a client asked for. Its status is derived from its deliveries, never stored."""

    __tablename__ = "notifications"
    __table_args__ = (
        CheckConstraint("user_id >= 1", name="user_id"),
        CheckConstraint("message <> ''", name="message"),
        # The list of a user's notifications, newest first: ids are UUIDv7 and sort by time.
        Index("notifications_tenant_user_id_id_idx", "tenant", "user_id", "id"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    message: Mapped[str]
    subject: Mapped[str | None]
    client_metadata: Mapped[dict[str, str] | None] = mapped_column("metadata", JSONB)
    created_at: Mapped[datetime]
    tenant: Mapped[str] = mapped_column(server_default="default")
    send_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    email: Mapped[dict[str, str] | None] = mapped_column(JSONB)
    traceparent: Mapped[str | None]


class Delivery(Base):
    """One notification over one channel: the unit of work, of status and of retry."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint(_one_of("status", DeliveryStatus), name="status"),
        CheckConstraint("round >= 1", name="round"),
        CheckConstraint("attempt >= 0", name="attempt"),
        CheckConstraint("failures >= 0 AND failures <= attempt", name="failures"),
        Index("deliveries_notification_id_idx", "notification_id"),
        # Of a kind that leaves updates HOT, from PostgreSQL 16 on; an older one does without it.
        Index("deliveries_updated_at_idx", "updated_at", postgresql_using="brin"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    # No foreign keys: a partition that is referenced can not be dropped.
    notification_id: Mapped[UUID]
    channel: Mapped[str]
    recipient: Mapped[str | None]
    # No other index on the status or on anything else that changes: it would end HOT updates.
    status: Mapped[str]
    round: Mapped[int]
    attempt: Mapped[int]
    failures: Mapped[int]
    updated_at: Mapped[datetime]
    reason: Mapped[str | None]


class Attempt(Base):
    """One call of a provider, numbered through all rounds of its delivery."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint("attempt >= 1", name="attempt"),
        CheckConstraint("round >= 1", name="round"),
        CheckConstraint(f"{_one_of('outcome', Outcome)} AND outcome <> '{Outcome.EXPIRED}'", name="outcome"),
        CheckConstraint(_one_of("error_class", ErrorClass), name="error_class"),
        {"postgresql_partition_by": "RANGE (delivery_id)"},
    )

    delivery_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[int]
    outcome: Mapped[str]
    error_class: Mapped[str | None]
    error_code: Mapped[str | None]
    provider_message_id: Mapped[str | None]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime | None]
    error_text: Mapped[str | None]


class OutboxEntry(Base):
    """A delivery that is committed and not yet confirmed by the broker."""

    __tablename__ = "outbox"
    __table_args__ = (CheckConstraint("round >= 1", name="round"), Index("outbox_due_at_idx", "due_at"))

    delivery_id: Mapped[UUID] = mapped_column(primary_key=True)
    due_at: Mapped[datetime]
    leased_until: Mapped[datetime | None]
    round: Mapped[int] = mapped_column(server_default="1")


class UserChannel(Base):
    """Where a user is reached over a channel, or that the user does not want to be."""

    __tablename__ = "user_channels"
    __table_args__ = (CheckConstraint("user_id >= 1", name="user_id"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    channel: Mapped[str] = mapped_column(primary_key=True)
    recipient: Mapped[str | None]
    opted_out: Mapped[bool]
    updated_at: Mapped[datetime]


class IdempotencyKey(Base):
    """A request that was answered, so that its repeat gets the same answer."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_created_at_idx", "created_at"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[bytes]
    answer: Mapped[str]
    created_at: Mapped[datetime]


class ApiKey(Base):
    """Who may do what for a tenant. Only the SHA-256 of the key is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("tenant <> ''", name="tenant"),
        CheckConstraint("scopes <@ ARRAY['send', 'read', 'admin', 'operator'] AND scopes <> '{}'", name="scopes"),
        UniqueConstraint("hash"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    hash: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class RetryJob(Base):
    """An operator's retry of many failed deliveries: those with ids between last_id, looked at last, and end_id."""

    __tablename__ = "retry_jobs"
    __table_args__ = (
        CheckConstraint("retried >= 0", name="retried"),
        Index("retry_jobs_unfinished_idx", "id", postgresql_where=text("finished_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    channel: Mapped[str | None]
    error_class: Mapped[str | None]
    last_id: Mapped[UUID]
    end_id: Mapped[UUID]
    retried: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
