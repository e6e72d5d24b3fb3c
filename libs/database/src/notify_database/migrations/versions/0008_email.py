"""Add a notification's e-mail-specific content."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE notifications ADD COLUMN email jsonb")
