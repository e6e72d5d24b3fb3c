"""Create notifications, deliveries, attempts and the outbox."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE notifications (
        id uuid CONSTRAINT notifications_pkey PRIMARY KEY,
        user_id bigint NOT NULL CONSTRAINT notifications_user_id_check CHECK (user_id >= 1),
        message text NOT NULL CONSTRAINT notifications_message_check CHECK (message <> ''),
        subject text,
        metadata jsonb,
        created_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX notifications_user_id_id_idx ON notifications (user_id, id)",
    # The fill factor leaves room on each page for new row versions, so that status updates can be HOT.
    """
    CREATE TABLE deliveries (
        id uuid CONSTRAINT deliveries_pkey PRIMARY KEY,
        notification_id uuid NOT NULL CONSTRAINT deliveries_notification_id_fkey REFERENCES notifications (id),
        channel text NOT NULL
            CONSTRAINT deliveries_channel_check CHECK (channel IN ('telegram', 'email')),
        recipient text,
        status text NOT NULL
            CONSTRAINT deliveries_status_check
            CHECK (status IN ('pending', 'retrying', 'sent', 'failed', 'expired', 'cancelled')),
        round integer NOT NULL CONSTRAINT deliveries_round_check CHECK (round >= 1),
        attempt integer NOT NULL CONSTRAINT deliveries_attempt_check CHECK (attempt >= 0),
        failures integer NOT NULL
            CONSTRAINT deliveries_failures_check CHECK (failures >= 0 AND failures <= attempt),
        updated_at timestamptz NOT NULL,
        CONSTRAINT deliveries_notification_id_channel_key UNIQUE (notification_id, channel)
    ) WITH (fillfactor = 80)
    """,
    """
    CREATE TABLE attempts (
        delivery_id uuid NOT NULL CONSTRAINT attempts_delivery_id_fkey REFERENCES deliveries (id),
        attempt integer NOT NULL CONSTRAINT attempts_attempt_check CHECK (attempt >= 1),
        round integer NOT NULL CONSTRAINT attempts_round_check CHECK (round >= 1),
        outcome text NOT NULL
            CONSTRAINT attempts_outcome_check
            CHECK (outcome IN ('sent', 'retrying', 'throttled', 'failed', 'expired') AND outcome <> 'expired'),
        error_class text
            CONSTRAINT attempts_error_class_check
            CHECK (error_class IN ('temporary', 'permanent', 'throttled', 'timeout', 'poison')),
        error_code text,
        provider_message_id text,
        started_at timestamptz NOT NULL,
        finished_at timestamptz NOT NULL,
        next_attempt_at timestamptz,
        CONSTRAINT attempts_pkey PRIMARY KEY (delivery_id, attempt)
    )
    """,
    """
    CREATE TABLE outbox (
        delivery_id uuid CONSTRAINT outbox_pkey PRIMARY KEY
            CONSTRAINT outbox_delivery_id_fkey REFERENCES deliveries (id),
        due_at timestamptz NOT NULL,
        leased_until timestamptz
    )
    """,
    "CREATE INDEX outbox_due_at_idx ON outbox (due_at)",
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
