"""Alembic's entry point; `notify_database.migrate` passes in the connection and owns the transaction."""

from alembic import context
from notify_database.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
# The timeout is short, because a migration that waits for a lock blocks every later statement on the table.
context.execute("SET LOCAL lock_timeout = '5s'")
context.run_migrations()
