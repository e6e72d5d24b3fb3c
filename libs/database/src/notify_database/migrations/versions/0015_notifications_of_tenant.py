"""Index each tenant's notifications by time, so that listing them does not read those of other tenants."""

from notify_database.online_schema_change import create_partitioned_index

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Create the index. Services wait only until it is being built, because they also work without it."""
    create_partitioned_index("notifications_tenant_id_idx", "notifications", "tenant_id_idx", "(tenant, id)")
