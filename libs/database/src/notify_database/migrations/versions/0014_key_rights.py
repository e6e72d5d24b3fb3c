"""Give API keys an expiry, a time of last use, narrower scopes and shared rate limits; store which key posted what."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Change the tables. Existing keys get the new scopes for what their old scopes allowed."""
    # This comes first, because it may wait for a lock, and requests must not wait behind it for their keys.
    op.execute("""
        ALTER TABLE notifications
            ADD COLUMN api_key_id uuid,
            ADD COLUMN test boolean NOT NULL DEFAULT false
    """)
    op.execute("""
        ALTER TABLE api_keys
            ADD COLUMN expires_at timestamptz,
            ADD COLUMN last_used_at timestamptz,
            ADD COLUMN test boolean NOT NULL DEFAULT false,
            DROP CONSTRAINT api_keys_scopes_check,
            ADD CONSTRAINT api_keys_scopes_check CHECK (
                scopes <@ ARRAY['send', 'read', 'admin', 'operator', 'recipients:read', 'recipients:write',
                                'opt-outs:clear', 'trace']
                AND scopes <> '{}'
            )
    """)
    op.execute("""
        UPDATE api_keys SET scopes = scopes
            || CASE WHEN 'read' = ANY(scopes) THEN ARRAY['recipients:read'] ELSE '{}' END
            || CASE WHEN 'send' = ANY(scopes) THEN ARRAY['recipients:write', 'opt-outs:clear', 'trace'] ELSE '{}' END
    """)
    # The rows are worthless after a crash, because the buckets of all keys are soon full again.
    op.execute("""
        CREATE UNLOGGED TABLE api_key_buckets (
            key_id uuid CONSTRAINT api_key_buckets_pkey PRIMARY KEY,
            tokens double precision NOT NULL,
            admitted bigint NOT NULL,
            requests bigint NOT NULL,
            updated_at timestamptz NOT NULL
        )
    """)
