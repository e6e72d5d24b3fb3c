"""Store new notifications with their deliveries and outbox rows."""

import json
from collections.abc import Iterable, Sequence, Set
from datetime import datetime

from notify_common.contracts.channels import Channel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from notify_gateway.notifications.new_notification import NewNotification
from notify_gateway.outbox.lease import LEASE
from notify_gateway.users.channels import EXISTING, UserChannelKey, existing_parameters

# This is a single statement, so that a batch takes one round trip, and no notification is stored without its deliveries
# and their outbox rows. Each part requires that `existing` is empty, so nothing is stored if a user channel is stored
# under one of the keys that the caller passes. A statement of its own for this check would take another round trip.
INSERT = text(f"""
    WITH existing AS MATERIALIZED (
        SELECT FROM ({EXISTING}) AS user_channel LIMIT 1
    ), accepted AS (
        INSERT INTO notifications
            (id, tenant, user_id, user_key, reference, message, subject, email, metadata, created_at, send_at,
             expires_at, traceparent, api_key_id, test)
        SELECT id, tenant, user_id, user_key, reference, message, subject, email::jsonb, metadata::jsonb, created_at,
               send_at, expires_at, traceparent, api_key_id, test
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:user_ids AS bigint[]), CAST(:user_keys AS text[]),
            CAST(:references AS text[]), CAST(:messages AS text[]), CAST(:subjects AS text[]), CAST(:emails AS text[]),
            CAST(:metadata AS text[]), CAST(:created_at AS timestamptz[]), CAST(:send_at AS timestamptz[]),
            CAST(:expires_at AS timestamptz[]), CAST(:traceparents AS text[]), CAST(:api_key_ids AS uuid[]),
            CAST(:tests AS boolean[])
        ) AS n (id, tenant, user_id, user_key, reference, message, subject, email, metadata, created_at, send_at,
                expires_at, traceparent, api_key_id, test)
        WHERE NOT EXISTS (SELECT FROM existing)
    ), new_deliveries AS (
        INSERT INTO deliveries
            (id, notification_id, channel, recipient, status, reason, round, attempt, failures, updated_at)
        SELECT id, notification_id, channel, recipient, status, reason, 1, 0, 0, created_at
        FROM unnest(
            CAST(:delivery_ids AS uuid[]), CAST(:notification_ids AS uuid[]), CAST(:channels AS text[]),
            CAST(:recipients AS text[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),
            CAST(:delivery_created_at AS timestamptz[])
        ) AS d (id, notification_id, channel, recipient, status, reason, created_at)
        WHERE NOT EXISTS (SELECT FROM existing)
    ), queued AS (
        INSERT INTO outbox (delivery_id, due_at, leased_until, round, channel)
        -- Any relay may take a row without a lease.
        SELECT id, coalesce(due_at, now()),
               CASE WHEN due_at IS NULL AND channel = ANY(CAST(:leased_channels AS text[]))
                   THEN now() + CAST(:lease AS interval) END,
               1, channel
        FROM unnest(
            CAST(:outbox_ids AS uuid[]), CAST(:due_at AS timestamptz[]), CAST(:outbox_channels AS text[])
        ) AS o (id, due_at, channel)
        WHERE NOT EXISTS (SELECT FROM existing)
    )
    SELECT now() + CAST(:lease AS interval) AS leased_until WHERE NOT EXISTS (SELECT FROM existing)
""")  # noqa: S608 - a constant


async def insert(connection: AsyncConnection, new: Sequence[NewNotification], leased: Set[Channel]) -> datetime:
    """Store the notifications; lease the outbox rows of `leased` channels that are due now. Return the lease's end."""
    # No user channel keys are passed, so `existing` is empty, and everything is stored.
    parameters = {**_parameters(new, leased), **existing_parameters(())}
    leased_until: datetime = (await connection.execute(INSERT, parameters)).scalar_one()
    return leased_until


async def insert_unless_user_channels_exist(
    connection: AsyncConnection,
    new: Sequence[NewNotification],
    leased: Set[Channel],
    user_channel_keys: Iterable[UserChannelKey],
) -> datetime | None:
    """Do what `insert` does. But if a user channel is stored under any of the keys, store nothing and return None."""
    parameters = {**_parameters(new, leased), **existing_parameters(user_channel_keys)}
    return (await connection.execute(INSERT, parameters)).scalar_one_or_none()


def _parameters(new: Sequence[NewNotification], leased: Set[Channel]) -> dict[str, object]:
    bodies = [each.request for each in new]
    deliveries = [(each, delivery, *each.status_of(delivery)) for each in new for delivery in each.deliveries]
    to_send = [(each, delivery) for each in new for delivery in each.to_send()]
    return {
        "ids": [each.id for each in new],
        "tenants": [each.tenant for each in new],
        "user_ids": [each.deliveries[0].user_id for each in new],
        "user_keys": [each.deliveries[0].user_key for each in new],
        "messages": [body.message for body in bodies],
        "subjects": [body.subject for body in bodies],
        "references": [body.reference for body in bodies],
        "emails": [body.email_options and body.email_options.model_dump_json() for body in bodies],
        "metadata": [None if body.metadata is None else json.dumps(body.metadata) for body in bodies],
        "created_at": [each.created_at for each in new],
        "send_at": [body.send_at for body in bodies],
        "expires_at": [body.expires_at for body in bodies],
        "traceparents": [each.traceparent for each in new],
        "api_key_ids": [each.api_key_id for each in new],
        "tests": [each.test for each in new],
        "delivery_ids": [delivery.delivery_id for _, delivery, _, _ in deliveries],
        "notification_ids": [delivery.notification_id for _, delivery, _, _ in deliveries],
        "channels": [delivery.channel.value for _, delivery, _, _ in deliveries],
        "recipients": [delivery.recipient for _, delivery, _, _ in deliveries],
        "statuses": [status.value for _, _, status, _ in deliveries],
        "reasons": [reason for _, _, _, reason in deliveries],
        "delivery_created_at": [each.created_at for each, _, _, _ in deliveries],
        "outbox_ids": [delivery.delivery_id for _, delivery in to_send],
        "due_at": [each.due_at for each, _ in to_send],
        "outbox_channels": [delivery.channel.value for _, delivery in to_send],
        "leased_channels": [channel.value for channel in leased],
        "lease": LEASE,
    }
