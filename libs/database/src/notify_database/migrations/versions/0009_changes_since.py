"""Which deliveries have changed since a time: for who listens to events and was away."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index, where PostgreSQL lets updates stay HOT under one of its kind: from 16 on."""
    op.execute("""
        DO $$ BEGIN
            IF current_setting('server_version_num')::integer >= 160000 THEN
                CREATE INDEX deliveries_updated_at_idx ON deliveries USING brin (updated_at);
            END IF;
        END $$
    """)
