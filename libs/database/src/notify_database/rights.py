"""The rights of each service to the tables. `notify-migrate` grants exactly these, on behalf of the owner.

The roles here have no password. Each service logs in as a member of one of them (`roles.py`). A right may be removed
only when no version that could run side by side with this one needs it.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

OWNER, GATEWAY, STATUS_WRITER = "notify_owner", "notify_gateway", "notify_status_writer"
ROLES = (OWNER, GATEWAY, STATUS_WRITER)

# Columns are listed so that a stolen password cannot move a delivery to another notification or tenant, change what an
# attempt was about, or lock a whole table: LOCK TABLE needs the right to update all columns.
RIGHTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    GATEWAY: {
        "notifications": ("SELECT", "INSERT"),
        "deliveries": ("SELECT", "INSERT", "UPDATE (status, reason, round, failures, updated_at)"),
        "attempts": ("SELECT",),
        "outbox": ("SELECT", "INSERT", "UPDATE (due_at, due_since, leased_until, round, channel)", "DELETE"),
        "user_channels": ("SELECT", "INSERT", "UPDATE (recipient, opted_out, updated_at)", "DELETE"),
        "idempotency_keys": ("SELECT", "INSERT", "UPDATE (body_hash, answer, created_at)", "DELETE"),
        "api_keys": ("SELECT", "INSERT", "UPDATE (hash, scopes, created_at, revoked_at, last_used_at)", "DELETE"),
        "api_key_buckets": ("SELECT", "INSERT", "UPDATE (tokens, admitted, requests, updated_at)", "DELETE"),
        "retry_jobs": ("SELECT", "INSERT", "UPDATE (last_id, retried, advanced_at, finished_at)", "DELETE"),
    },
    # The status writer sees neither messages nor recipients nor API keys.
    STATUS_WRITER: {
        "deliveries": (
            "SELECT (id, notification_id, channel, status, round, attempt, failures, updated_at, reason)",
            "UPDATE (status, round, attempt, failures, updated_at, reason)",
        ),
        "attempts": (
            "SELECT",  # ON CONFLICT DO UPDATE reads each new value, which needs the right to read its column
            "INSERT",
            """UPDATE (round, outcome, error_class, error_code, provider_message_id, started_at, finished_at,
                       next_attempt_at, error_text)""",
        ),
    },
}
TABLES = sorted({table for rights in RIGHTS.values() for table in rights})

EXISTING = text("SELECT count(*) FROM pg_roles WHERE rolname = ANY(CAST(:names AS text[]))")


async def grant_rights(connection: AsyncConnection) -> bool:
    """Grant each role its rights, and revoke all others, in one transaction; return False if a role does not exist.

    Partitions are used through their parents, so no rights to them are needed.
    """
    if (await connection.execute(EXISTING, {"names": list(RIGHTS)})).scalar_one() < len(RIGHTS):
        return False
    await connection.execute(text(f"REVOKE ALL ON {', '.join(TABLES)} FROM PUBLIC, {', '.join(RIGHTS)}"))
    for role, tables in RIGHTS.items():
        for table, rights in tables.items():
            await connection.execute(text(f"GRANT {', '.join(rights)} ON {table} TO {role}"))
    await connection.commit()
    return True
