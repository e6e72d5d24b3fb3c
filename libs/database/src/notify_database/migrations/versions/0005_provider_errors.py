"""Add two error classes and the provider's error text, because real providers need them."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Change the table. Adding the check scans the table once, and blocks reads and writes until the scan is done."""
    op.execute("ALTER TABLE attempts ADD COLUMN error_text text, DROP CONSTRAINT attempts_error_class_check")
    op.execute("""
        ALTER TABLE attempts ADD CONSTRAINT attempts_error_class_check CHECK (
            error_class IN ('temporary', 'permanent', 'throttled', 'timeout', 'unreachable', 'unknown', 'poison')
        )
    """)
