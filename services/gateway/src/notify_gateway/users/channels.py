"""Where a tenant's users are reached, and what they do not want: stored once, used by each notification."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from notify_common.contracts.channels import Channel
from notify_database.engine import database_errors, without_transactions
from sqlalchemy import CursorResult, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.users.schemas import UserChannelSettings, UserChannelView

COLUMNS = "channel, recipient, opted_out, updated_at"
OF_MANY = text(f"""
    SELECT tenant, user_id, {COLUMNS} FROM user_channels
    JOIN unnest(CAST(:tenants AS text[]), CAST(:user_ids AS bigint[]), CAST(:channels AS text[]))
        AS asked (tenant, user_id, channel) USING (tenant, user_id, channel)
""")  # noqa: S608 - a constant
OF_ONE = text(f"""
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
FORGET = text("DELETE FROM user_channels WHERE tenant = :tenant AND user_id = :user_id AND channel = :channel")


@dataclass(frozen=True, slots=True)
class UserChannel:
    """What is stored of a user's channel."""

    recipient: str | None
    opted_out: bool


UserChannelKey = tuple[str, int, Channel]
"""Tenant, user and channel."""


async def stored_channels(
    connection: AsyncConnection, asked: Iterable[UserChannelKey]
) -> dict[UserChannelKey, UserChannel]:
    """What is stored, in one statement for all; where nothing is, the key is missing."""
    tenants, user_ids, channels = zip(*set(asked), strict=True)
    parameters = {"tenants": tenants, "user_ids": user_ids, "channels": [channel.value for channel in channels]}
    rows = await connection.execute(OF_MANY, parameters)
    return {(row.tenant, row.user_id, Channel(row.channel)): UserChannel(row.recipient, row.opted_out) for row in rows}


class UserChannels:
    """The statements behind `/api/users/{user_id}/channels`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = without_transactions(engine)

    async def of_user(self, tenant: str, user_id: int) -> list[UserChannelView]:
        """What is stored of the user, by channel."""
        rows = (await self._execute(OF_ONE, tenant=tenant, user_id=user_id)).all()
        return [UserChannelView.model_validate(row) for row in rows]

    async def store(self, tenant: str, user_id: int, channel: Channel, wanted: UserChannelSettings) -> UserChannelView:
        """Store what is wanted; what that does not name stays: whoever corrects an address opts nobody in again."""
        values = wanted.model_dump()
        values |= {f"names_{field}": field in wanted.model_fields_set for field in values}
        row = (await self._execute(STORE, tenant=tenant, user_id=user_id, channel=channel.value, **values)).one()
        return UserChannelView.model_validate(row)

    async def forget(self, tenant: str, user_id: int, channel: Channel) -> bool:
        """Whether there was anything."""
        done = await self._execute(FORGET, tenant=tenant, user_id=user_id, channel=channel.value)
        return done.rowcount > 0

    async def _execute(self, statement: TextClause, **parameters: object) -> CursorResult[Any]:
        with database_errors():
            async with self._engine.connect() as connection:
                return await connection.execute(statement, parameters)
