"""What PostgreSQL reads for a poll of the outbox."""

import pytest
from notify_common.contracts.channels import KNOWN_CHANNELS
from notify_database.engine import ROWS_BY_KEY, PostgresSettings, create_engine
from notify_gateway.outbox.store import OutboxStore
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.outbox import add_row
from support.plans import blocks_read, executed_nodes, recorded, rows_read

DUE = 5
LOOKUPS = 2 * DUE  # by the integer and by the text that may be the id of a user
# PostgreSQL 18 skips over the tenants in an index, so there are many. Earlier versions read all of it.
STORED_USERS = """
    INSERT INTO user_channels (tenant, {column}, channel, recipient, opted_out, updated_at)
    SELECT 'default', number, 'telegram', '42', false, now() FROM generate_series(1, 5000) AS number
    UNION ALL
    SELECT 'tenant ' || number, number, 'telegram', '42', false, now() FROM generate_series(1, 5000) AS number
"""


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_poll_reads_no_stored_users_but_those_of_the_due_deliveries(
    engine: AsyncEngine, postgres: PostgresSettings, plans: str
) -> None:
    async with engine.begin() as connection:
        for column in ("user_id", "user_key"):
            await connection.execute(text(STORED_USERS.format(column=column)))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE user_channels"))
    for _ in range(DUE):
        await add_row(engine)
    relay = create_engine(postgres, pool_size=1, planner={**ROWS_BY_KEY, "plan_cache_mode": plans})
    with recorded(relay) as statements:
        assert len((await OutboxStore(relay).take_due(DUE, KNOWN_CHANNELS)).held) == DUE
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE outbox SET leased_until = NULL"))
    nodes = await executed_nodes(relay, statements[0])
    assert rows_read(nodes, "user_channels") <= DUE
    assert blocks_read(nodes, "user_channels") <= 5 * LOOKUPS
    await relay.dispose()
