"""Let the ids of users be any text, and store references. Integer ids stay in place, so that no row is rewritten."""

from alembic import op
from notify_database.online_schema_change import commit, create_index, create_partitioned_index, replace_check

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Change the tables. Each step can be repeated if an earlier run was interrupted."""
    op.execute("""
        ALTER TABLE notifications
            ADD COLUMN IF NOT EXISTS user_key text,
            ADD COLUMN IF NOT EXISTS reference text
    """)
    commit()
    replace_check(
        "notifications", "notifications_user_id_check", "user_id >= 1 OR user_id = 0 AND user_key IS NOT NULL"
    )
    create_partitioned_index(
        "notifications_tenant_user_key_id_idx",
        "notifications",
        "tenant_user_key_id_idx",
        "(tenant, user_key, id) WHERE user_key IS NOT NULL",
    )
    create_partitioned_index(
        "notifications_tenant_reference_id_idx",
        "notifications",
        "tenant_reference_id_idx",
        "(tenant, reference, id) WHERE reference IS NOT NULL",
    )
    op.execute("ALTER TABLE user_channels ADD COLUMN IF NOT EXISTS user_key text")
    # Gateways of older versions need this index for ON CONFLICT when the primary key is gone.
    create_index("user_channels_tenant_user_id_channel_idx", "user_channels", "(tenant, user_id, channel)", unique=True)
    create_index(
        "user_channels_tenant_user_key_channel_idx",
        "user_channels",
        "(tenant, user_key, channel) WHERE user_key IS NOT NULL",
        unique=True,
    )
    op.execute("""
        ALTER TABLE user_channels
            DROP CONSTRAINT IF EXISTS user_channels_pkey,
            ALTER COLUMN user_id DROP NOT NULL
    """)
    commit()
    replace_check("user_channels", "user_channels_user_check", "num_nonnulls(user_id, user_key) = 1")
