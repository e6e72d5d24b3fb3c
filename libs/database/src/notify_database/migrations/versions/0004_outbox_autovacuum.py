"""The outbox is vacuumed by how many of its rows are gone, not by which part of it.

Each row lives for a moment: after an outage there may be a million, and with the default, a fifth of the table, relays
would walk past two hundred thousand that are no more. Truncation would lock out everybody for nothing.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the table's settings."""
    op.execute(
        "ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, "
        "vacuum_truncate = off)"
    )
