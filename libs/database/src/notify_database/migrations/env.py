"""Alembic's entry point; `notify_database.migrate` passes in the connection. Each migration is a transaction."""

from alembic import context
from notify_database.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
