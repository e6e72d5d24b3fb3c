"""Add the API key scope `operator`."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Change the table."""
    op.execute("""
        ALTER TABLE api_keys
            DROP CONSTRAINT api_keys_scopes_check,
            ADD CONSTRAINT api_keys_scopes_check
                CHECK (scopes <@ ARRAY['send', 'read', 'admin', 'operator'] AND scopes <> '{}')
    """)
