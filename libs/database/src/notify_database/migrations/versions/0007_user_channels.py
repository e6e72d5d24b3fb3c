"""Add users' stored recipients and opt-outs, and the reason why a delivery was cancelled."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Change the tables."""
    op.execute("""
        CREATE TABLE user_channels (
            tenant text NOT NULL,
            user_id bigint NOT NULL CONSTRAINT user_channels_user_id_check CHECK (user_id >= 1),
            channel text NOT NULL,
            recipient text,
            opted_out boolean NOT NULL,
            updated_at timestamptz NOT NULL,
            CONSTRAINT user_channels_pkey PRIMARY KEY (tenant, user_id, channel)
        )
    """)
    op.execute("ALTER TABLE deliveries ADD COLUMN reason text")
