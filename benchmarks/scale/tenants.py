"""API keys of many tenants, inserted by SQL because there are too many for the API."""

import hashlib
import secrets
from uuid import uuid4

import psycopg

from benchmarks.scale.filling import TENANT
from benchmarks.servers import Servers

INSERT = """
    INSERT INTO api_keys (id, tenant, name, hash, scopes, created_at)
    VALUES (%s, %s, 'benchmark', %s, '{send,read}', now())
"""


def create_keys(servers: Servers, tenants: int) -> list[str]:
    """Create a key for each tenant; return them in the order of the tenants' numbers."""
    keys = [f"ntf_{secrets.token_urlsafe(32)}" for _ in range(tenants)]
    rows = [(uuid4(), f"{TENANT}{number}", hashlib.sha256(key.encode()).digest()) for number, key in enumerate(keys)]
    with psycopg.connect(servers.database_url) as connection, connection.cursor() as cursor:
        cursor.executemany(INSERT, rows)
    return keys


def bearer(key: str) -> dict[str, str]:
    """Return the header with a key."""
    return {"Authorization": f"Bearer {key}"}
