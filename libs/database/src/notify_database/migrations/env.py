"""Alembic's entry point; `notify_database.migrate` passes in the connection."""

from alembic import context
from notify_database.models import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, transaction_per_migration=True
)
# The timeout is short, because a migration that waits for a lock blocks every later statement on the table.
context.execute("SET lock_timeout = '5s'")
context.get_bind().commit()
with context.begin_transaction():
    context.run_migrations()
