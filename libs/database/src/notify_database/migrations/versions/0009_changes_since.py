"""Index deliveries by their last change, so that event subscribers can resume after a disconnect."""

from alembic import op
from notify_database.online_schema_change import create_partitioned_index
from sqlalchemy import text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the index on PostgreSQL 16 or newer, where a BRIN index does not prevent HOT updates."""
    if op.get_bind().execute(text("SELECT current_setting('server_version_num')::integer >= 160000")).scalar_one():
        create_partitioned_index("deliveries_updated_at_idx", "deliveries", "updated_at_idx", "USING brin (updated_at)")
