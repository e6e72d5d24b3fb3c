"""Tells whoever listens that deliveries have a new status."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from uuid import uuid4

from faststream.rabbit import RabbitBroker

from notify_common import topology
from notify_common.channels import Channel
from notify_common.messages import DeliveryStatus, StatusChange, StatusChanges
from notify_common.rabbitmq import BROKER_ERRORS, is_being_cancelled

log = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds


async def publish_changes(broker: RabbitBroker, changes: Sequence[StatusChange]) -> None:
    """Publish what has changed, after its commit. Events are news, not state: what fails here is not repeated."""
    by_kind: defaultdict[tuple[Channel, DeliveryStatus], list[StatusChange]] = defaultdict(list)
    for change in changes:
        by_kind[change.channel, change.status].append(change)
    try:
        async with asyncio.timeout(TIMEOUT):
            for (channel, status), alike in by_kind.items():
                await broker.publish(
                    StatusChanges(changes=tuple(alike)).model_dump_json().encode(),
                    exchange=topology.EVENTS,
                    routing_key=f"{channel}.{status}",
                    mandatory=False,
                    content_type="application/json",
                    message_id=str(uuid4()),
                )
    except BROKER_ERRORS as error:
        log.debug("events are not published count=%d error=%r", len(changes), error)
    except asyncio.CancelledError:
        if is_being_cancelled():
            raise
