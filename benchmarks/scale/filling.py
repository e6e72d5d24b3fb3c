"""Millions of stored notifications, inserted by SQL as if they had been sent during the last weeks."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg

from benchmarks.servers import Servers

TENANT = "tenant-"
"""The prefix of the tenants' names, which end with their numbers from 0."""
CHUNK = 250_000


@dataclass(frozen=True)
class Fill:
    """Notifications to store."""

    count: int
    weeks: int
    """The number of weekly partitions before the current one."""
    users: int
    tenants: int = 0
    """The number of tenants; 0 if everything belongs to the default tenant."""


# A new database's first partition covers the whole past. It is replaced with weekly partitions, like those that the
# service would have created if it had been running all along.
PARTITION = """
    CREATE TABLE {table}_until_{end:%Y%m%d} PARTITION OF {table} FOR VALUES FROM ({begin}) TO ('{last}') {storage}
"""
FIRST = """
    SELECT inhrelid::regclass::text, substring(inhrelid::regclass::text from '[0-9]+$')
    FROM pg_inherits WHERE inhparent = '{table}'::regclass ORDER BY 2 LIMIT 1
"""
STORAGE = {"notifications": "", "deliveries": "WITH (fillfactor = 80)", "attempts": ""}
# Make a UUIDv7 for a given time by replacing the start of a random UUID with the time in milliseconds.
ID_AT = """
    CREATE FUNCTION pg_temp.id_at(at timestamptz) RETURNS uuid LANGUAGE sql AS $$
        SELECT overlay(overlay(gen_random_uuid()::text PLACING '7' FROM 15) PLACING
            substr(hex, 1, 8) || '-' || substr(hex, 9, 4) FROM 1)::uuid
        FROM lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') AS hex
    $$
"""
# One notification in fifty has failed.
FILL = """
    WITH made AS (
        SELECT pg_temp.id_at(at) AS notification_id, pg_temp.id_at(at) AS delivery_id, at, number
        FROM (
            SELECT number, now() - interval '1 minute' - interval '{span} seconds' * (1 - number / {count}::float) AS at
            FROM generate_series({first}, {last}) AS number
        ) AS numbers
    ), notification AS (
        INSERT INTO notifications (id, tenant, user_id, message, created_at)
        SELECT notification_id, {tenant}, 1 + floor(random() * {users}), 'Your code: ' || number, at FROM made
    ), delivery AS (
        INSERT INTO deliveries (id, notification_id, channel, status, round, attempt, failures, updated_at)
        SELECT delivery_id, notification_id, 'telegram', CASE WHEN number % 50 = 0 THEN 'failed' ELSE 'sent' END,
            1, 1, (number % 50 = 0)::int, at
        FROM made
    )
    INSERT INTO attempts (delivery_id, attempt, round, outcome, error_class, error_code, started_at, finished_at)
    SELECT delivery_id, 1, 1, CASE WHEN number % 50 = 0 THEN 'failed' ELSE 'sent' END,
        CASE WHEN number % 50 = 0 THEN 'permanent' END, CASE WHEN number % 50 = 0 THEN 'simulated_error' END, at, at
    FROM made
"""


def store(servers: Servers, fill: Fill) -> None:
    """Store notifications that have been sent or have failed, evenly distributed over the weeks."""
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        for table, storage in STORAGE.items():
            [first, end] = connection.execute(FIRST.format(table=table)).fetchone() or ("", "")
            connection.execute(f"DROP TABLE {first}")
            last = datetime.strptime(end, "%Y%m%d").replace(tzinfo=UTC)
            begin = "MINVALUE"
            for week in range(fill.weeks, -1, -1):
                until = last - timedelta(weeks=week)
                bound = first_id(until)
                connection.execute(PARTITION.format(table=table, end=until, begin=begin, last=bound, storage=storage))
                begin = f"'{bound}'"
        connection.execute(ID_AT)
        tenant = f"'{TENANT}' || floor(random() * {fill.tenants})" if fill.tenants else "'default'"
        span = timedelta(weeks=fill.weeks).total_seconds()
        for first_number in range(1, fill.count + 1, CHUNK):
            last_number = min(first_number + CHUNK - 1, fill.count)
            numbers = {"first": first_number, "last": last_number, "count": fill.count}
            connection.execute(FILL.format(**numbers, span=span, users=fill.users, tenant=tenant))
        connection.execute("VACUUM (ANALYZE) notifications, deliveries, attempts")
        connection.execute("CHECKPOINT")


def first_id(at: datetime) -> str:
    """Return the smallest UUIDv7 of a time."""
    hexadecimal = f"{int(at.timestamp() * 1000):012x}".ljust(32, "0")
    return "-".join(hexadecimal[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
