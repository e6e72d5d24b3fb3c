"""Let relays take each channel's outbox rows separately, and keep the original due time of refused rows."""

from alembic import op
from notify_database.online_schema_change import create_index

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the columns and replace the index. Each step can be repeated if an earlier run was interrupted."""
    op.execute("ALTER TABLE outbox ADD COLUMN IF NOT EXISTS channel text")
    create_index("outbox_channel_due_at_idx", "outbox", "(channel, due_at)")
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS outbox_due_at_idx")
    # This comes last, because services wait for this column (`MIGRATED` in engine.py).
    op.execute("ALTER TABLE outbox ADD COLUMN due_since timestamptz")
