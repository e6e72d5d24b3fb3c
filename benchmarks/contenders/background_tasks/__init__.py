"""FastAPI's BackgroundTasks: the request stores the row; a task sends and updates it after the response."""

from benchmarks.contenders.contender import Contender, create_table, urls, uvicorn

BACKGROUND_TASKS = Contender(
    key="background-tasks",
    name="BackgroundTasks",
    programs=lambda port: [uvicorn("background_tasks.api:app", port)],
    environment=urls,
    prepare=create_table,
    documentation=[
        "https://fastapi.tiangolo.com/tutorial/background-tasks/",
        "https://fastapi.tiangolo.com/tutorial/sql-databases/",
        "https://fastapi.tiangolo.com/deployment/server-workers/",
        "https://docs.sqlalchemy.org/en/21/orm/extensions/asyncio.html",
        "https://docs.sqlalchemy.org/en/21/tutorial/data_update.html",
        "https://docs.sqlalchemy.org/en/21/core/pooling.html",
    ],
    switches="uvicorn with two workers (uvloop, httptools); SQLAlchemy on asyncpg (ORM for the INSERT, Core for the "
    "UPDATE), a fixed pool of 20 connections per worker; no queue; this service's garbage collection; no tracing",
    guarantees="weaker: tasks exist in memory only, and are lost when their process ends; nothing is tried again",
)
