"""What a notification says by e-mail only."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the table."""
    op.execute("ALTER TABLE notifications ADD COLUMN email jsonb")
