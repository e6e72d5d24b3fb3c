"""Store users' recipients and opt-outs, which apply to all of their notifications."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from notify_common.contracts.channels import Channel
from notify_common.contracts.users import user_columns, user_of
from notify_database.engine import autocommitting, execute
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from notify_gateway.database import TenantReads, TenantShare
from notify_gateway.users.schemas import UserChannel, UserChannelSettings

COLUMNS = "channel, recipient, opted_out, updated_at"

UserChannelKey = tuple[str, str, Channel]
"""Tenant, user and channel."""
_Wanted = tuple[str, int | str, str]
"""Tenant, user as in its column, and channel."""


class _Statements(NamedTuple):
    """The statements for users whose ids are in one of the two columns."""

    find: TextClause
    list: TextClause
    store: TextClause
    delete_recipient: TextClause
    delete_empty: TextClause


def _look_up(selected: str, column: str, kind: str, *, names: str = "") -> str:
    """Return a query for user channels by their keys; the names of its parameters begin with `names`."""
    return f"""
        SELECT stored.* FROM unnest(
            CAST(:{names}tenants AS text[]), CAST(:{names}users AS {kind}[]), CAST(:{names}channels AS text[])
        ) AS wanted (tenant, {column}, channel)
        CROSS JOIN LATERAL (
            SELECT {selected} FROM user_channels
            WHERE tenant = wanted.tenant AND {column} = wanted.{column} AND channel = wanted.channel LIMIT 1
        ) AS stored
    """  # noqa: S608 - constants


def _statements(column: str, kind: str, unique: str) -> _Statements:
    of_user = f"tenant = :tenant AND {column} = :user"
    of_channel = f"{of_user} AND channel = :channel"
    return _Statements(
        find=text(_look_up(f"tenant, user_id, user_key, {COLUMNS}", column, kind)),
        list=text(f"SELECT {COLUMNS} FROM user_channels WHERE {of_user} ORDER BY channel"),  # noqa: S608 - constants, as in all of them
        store=text(f"""
            INSERT INTO user_channels (tenant, {column}, channel, recipient, opted_out, updated_at)
            VALUES (:tenant, :user, :channel, :recipient, :opted_out, now())
            ON CONFLICT {unique} DO UPDATE
                SET recipient = CASE WHEN :names_recipient THEN excluded.recipient ELSE user_channels.recipient END,
                    opted_out = CASE WHEN :names_opted_out THEN excluded.opted_out ELSE user_channels.opted_out END,
                    updated_at = excluded.updated_at
            RETURNING {COLUMNS}
        """),  # noqa: S608
        delete_recipient=text(f"""
            UPDATE user_channels SET recipient = NULL, updated_at = now() WHERE {of_channel} AND recipient IS NOT NULL
        """),  # noqa: S608
        delete_empty=text(f"""
            DELETE FROM user_channels WHERE {of_channel} AND recipient IS NULL AND NOT opted_out
        """),  # noqa: S608
    )


INTEGERS = _statements("user_id", "bigint", "(tenant, user_id, channel)")
KEYS = _statements("user_key", "text", "(tenant, user_key, channel) WHERE user_key IS NOT NULL")

# For use in a statement that needs to know whether a user channel is stored under any of the keys.
EXISTING = f"""
    {_look_up("", "user_id", "bigint", names="integer_")} UNION ALL {_look_up("", "user_key", "text", names="text_")}
"""


def _statements_for(user: str) -> tuple[_Statements, int | str]:
    """Return the statements for the user, and the value of `:user` in them."""
    user_id, user_key = user_columns(user)
    return (INTEGERS, user_id) if user_key is None else (KEYS, user_key)


async def stored_channels(
    connection: AsyncConnection, keys: Iterable[UserChannelKey]
) -> dict[UserChannelKey, UserChannel]:
    """Return the user channels that are stored, by their keys."""
    stored: dict[UserChannelKey, UserChannel] = {}
    for statements, wanted in _by_statements(keys).items():
        if wanted:
            rows = await connection.execute(statements.find, _columns(wanted))
            stored |= {
                (row.tenant, user_of(row.user_id, row.user_key), Channel(row.channel)): UserChannel.model_validate(row)
                for row in rows
            }
    return stored


def existing_parameters(keys: Iterable[UserChannelKey]) -> dict[str, object]:
    """Return the parameters with which `EXISTING` looks for user channels under `keys`."""
    wanted = _by_statements(keys)
    return _columns(wanted[INTEGERS], "integer_") | _columns(wanted[KEYS], "text_")


def _by_statements(keys: Iterable[UserChannelKey]) -> dict[_Statements, set[_Wanted]]:
    wanted: dict[_Statements, set[_Wanted]] = {INTEGERS: set(), KEYS: set()}
    for tenant, user, channel in keys:
        statements, value = _statements_for(user)
        wanted[statements].add((tenant, value, channel.value))
    return wanted


def _columns(wanted: Collection[_Wanted], names: str = "") -> dict[str, object]:
    tenants, users, channels = zip(*wanted, strict=True) if wanted else ((), (), ())
    return {f"{names}tenants": tenants, f"{names}users": users, f"{names}channels": channels}


class UserChannels:
    """Stores users' settings for each channel."""

    def __init__(self, engine: AsyncEngine, share: TenantShare, reads: TenantReads) -> None:
        self._engine = autocommitting(engine)
        self._share = share
        self._reads = reads

    async def list_of_user(self, tenant: str, user: str) -> list[UserChannel]:
        """Return all settings that are stored for the user, ordered by channel."""
        statements, value = _statements_for(user)
        rows = await self._reads.execute(tenant, statements.list, user=value)
        return [UserChannel.model_validate(row) for row in rows]

    async def store(self, tenant: str, user: str, channel: Channel, settings: UserChannelSettings) -> UserChannel:
        """Store only the fields that are set, so that, for example, a new address does not undo an opt-out."""
        statements, value = _statements_for(user)
        values = settings.model_dump()
        values |= {f"names_{field}": field in settings.model_fields_set for field in values}
        values |= {"tenant": tenant, "user": value, "channel": channel.value}
        async with self._share.slot(tenant):
            stored = await execute(self._engine, statements.store, **values)
        return UserChannel.model_validate(stored.one())

    async def delete_recipient(self, tenant: str, user: str, channel: Channel) -> bool:
        """Delete the user's recipient for the channel, but keep an opt-out; return False if nothing was deleted."""
        # Only the recipient counts, because the deletion of an empty row would reveal that there was no opt-out. An
        # opt-out may be stored between the two statements, or while one waits for the row. Neither affects it.
        statements, value = _statements_for(user)
        of_channel = {"tenant": tenant, "user": value, "channel": channel.value}
        async with self._share.slot(tenant):
            deleted = await execute(self._engine, statements.delete_recipient, **of_channel)
            await execute(self._engine, statements.delete_empty, **of_channel)
        return deleted.rowcount > 0
