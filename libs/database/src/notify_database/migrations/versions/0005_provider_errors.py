"""Add two error classes and the provider's error text, because real providers need them."""

from alembic import op
from notify_database.online_schema_change import replace_check

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Change the table."""
    op.execute("ALTER TABLE attempts ADD COLUMN IF NOT EXISTS error_text text")
    replace_check(
        "attempts",
        "attempts_error_class_check",
        "error_class IN ('temporary', 'permanent', 'throttled', 'timeout', 'unreachable', 'unknown', 'poison')",
    )
