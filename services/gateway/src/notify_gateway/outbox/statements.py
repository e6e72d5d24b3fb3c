"""The SQL of the outbox: to take due rows, to change leased ones, and to count the backlog.

A delivery that is published right after its commit uses only `DELETE`: its row is inserted with a lease, by the
statement that stores its notification.
"""

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB

# A row that is refused again and again waits about as long as it has been due, within bounds.
BACKOFF = """
    due_since = coalesce(outbox.due_since, outbox.due_at),
    due_at = now() + least(greatest(now() - outbox.due_since, CAST(:first AS interval)), CAST(:longest AS interval))
"""
DUE = "due_at <= now() AND (leased_until IS NULL OR leased_until < now())"
# Rows are looked up with LATERAL ... LIMIT 1, or with ANY(ARRAY(...)). PostgreSQL vacuums the outbox while it is empty,
# and would then plan a join as if it stayed empty: until the next ANALYZE, it would compare each row with all others.
TAKE = f"""
    WITH adoptable AS MATERIALIZED (
        -- Versions without the column `channel` leave it NULL. The next statement finds the rows that are adopted here.
        SELECT o.delivery_id, d.channel
        FROM outbox o CROSS JOIN LATERAL (SELECT channel FROM deliveries WHERE id = o.delivery_id LIMIT 1) AS d
        WHERE o.channel IS NULL ORDER BY o.due_at LIMIT :max_adopted FOR UPDATE OF o SKIP LOCKED
    ), adopted AS (
        UPDATE outbox SET channel = (SELECT channel FROM deliveries WHERE id = outbox.delivery_id)
        WHERE delivery_id = ANY(ARRAY(SELECT delivery_id FROM adoptable))
    ), due AS (
        SELECT taken.*
        FROM unnest(CAST(:channels AS text[])) AS lane (channel)
        CROSS JOIN LATERAL (
            SELECT delivery_id, round, due_at FROM outbox
            WHERE outbox.channel = lane.channel AND {DUE} AND {{chosen}}
            ORDER BY due_at
            LIMIT :limit
            FOR UPDATE SKIP LOCKED
        ) AS taken
    ), found AS MATERIALIZED (
        SELECT d.id, d.notification_id, d.channel, d.recipient, d.status, d.round, d.attempt, d.failures,
               clock_timestamp() AS updated_at,
               n.tenant, n.user_id, n.user_key, n.message, n.subject,
               CASE d.channel WHEN 'email' THEN n.email END AS email,
               n.expires_at, n.traceparent, n.test, due.due_at,
               CASE d.channel WHEN 'email' THEN coalesce(octet_length(n.email ->> 'html'), 0) ELSE 0 END
                   + octet_length(n.message) AS bytes,
               CASE
                   WHEN coalesce(by_id.opted_out, by_key.opted_out) THEN 'cancelled'
                   WHEN n.expires_at <= now() THEN 'expired'
               END AS end_status
        FROM due
        -- FOR UPDATE reads the latest version of an outbox row, but the delivery is read as it was when the statement
        -- began. If an operator has retried the delivery in between, the rounds differ, and a later poll takes the row.
        CROSS JOIN LATERAL (
            SELECT * FROM deliveries WHERE id = due.delivery_id AND round = due.round LIMIT 1
        ) AS d
        CROSS JOIN LATERAL (SELECT * FROM notifications WHERE id = d.notification_id LIMIT 1) AS n
        -- With an OR in a single join, PostgreSQL would read all stored users of the tenant for each row.
        LEFT JOIN LATERAL (
            SELECT opted_out FROM user_channels
            WHERE tenant = n.tenant AND channel = d.channel AND user_id = n.user_id LIMIT 1
        ) AS by_id ON true
        LEFT JOIN LATERAL (
            SELECT opted_out FROM user_channels
            WHERE tenant = n.tenant AND channel = d.channel AND user_key = n.user_key LIMIT 1
        ) AS by_key ON true
    ), incomplete AS (
        -- Rows without a notification, for example because an operator has detached its partition, back off. Otherwise
        -- `limit` of them would keep all others of their channel from being taken.
        UPDATE outbox SET {BACKOFF}
        FROM due
        WHERE outbox.delivery_id = ANY(ARRAY(
                SELECT delivery_id FROM due WHERE delivery_id NOT IN (SELECT id FROM found)
            ))
          AND outbox.delivery_id = due.delivery_id AND outbox.round = due.round
        RETURNING outbox.delivery_id
    ), candidates AS MATERIALIZED (
        -- Bodies can be large, so a channel's rows are taken until they reach a number of bytes, but at least one is.
        SELECT * FROM (
            SELECT *, sum(bytes) OVER (PARTITION BY channel ORDER BY due_at, id) - bytes AS bytes_before FROM found
        ) AS summed
        WHERE bytes_before < :max_bytes
    ), ending AS MATERIALIZED (
        SELECT array_agg(id ORDER BY id) AS ids, array_agg(round ORDER BY id) AS rounds
        FROM candidates WHERE end_status IS NOT NULL
    ), endable AS MATERIALIZED (
        -- Waiting for the lock of a locked delivery could deadlock. In LATERAL, PostgreSQL 18 would leave out rows of
        -- partitions that have changed meanwhile, or even crash. Nothing prunes partitions here: after a change, the
        -- row would be checked again, and the crash was in the code that prunes.
        SELECT id FROM deliveries
        WHERE id = ANY(CAST((SELECT ids FROM ending) AS uuid[])) AND status = 'pending'
          AND round = (SELECT rounds FROM ending)[width_bucket(id, (SELECT ids FROM ending))]
        FOR NO KEY UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE deliveries
        SET status = end_status, updated_at = candidates.updated_at,
            reason = CASE end_status WHEN 'cancelled' THEN 'opted_out' END
        FROM candidates
        WHERE deliveries.id = ANY(ARRAY(SELECT id FROM endable)) AND deliveries.id = candidates.id
          -- PostgreSQL does not prune partitions by `ANY`.
          AND deliveries.id >= (SELECT id FROM endable ORDER BY id LIMIT 1)
          AND deliveries.id <= (SELECT id FROM endable ORDER BY id DESC LIMIT 1)
        RETURNING deliveries.id
    ), locked AS (
        -- A locked delivery is about to change, so a later poll looks at it again. Meanwhile its row backs off, for the
        -- same reason as those without a notification.
        UPDATE outbox SET {BACKOFF}
        WHERE delivery_id = ANY(ARRAY(
            SELECT id FROM candidates
            WHERE status = 'pending' AND end_status IS NOT NULL AND id NOT IN (SELECT id FROM ended)
        ))
    ), deleted AS (
        -- This removes the rows of deliveries that end here, and rows that a relay left behind because it died between
        -- the confirm and the delete.
        DELETE FROM outbox
        WHERE delivery_id = ANY(ARRAY(
            SELECT id FROM candidates WHERE status <> 'pending' OR id IN (SELECT id FROM ended)
        ))
    ), taken AS (
        UPDATE outbox SET leased_until = now() + CAST(:lease AS interval)
        WHERE delivery_id = ANY(ARRAY(SELECT id FROM candidates WHERE status = 'pending' AND end_status IS NULL))
    )
    -- If no row is taken, ended or deleted, this yields a single row without an id.
    SELECT candidates.*, now() + CAST(:lease AS interval) AS leased_until, counted.incomplete
    FROM (SELECT count(*) AS incomplete FROM incomplete) AS counted
    LEFT JOIN candidates ON status <> 'pending' OR end_status IS NULL OR id IN (SELECT id FROM ended)
    ORDER BY due_at
"""  # noqa: S608 - a constant
TAKE_DUE = text(TAKE.format(chosen="true")).columns(email=JSONB)
# The next three statements are used only while a row makes another statement fail.
TAKE_ROWS = text(TAKE.format(chosen="delivery_id = ANY(CAST(:ids AS uuid[]))")).columns(email=JSONB)
LIST_DUE = text(f"""
    SELECT delivery_id, round FROM outbox WHERE channel = :channel AND {DUE} ORDER BY due_at LIMIT :limit
""")  # noqa: S608 - a constant
DELETE_PUBLISHED = text("DELETE FROM outbox WHERE delivery_id = :id AND round = :round")
# A relay must not touch a row that another relay has leased since, or that a retry has moved to a new round. The values
# for a row are found by binary search in the sorted ids, for the reason above.
POSITION = "width_bucket(delivery_id, CAST(:ids AS uuid[]))"
HELD = f"""
    delivery_id = ANY(CAST(:ids AS uuid[])) AND round = (CAST(:rounds AS integer[]))[{POSITION}]
    AND leased_until IN (
        (CAST(:leases AS timestamptz[]))[{POSITION}], (CAST(:renewals AS timestamptz[]))[{POSITION}]
    )
"""
RENEW = text(f"""
    UPDATE outbox SET leased_until = (CAST(:renewals AS timestamptz[]))[{POSITION}] WHERE {HELD} RETURNING delivery_id
""")  # noqa: S608 - constants, as in the next ones
RELEASE = text(f"UPDATE outbox SET leased_until = NULL WHERE {HELD}")  # noqa: S608
POSTPONE = text(f"UPDATE outbox SET leased_until = NULL, {BACKOFF} WHERE {HELD}")  # noqa: S608
DELETE = text(f"DELETE FROM outbox WHERE {HELD}")  # noqa: S608
# Rows that back off are due, too. The count is capped, because an exact count of a large backlog is not worth the scan.
BACKLOG = text("""
    WITH RECURSIVE channels (channel) AS (
        (SELECT channel FROM outbox ORDER BY channel LIMIT 1)
        UNION ALL
        SELECT (SELECT o.channel FROM outbox o WHERE o.channel > channels.channel ORDER BY o.channel LIMIT 1)
        FROM channels WHERE channels.channel IS NOT NULL
    ), due AS (
        SELECT outbox.* FROM channels CROSS JOIN LATERAL (
            SELECT channel, coalesce(due_since, due_at) AS due_since FROM outbox
            WHERE outbox.channel = channels.channel AND due_at <= now() + CAST(:longest AS interval)
              AND (due_at <= now() OR due_since IS NOT NULL)
            ORDER BY due_at LIMIT :cap
        ) AS outbox
        UNION ALL
        (SELECT channel, due_at FROM outbox WHERE channel IS NULL AND due_at <= now() ORDER BY due_at LIMIT :cap)
    )
    SELECT least(count(*), :cap) AS rows, coalesce(extract(epoch FROM now() - min(due_since)), 0) AS oldest,
           count(*) FILTER (WHERE channel <> ALL(CAST(:known AS text[]))) AS unknown
    FROM due
""")
