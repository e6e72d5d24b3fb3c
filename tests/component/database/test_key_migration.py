"""The migration that splits scopes: existing keys keep their rights."""

from itertools import chain, combinations

import pytest
from notify_common.contracts.ids import new_id
from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, create_engine
from notify_database.migrate import migrate
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

OLD_SCOPES = ("send", "read", "admin", "operator")
NEW_SCOPES = {"read": {"recipients:read"}, "send": {"recipients:write", "opt-outs:clear", "trace"}}
ADD = text("""
    INSERT INTO api_keys (id, tenant, name, hash, scopes, created_at, revoked_at)
    VALUES (:id, 'shop', '', :hash, CAST(:scopes AS text[]), now(),
            CASE WHEN CAST(:revoked AS boolean) THEN now() END)
""")


async def test_existing_keys_keep_their_rights(empty_postgres: PostgresSettings) -> None:
    subsets = chain.from_iterable(combinations(OLD_SCOPES, size) for size in range(1, len(OLD_SCOPES) + 1))
    keys = {new_id(utc_now()): subset for subset in subsets}
    engine = create_engine(empty_postgres, pool_size=2)
    await migrate(engine, "public", "0013")
    async with engine.begin() as connection:
        for number, (key_id, scopes) in enumerate(keys.items()):
            await connection.execute(
                ADD, {"id": key_id, "hash": key_id.bytes, "scopes": scopes, "revoked": number % 2 == 1}
            )
    await migrate(engine, "public")
    async with engine.connect() as connection:
        stored = {row.id: row for row in await connection.execute(text("SELECT * FROM api_keys"))}
    for number, (key_id, scopes) in enumerate(keys.items()):
        expected = set(scopes).union(*(NEW_SCOPES.get(scope, set()) for scope in scopes))
        assert sorted(stored[key_id].scopes) == sorted(expected)  # and none twice
        assert (stored[key_id].revoked_at is not None) == (number % 2 == 1)
        assert (stored[key_id].expires_at, stored[key_id].last_used_at, stored[key_id].test) == (None, None, False)
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await connection.execute(
                ADD, {"id": new_id(utc_now()), "hash": b"", "scopes": ["everything"], "revoked": False}
            )
    await engine.dispose()
