"""An INSERT statement that database tests use to store a notification and its delivery."""

from sqlalchemy import text

ADD_DELIVERY = text("""
    WITH n AS (INSERT INTO notifications VALUES (:notification_id, 1, 'x', NULL, NULL, now(), 'default') RETURNING id)
    INSERT INTO deliveries SELECT CAST(:delivery_id AS uuid), id, 'telegram', NULL, 'pending', 1, 0, 0, now() FROM n
""")
