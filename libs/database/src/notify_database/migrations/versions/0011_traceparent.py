"""The trace that a notification belongs to."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the table."""
    op.execute("ALTER TABLE notifications ADD COLUMN traceparent text")
