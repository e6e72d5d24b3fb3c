"""The caller's outbox: a notification is committed together with the business data that it is about.

`enqueue` writes a notification into the caller's own transaction, and a `relay` sends what has been committed. It needs
SQLAlchemy, which the extra `outbox` installs.
"""

from notify_client.outbox.enqueue import enqueue, new_row
from notify_client.outbox.held import HeldNotification, drop, list_held, release
from notify_client.outbox.relay import Relay, relay
from notify_client.outbox.table import create_table, metadata, table

__all__ = [
    "HeldNotification",
    "Relay",
    "create_table",
    "drop",
    "enqueue",
    "list_held",
    "metadata",
    "new_row",
    "relay",
    "release",
    "table",
]
