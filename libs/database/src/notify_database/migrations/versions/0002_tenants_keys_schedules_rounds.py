"""Add tenants, API keys, idempotency keys, retry jobs, send and expiry times, and a round for each outbox row."""

from alembic import op
from notify_database.online_schema_change import commit, create_index

revision = "0002"
down_revision = "0001"

# The defaults are kept, because gateways that still run the previous version insert rows without these columns.
NOTIFICATION_COLUMNS = """
    ALTER TABLE notifications
        ADD COLUMN IF NOT EXISTS tenant text NOT NULL DEFAULT 'default',
        ADD COLUMN IF NOT EXISTS send_at timestamptz,
        ADD COLUMN IF NOT EXISTS expires_at timestamptz
"""
# The round prevents a relay that has published an earlier round from deleting a later round's row.
ROUND = """
    ALTER TABLE outbox
        ADD COLUMN IF NOT EXISTS round integer NOT NULL DEFAULT 1 CONSTRAINT outbox_round_check CHECK (round >= 1)
"""
STATEMENTS = (
    """
    CREATE TABLE idempotency_keys (
        tenant text NOT NULL,
        key text NOT NULL,
        body_hash bytea NOT NULL,
        answer text NOT NULL,
        created_at timestamptz NOT NULL,
        CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant, key)
    )
    """,
    "CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at)",
    """
    CREATE TABLE api_keys (
        id uuid CONSTRAINT api_keys_pkey PRIMARY KEY,
        tenant text NOT NULL CONSTRAINT api_keys_tenant_check CHECK (tenant <> ''),
        name text NOT NULL,
        hash bytea NOT NULL CONSTRAINT api_keys_hash_key UNIQUE,
        scopes text[] NOT NULL
            CONSTRAINT api_keys_scopes_check CHECK (scopes <@ ARRAY['send', 'read', 'admin'] AND scopes <> '{}'),
        created_at timestamptz NOT NULL,
        revoked_at timestamptz
    )
    """,
    """
    CREATE TABLE retry_jobs (
        id uuid CONSTRAINT retry_jobs_pkey PRIMARY KEY,
        tenant text NOT NULL,
        channel text,
        error_class text,
        last_id uuid NOT NULL,
        end_id uuid NOT NULL,
        retried bigint NOT NULL CONSTRAINT retry_jobs_retried_check CHECK (retried >= 0),
        created_at timestamptz NOT NULL,
        finished_at timestamptz
    )
    """,
    "CREATE INDEX retry_jobs_unfinished_idx ON retry_jobs (id) WHERE finished_at IS NULL",
)


def upgrade() -> None:
    """Change the tables."""
    op.execute(NOTIFICATION_COLUMNS)
    create_index("notifications_tenant_user_id_id_idx", "notifications", "(tenant, user_id, id)")
    op.execute("DROP INDEX IF EXISTS notifications_user_id_id_idx")
    commit()
    op.execute(ROUND)
    commit()
    for statement in STATEMENTS:
        op.execute(statement)
