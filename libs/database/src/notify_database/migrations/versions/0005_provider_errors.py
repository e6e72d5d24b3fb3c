"""What real providers say: two more classes of errors, and their own words."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the table. Its rows are read once for the new check: what reads or writes attempts waits as long."""
    op.execute("ALTER TABLE attempts ADD COLUMN error_text text, DROP CONSTRAINT attempts_error_class_check")
    op.execute("""
        ALTER TABLE attempts ADD CONSTRAINT attempts_error_class_check CHECK (
            error_class IN ('temporary', 'permanent', 'throttled', 'timeout', 'unreachable', 'unknown', 'poison')
        )
    """)
