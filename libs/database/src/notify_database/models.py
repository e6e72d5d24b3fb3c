"""The tables. `migrations/` creates them, and a test checks that they match; `partitions.py` adds their partitions."""

from datetime import datetime
from uuid import UUID

from notify_common.contracts.messages import DeliveryStatus, ErrorClass, Outcome
from sqlalchemy import BigInteger, CheckConstraint, DateTime, Index, MetaData, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def _one_of(column: str, values: type[DeliveryStatus | Outcome | ErrorClass]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


class Base(DeclarativeBase):
    """The base class of all tables. They use text and checks, because PostgreSQL cannot remove a value from an enum."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )
    type_annotation_map = {str: Text(), datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy expects this


class Notification(Base):
    """A client's request to notify a user. Its status is derived from its deliveries and never stored."""

    __tablename__ = "notifications"
    __table_args__ = (
        CheckConstraint("user_id >= 1 OR user_id = 0 AND user_key IS NOT NULL", name="user_id"),
        CheckConstraint("message <> ''", name="message"),
        # These indexes serve lists of a user's notifications, newest first. The ids are UUIDv7, so they sort by time.
        Index("notifications_tenant_user_id_id_idx", "tenant", "user_id", "id"),
        # This one serves lists of all notifications of a tenant.
        Index("notifications_tenant_id_idx", "tenant", "id"),
        Index(
            "notifications_tenant_user_key_id_idx",
            "tenant",
            "user_key",
            "id",
            postgresql_where=text("user_key IS NOT NULL"),
        ),
        Index(
            "notifications_tenant_reference_id_idx",
            "tenant",
            "reference",
            "id",
            postgresql_where=text("reference IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    """The user's id if it is an integer, otherwise 0."""
    message: Mapped[str]
    subject: Mapped[str | None]
    client_metadata: Mapped[dict[str, str] | None] = mapped_column("metadata", JSONB)
    created_at: Mapped[datetime]
    tenant: Mapped[str] = mapped_column(server_default="default")
    send_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    email: Mapped[dict[str, str] | None] = mapped_column(JSONB)
    traceparent: Mapped[str | None]
    api_key_id: Mapped[UUID | None]
    """The key that posted it; NULL if authentication was off, or if an older version stored it."""
    test: Mapped[bool] = mapped_column(server_default=text("false"))
    """True if a test key posted it, so that its deliveries are only simulated."""
    user_key: Mapped[str | None]
    """The user's id if it is not an integer."""
    reference: Mapped[str | None]
    """The client's own id of the notification."""


class Delivery(Base):
    """A notification on one channel. Each delivery is sent, tracked and retried on its own."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint(_one_of("status", DeliveryStatus), name="status"),
        CheckConstraint("round >= 1", name="round"),
        CheckConstraint("attempt >= 0", name="attempt"),
        CheckConstraint("failures >= 0 AND failures <= attempt", name="failures"),
        Index("deliveries_notification_id_idx", "notification_id"),
        # Since PostgreSQL 16, a BRIN index does not prevent HOT updates. Older versions do not get this index.
        Index("deliveries_updated_at_idx", "updated_at", postgresql_using="brin"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    # This is not a foreign key, because a referenced partition could not be dropped.
    notification_id: Mapped[UUID]
    channel: Mapped[str]
    recipient: Mapped[str | None]
    # Columns that change, such as the status, have no B-tree index, because it would prevent HOT updates.
    status: Mapped[str]
    round: Mapped[int]
    attempt: Mapped[int]
    failures: Mapped[int]
    updated_at: Mapped[datetime]
    reason: Mapped[str | None]


class Attempt(Base):
    """A call to a provider. Attempts are numbered consecutively across all rounds of a delivery."""

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
    """A committed delivery whose publication the broker has not confirmed yet."""

    __tablename__ = "outbox"
    __table_args__ = (
        CheckConstraint("round >= 1", name="round"),
        Index("outbox_channel_due_at_idx", "channel", "due_at"),
    )

    delivery_id: Mapped[UUID] = mapped_column(primary_key=True)
    due_at: Mapped[datetime]
    """When a relay may next publish the delivery; it moves each time RabbitMQ refuses the delivery."""
    leased_until: Mapped[datetime | None]
    round: Mapped[int] = mapped_column(server_default="1")
    channel: Mapped[str | None]
    """The delivery's channel. It is NULL if a version without this column wrote the row, until a relay fills it in."""
    due_since: Mapped[datetime | None]
    """When the delivery first became due; NULL if that is `due_at`, because RabbitMQ has not refused it yet."""


class UserChannel(Base):
    """A user's recipient address on a channel, and whether the user has opted out of the channel."""

    __tablename__ = "user_channels"
    __table_args__ = (
        CheckConstraint("user_id >= 1", name="user_id"),
        CheckConstraint("num_nonnulls(user_id, user_key) = 1", name="user"),
        Index("user_channels_tenant_user_id_channel_idx", "tenant", "user_id", "channel", unique=True),
        Index(
            "user_channels_tenant_user_key_channel_idx",
            "tenant",
            "user_key",
            "channel",
            unique=True,
            postgresql_where=text("user_key IS NOT NULL"),
        ),
    )

    tenant: Mapped[str] = mapped_column()
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    """The user's id if it is an integer."""
    channel: Mapped[str] = mapped_column()
    recipient: Mapped[str | None]
    opted_out: Mapped[bool]
    updated_at: Mapped[datetime]
    user_key: Mapped[str | None] = mapped_column()
    """The user's id if it is not an integer."""
    # The table has no primary key, because either column may be NULL. SQLAlchemy needs one all the same.
    __mapper_args__ = {"primary_key": (tenant, user_id, user_key, channel)}  # noqa: RUF012 - SQLAlchemy expects this


class IdempotencyKey(Base):
    """A response stored under the client's key, so that a repeated request gets the same response."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_created_at_idx", "created_at"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[bytes]
    answer: Mapped[str]
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A tenant's API key and its scopes. Only the key's SHA-256 hash is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("tenant <> ''", name="tenant"),
        CheckConstraint(
            "scopes <@ ARRAY['send', 'read', 'admin', 'operator', 'recipients:read', 'recipients:write', "
            "'opt-outs:clear', 'trace'] AND scopes <> '{}'",
            name="scopes",
        ),
        UniqueConstraint("hash"),
        Index("api_keys_tenant_id_idx", "tenant", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    hash: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text()))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Accurate to about a minute."""
    test: Mapped[bool] = mapped_column(server_default=text("false"))
    """True if everything that is posted with this key is only simulated."""


class ApiKeyBucket(Base):
    """The token bucket of an API key, which limits its requests to all gateways together."""

    __tablename__ = "api_key_buckets"
    __table_args__ = ({"prefixes": ["UNLOGGED"]},)

    key_id: Mapped[UUID] = mapped_column(primary_key=True)
    tokens: Mapped[float]
    """Negative if several gateways have admitted more than the limit before they knew of each other."""
    admitted: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int] = mapped_column(BigInteger)
    """All requests, including those that were rejected. A gateway's share of the bucket is its share of these."""
    updated_at: Mapped[datetime]


class RetryJob(Base):
    """An operator's bulk retry of failed deliveries: `last_id` was examined last, and `end_id` ends the range."""

    __tablename__ = "retry_jobs"
    __table_args__ = (
        CheckConstraint("retried >= 0", name="retried"),
        Index("retry_jobs_unfinished_idx", "id", postgresql_where=text("finished_at IS NULL")),
        Index("retry_jobs_tenant_advanced_at_idx", "tenant", "advanced_at"),
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
    advanced_at: Mapped[datetime | None]
