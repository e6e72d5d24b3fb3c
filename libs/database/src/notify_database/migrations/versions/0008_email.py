"""Add the content of a notification that is specific to e-mail."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Change the table."""
    op.execute("ALTER TABLE notifications ADD COLUMN email jsonb")
