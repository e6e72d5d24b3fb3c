"""Drop the check on channel names, so that a new channel needs no migration."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Drop the check. This does not scan any rows."""
    op.execute("ALTER TABLE deliveries DROP CONSTRAINT deliveries_channel_check")
