"""`python -m support.business KIND FIRST LAST`: a caller whose business transactions enqueue notifications.

It commits each order of its range once, however often it is killed and started again. KIND is `sync` or `async`: which
kind of session it uses. Every tenth transaction is rolled back once before it succeeds.
"""

import asyncio
import os
import random
import sys
import time

from notify_client import outbox
from sqlalchemy import Connection, Engine, Uuid, create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

URL = "BUSINESS_URL"
PACE = 0.04  # seconds between two transactions, on average
ROLLED_BACK = 10
CHANNELS = ("telegram", "email", "webhook")
BEFORE_RETRY = 0.2  # seconds


class Base(DeclarativeBase):
    """The base class of the caller's tables."""


class Order(Base):
    """An order, about which the user is notified."""

    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    notification_key: Mapped[object] = mapped_column(Uuid)


def prepare(engine: Engine) -> None:
    """Create the caller's tables."""
    Base.metadata.create_all(engine)
    outbox.create_table(engine)


def place(session: Session | AsyncSession, number: int, *, refuse: bool) -> None:
    """Add an order and its notification to the session."""
    key = outbox.enqueue(
        session,
        user_id=str(number),
        channels=[CHANNELS[number % len(CHANNELS)]],
        message="Your order has been placed.",
        reference=f"refused-{number}" if refuse else f"order-{number}",
    )
    session.add(Order(number=number, notification_key=key))


def next_number(connection: Connection, first: int, last: int) -> int:
    """Return the first order that is not committed: this process may have been killed after any commit."""
    in_range = Order.number.between(first, last)
    return (connection.execute(select(func.max(Order.number)).where(in_range)).scalar() or first - 1) + 1


def run(first: int, last: int) -> None:
    """Place the orders with sessions."""
    engine = create_engine(os.environ[URL].replace("postgresql:", "postgresql+psycopg:"), pool_pre_ping=True)
    while True:
        try:
            with engine.connect() as connection:
                number = next_number(connection, first, last)
            if number > last:
                return
            if number % ROLLED_BACK == 0:
                with Session(engine) as session:
                    place(session, number, refuse=True)
                    session.flush()
            with Session(engine) as session, session.begin():
                place(session, number, refuse=False)
            print("committed", number, flush=True)
            time.sleep(random.uniform(0, 2 * PACE))
        except SQLAlchemyError:
            time.sleep(BEFORE_RETRY)


async def run_async(first: int, last: int) -> None:
    """Place the orders with asynchronous sessions."""
    engine = create_async_engine(os.environ[URL].replace("postgresql:", "postgresql+asyncpg:"), pool_pre_ping=True)
    while True:
        try:
            async with engine.connect() as connection:
                number = await connection.run_sync(next_number, first, last)
            if number > last:
                return
            if number % ROLLED_BACK == 0:
                async with AsyncSession(engine) as session:
                    place(session, number, refuse=True)
                    await session.flush()
            async with AsyncSession(engine) as session, session.begin():
                place(session, number, refuse=False)
            print("committed", number, flush=True)
            await asyncio.sleep(random.uniform(0, 2 * PACE))
        except Exception:  # noqa: BLE001 - asyncpg's own errors are not SQLAlchemy's
            await asyncio.sleep(BEFORE_RETRY)


if __name__ == "__main__":
    kind, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if kind == "async":
        asyncio.run(run_async(first, last))
    else:
        run(first, last)
