"""Record when each retry job was last advanced, so that tenants take turns."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Change the table. Gateways that still run the previous version leave the column empty."""
    op.execute("ALTER TABLE retry_jobs ADD COLUMN advanced_at timestamptz")
    op.execute("CREATE INDEX retry_jobs_tenant_advanced_at_idx ON retry_jobs (tenant, advanced_at)")
