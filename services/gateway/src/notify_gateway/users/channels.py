"""Store users' recipients and opt-outs, which apply to all of their notifications."""

from collections.abc import Iterable

from notify_common.contracts.channels import Channel
from notify_database.engine import autocommitting, execute
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.users.schemas import UserChannelSettings, UserChannelView

COLUMNS = "channel, recipient, opted_out, updated_at"
FIND = text(f"""
    SELECT tenant, user_id, {COLUMNS} FROM user_channels
    JOIN unnest(CAST(:tenants AS text[]), CAST(:user_ids AS bigint[]), CAST(:channels AS text[]))
        AS wanted (tenant, user_id, channel) USING (tenant, user_id, channel)
""")  # noqa: S608 - a constant
LIST = text(f"""
    SELECT {COLUMNS} FROM user_channels WHERE tenant = :tenant AND user_id = :user_id ORDER BY channel
""")  # noqa: S608 - a constant
STORE = text(f"""
    INSERT INTO user_channels (tenant, user_id, channel, recipient, opted_out, updated_at)
    VALUES (:tenant, :user_id, :channel, :recipient, :opted_out, now())
    ON CONFLICT (tenant, user_id, channel) DO UPDATE
        SET recipient = CASE WHEN :names_recipient THEN excluded.recipient ELSE user_channels.recipient END,
            opted_out = CASE WHEN :names_opted_out THEN excluded.opted_out ELSE user_channels.opted_out END,
            updated_at = excluded.updated_at
    RETURNING {COLUMNS}
""")  # noqa: S608 - a constant
OF_CHANNEL = "tenant = :tenant AND user_id = :user_id AND channel = :channel"
DELETE_RECIPIENT = text(f"""
    UPDATE user_channels SET recipient = NULL, updated_at = now() WHERE {OF_CHANNEL} AND recipient IS NOT NULL
""")  # noqa: S608 - a constant
DELETE_EMPTY = text(f"""
    DELETE FROM user_channels WHERE {OF_CHANNEL} AND recipient IS NULL AND NOT opted_out
""")  # noqa: S608 - a constant

UserChannelKey = tuple[str, int, Channel]
"""Tenant, user id and channel."""


async def stored_channels(
    connection: AsyncConnection, keys: Iterable[UserChannelKey]
) -> dict[UserChannelKey, UserChannelView]:
    """Return the settings stored under `keys`, leaving out keys without settings."""
    tenants, user_ids, channels = zip(*set(keys), strict=True)
    parameters = {"tenants": tenants, "user_ids": user_ids, "channels": [channel.value for channel in channels]}
    rows = await connection.execute(FIND, parameters)
    return {(row.tenant, row.user_id, Channel(row.channel)): UserChannelView.model_validate(row) for row in rows}


class UserChannels:
    """Stores users' settings for each channel."""

    def __init__(self, engine: AsyncEngine, share: TenantShare, reads: TenantReads) -> None:
        self._engine = autocommitting(engine)
        self._share = share
        self._reads = reads

    async def list_of_user(self, tenant: str, user_id: int) -> list[UserChannelView]:
        """Return all settings that are stored for the user, ordered by channel."""
        rows = await self._reads.execute(tenant, LIST, user_id=user_id)
        return [UserChannelView.model_validate(row) for row in rows]

    async def store(
        self, tenant: str, user_id: int, channel: Channel, settings: UserChannelSettings
    ) -> UserChannelView:
        """Store only the fields that are set, so that, for example, a new address does not undo an opt-out."""
        values = settings.model_dump()
        values |= {f"names_{field}": field in settings.model_fields_set for field in values}
        values |= {"tenant": tenant, "user_id": user_id, "channel": channel.value}
        async with self._share.slot(tenant):
            stored = await execute(self._engine, STORE, **values)
        return UserChannelView.model_validate(stored.one())

    async def delete_recipient(self, tenant: str, user_id: int, channel: Channel) -> bool:
        """Delete the user's recipient for the channel, but keep an opt-out; return False if nothing was deleted."""
        # Only the recipient counts, because the deletion of an empty row would reveal that there was no opt-out. An
        # opt-out may be stored between the two statements, or while one waits for the row. Neither affects it.
        of_channel = {"tenant": tenant, "user_id": user_id, "channel": channel.value}
        async with self._share.slot(tenant):
            deleted = await execute(self._engine, DELETE_RECIPIENT, **of_channel)
            await execute(self._engine, DELETE_EMPTY, **of_channel)
        return deleted.rowcount > 0
