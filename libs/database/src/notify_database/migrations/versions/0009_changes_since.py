"""Index deliveries by their last change, so that event subscribers can resume after a disconnect."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the index on PostgreSQL 16 or newer, where a BRIN index does not prevent HOT updates."""
    op.execute("""
        DO $$ BEGIN
            IF current_setting('server_version_num')::integer >= 160000 THEN
                CREATE INDEX deliveries_updated_at_idx ON deliveries USING brin (updated_at);
            END IF;
        END $$
    """)
