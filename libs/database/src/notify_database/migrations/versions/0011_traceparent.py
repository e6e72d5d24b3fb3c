"""Add a column for each notification's trace context."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Change the table."""
    op.execute("ALTER TABLE notifications ADD COLUMN traceparent text")
