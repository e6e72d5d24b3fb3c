"""Vacuum the outbox after a fixed number of dead rows instead of a fraction of the table.

Rows are short-lived, but an outage may leave a million. With the default of a fifth of the table, relays would scan
past two hundred thousand dead rows. Truncation is off, because it locks the table for no benefit.
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
