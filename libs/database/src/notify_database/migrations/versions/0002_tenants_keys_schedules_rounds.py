"""Add tenants, API keys, idempotency keys, retry jobs, send and expiry times, and a round for each outbox row."""

from alembic import op

revision = "0002"
down_revision = "0001"

# The defaults are kept, because gateways that still run the previous version insert rows without these columns.
STATEMENTS = (
    """
    ALTER TABLE notifications
        ADD COLUMN tenant text NOT NULL DEFAULT 'default',
        ADD COLUMN send_at timestamptz,
        ADD COLUMN expires_at timestamptz
    """,
    "DROP INDEX notifications_user_id_id_idx",
    "CREATE INDEX notifications_tenant_user_id_id_idx ON notifications (tenant, user_id, id)",
    # The round prevents a relay that has published an earlier round from deleting a later round's row.
    "ALTER TABLE outbox ADD COLUMN round integer NOT NULL DEFAULT 1 CONSTRAINT outbox_round_check CHECK (round >= 1)",
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
    for statement in STATEMENTS:
        op.execute(statement)
