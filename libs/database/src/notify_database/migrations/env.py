"""Alembic's entry: `notify_database.migrate` hands over the connection and owns the transaction."""

from alembic import context
from notify_database.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
# A migration that waits for a lock blocks all who come after it.
context.execute("SET LOCAL lock_timeout = '5s'")
context.run_migrations()
