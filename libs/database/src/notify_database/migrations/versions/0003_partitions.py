"""Partition notifications, deliveries and attempts by time.

Each existing table becomes the first partition of the new one, so no rows are copied. The foreign keys are dropped,
because they slow down every insert and would prevent dropping partitions. Rows stay consistent without them: one
statement inserts a notification with its deliveries and outbox rows, and results lock their deliveries first.
"""

from datetime import UTC, datetime

from alembic import op
from notify_common.contracts.ids import first_id_at
from notify_database.partitions import first_end, partition_name

revision = "0003"
down_revision = "0002"

KEYS = {"notifications": "id", "deliveries": "id", "attempts": "delivery_id, attempt"}
RANGES = {"notifications": "id", "deliveries": "id", "attempts": "delivery_id"}
INDEXES = {
    "notifications_tenant_user_id_id_idx": "notifications (tenant, user_id, id)",
    "deliveries_notification_id_idx": "deliveries (notification_id)",
}


def upgrade() -> None:
    """Change the tables."""
    end = first_end(datetime.now(UTC))
    for constraint, table in (
        ("outbox_delivery_id_fkey", "outbox"),
        ("attempts_delivery_id_fkey", "attempts"),
        ("deliveries_notification_id_fkey", "deliveries"),
        ("deliveries_notification_id_channel_key", "deliveries"),
    ):
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    op.execute("CREATE INDEX deliveries_notification_id_idx ON deliveries (notification_id)")
    for table, key in KEYS.items():
        first = partition_name(table, end)
        op.execute(f"ALTER INDEX {table}_pkey RENAME TO {first}_pkey")
        for index, definition in INDEXES.items():
            if definition.startswith(f"{table} "):
                op.execute(f"ALTER INDEX {index} RENAME TO {index.replace(table, first)}")
        op.execute(f"ALTER TABLE {table} RENAME TO {first}")
        op.execute(
            f"CREATE TABLE {table} (LIKE {first} INCLUDING DEFAULTS INCLUDING CONSTRAINTS) "
            f"PARTITION BY RANGE ({RANGES[table]})"
        )
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({key})")
        for index, definition in INDEXES.items():
            if definition.startswith(f"{table} "):
                op.execute(f"CREATE INDEX {index} ON {definition}")
        op.execute(f"ALTER TABLE {table} ATTACH PARTITION {first} FOR VALUES FROM (MINVALUE) TO ('{first_id_at(end)}')")
