"""Drop the check of the channel's name, so that a new channel needs no migration."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Drop the check, which scans no rows."""
    # The later migrations lock both tables. Locking them in a gateway's order here prevents deadlocks.
    op.execute("LOCK TABLE notifications, deliveries IN ACCESS EXCLUSIVE MODE")
    op.execute("ALTER TABLE deliveries DROP CONSTRAINT deliveries_channel_check")
