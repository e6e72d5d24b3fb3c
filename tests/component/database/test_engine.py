"""PostgreSQL sessions."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


async def test_sessions_have_idle_transaction_and_statement_timeouts(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        for setting, value in (("idle_in_transaction_session_timeout", "10s"), ("statement_timeout", "30s")):
            assert (await connection.execute(text(f"SHOW {setting}"))).scalar_one() == value
