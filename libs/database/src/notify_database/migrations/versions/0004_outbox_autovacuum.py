"""Vacuum the outbox after a fixed number of dead rows instead of a fraction of the table.

Outbox rows are short-lived, but a million may pile up during an outage. With the default threshold, 20% of the table,
relays would scan past 200,000 dead rows. Truncation is off, because it would lock the table for no benefit.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Change the table's settings."""
    op.execute(
        "ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, "
        "vacuum_truncate = off)"
    )
