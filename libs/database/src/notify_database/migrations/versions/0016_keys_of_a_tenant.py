"""Find the API keys of a tenant without reading those of the others."""

from notify_database.online_schema_change import create_index

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Create the index."""
    create_index("api_keys_tenant_id_idx", "api_keys", "(tenant, id)")
