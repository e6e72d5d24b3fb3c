"""Partition notifications, deliveries and attempts by time.

Each existing table becomes the first partition of the new one, so no rows are copied. Requests wait while PostgreSQL
reads each table once, to check that its rows belong to that partition. The foreign keys are dropped,
because they slow down every insert and would prevent dropping partitions. Rows stay consistent without them: one
statement inserts a notification with its deliveries and outbox rows, and results lock their deliveries first.
"""

from datetime import UTC, datetime, time

from alembic import op
from notify_common.contracts.ids import first_id_at
from notify_database.online_schema_change import commit, create_index
from notify_database.partitions import first_end, partition_name
from sqlalchemy import text

revision = "0003"
down_revision = "0002"

FOREIGN_KEYS = (
    ("outbox_delivery_id_fkey", "deliveries", "outbox"),
    ("attempts_delivery_id_fkey", "deliveries", "attempts"),
    ("deliveries_notification_id_fkey", "notifications", "deliveries"),
)
KEYS = {"notifications": "id", "deliveries": "id", "attempts": "delivery_id, attempt"}
RANGES = {"notifications": "id", "deliveries": "id", "attempts": "delivery_id"}
INDEXES = {
    "notifications_tenant_user_id_id_idx": "notifications (tenant, user_id, id)",
    "deliveries_notification_id_idx": "deliveries (notification_id)",
}


# After an interruption, the remaining tables get the same first partition as those that are finished.
FIRST_END = text("SELECT to_date(max(right(relname, 8)), 'YYYYMMDD') FROM pg_class WHERE relname ~ '_until_[0-9]{8}$'")
NOT_PARTITIONED = text("SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass(:table)")


def upgrade() -> None:
    """Change one table after another, because locks on several tables would lead to deadlocks with the services."""
    create_index("deliveries_notification_id_idx", "deliveries", "(notification_id)")
    op.execute("ALTER TABLE deliveries DROP CONSTRAINT IF EXISTS deliveries_notification_id_channel_key")
    commit()
    for constraint, referenced, table in FOREIGN_KEYS:
        # Gateways and status writers lock the tables in this order, too.
        op.execute(f"LOCK TABLE {referenced}, {table} IN ACCESS EXCLUSIVE MODE")
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint}")
        commit()
    bind = op.get_bind()
    first_day = bind.execute(FIRST_END).scalar_one()
    if first_day is None:
        end = first_end(bind.execute(text("SELECT now()")).scalar_one())
    else:
        end = datetime.combine(first_day, time(), UTC)
    for table, key in KEYS.items():
        if bind.execute(NOT_PARTITIONED, {"table": table}).scalar_one():
            _partition(table, key, end)
        commit()


def _partition(table: str, key: str, end: datetime) -> None:
    first = partition_name(table, end)
    op.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
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
