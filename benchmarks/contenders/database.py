"""The connection pool of the contender that uses SQLAlchemy with asyncpg."""

import os

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from benchmarks.contenders.contender import POOL_SIZE

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=POOL_SIZE, max_overflow=0
)
new_async_session = async_sessionmaker(engine, expire_on_commit=False)
