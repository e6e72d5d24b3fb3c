"""The RabbitMQ topology. Each service declares from here what it publishes to and what it reads.

exchange `notifications` -> `notifications.<channel>`;
`notifications.<channel>.retry` -> `notifications.<channel>.retry.<delay-ms>`, and from there back to the channel;
`notifications.results` -> a queue of that name; `notifications.dead` -> an archive and the status writer's inbox;
`notifications.events` (topic, routing key `<channel>.<status>`, or `dropped`) -> whoever listens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from faststream.rabbit import ExchangeType, QueueType, RabbitExchange, RabbitQueue
from faststream.rabbit.schemas.queue import QuorumQueueArgs

from notify_common.contracts.channels import Channel

NOTIFICATIONS = RabbitExchange("notifications", type=ExchangeType.DIRECT, durable=True)
RESULTS = RabbitExchange("notifications.results", type=ExchangeType.DIRECT, durable=True)
DEAD = RabbitExchange("notifications.dead", type=ExchangeType.FANOUT, durable=True)
EVENTS = RabbitExchange("notifications.events", type=ExchangeType.TOPIC, durable=True)

RESULTS_ROUTING_KEY = "results"
DUE_ROUTING_KEY = "due"
DROPPED_ROUTING_KEY = "dropped"

# Each lost connection adds one to the count of every prefetched message, handled or not.
DELIVERY_LIMIT = 100
ARCHIVE_DELIVERY_LIMIT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue that gets what is published to `exchange` with `routing_key`."""

    exchange: RabbitExchange
    queue: RabbitQueue
    routing_key: str = ""


def delivery_queue_name(channel: Channel) -> str:
    """The queue a channel's senders read."""
    return f"notifications.{channel}"


def retry_exchange(channel: Channel) -> RabbitExchange:
    """Where a sender parks what it will attempt again. It is the channel's own: no sender can write to another's."""
    return RabbitExchange(f"{delivery_queue_name(channel)}.retry", type=ExchangeType.DIRECT, durable=True)


def retry_routing_key(rung: timedelta) -> str:
    """Routing key, on a retry exchange, of the queue that holds a message for `rung`."""
    return str(_milliseconds(rung))


def retry_queue_names(channel: Channel, ladder: Iterable[timedelta]) -> list[str]:
    """The queues where a channel's next attempts wait, one per rung."""
    return [f"{retry_exchange(channel).name}.{_milliseconds(rung)}" for rung in ladder]


def dead_letters() -> list[Binding]:
    """The archive of poison messages, and the copy from which their deliveries are ended."""
    return [
        # Every look at it returns what it has looked at, and that is counted.
        Binding(DEAD, _quorum_queue("notifications.dead", {"x-delivery-limit": ARCHIVE_DELIVERY_LIMIT})),
        Binding(DEAD, _quorum_queue("notifications.dead.inbox", {})),
    ]


def deliveries(channel: Channel) -> Binding:
    """What a channel's senders read; poison goes to `notifications.dead`."""
    queue = _quorum_queue(delivery_queue_name(channel), _dead_lettering(DEAD))
    return Binding(NOTIFICATIONS, queue, channel.value)


def retries(channel: Channel, ladder: Iterable[timedelta]) -> list[Binding]:
    """The way back to the channel, then the queues where its next attempts wait, one per rung."""
    exchange = retry_exchange(channel)
    return [
        Binding(exchange, deliveries(channel).queue, DUE_ROUTING_KEY),
        *(
            Binding(
                exchange,
                _quorum_queue(
                    f"{exchange.name}.{_milliseconds(rung)}",
                    # No x-expires: an expiring queue drops what it holds.
                    {"x-message-ttl": _milliseconds(rung), **_dead_lettering(exchange, DUE_ROUTING_KEY)},
                ),
                retry_routing_key(rung),
            )
            for rung in ladder
        ),
    ]


def results() -> Binding:
    """What the status writer reads."""
    queue = _quorum_queue("notifications.results", _dead_lettering(DEAD))
    return Binding(RESULTS, queue, RESULTS_ROUTING_KEY)


def _milliseconds(rung: timedelta) -> int:
    return round(rung / timedelta(milliseconds=1))


def _quorum_queue(name: str, arguments: QuorumQueueArgs) -> RabbitQueue:
    return RabbitQueue(
        name,
        queue_type=QueueType.QUORUM,
        durable=True,
        arguments={"x-delivery-limit": DELIVERY_LIMIT, **arguments},
    )


def _dead_lettering(exchange: RabbitExchange, routing_key: str | None = None) -> QuorumQueueArgs:
    # The default strategy loses messages when the target can not take them; this one needs reject-publish.
    arguments: QuorumQueueArgs = {
        "x-dead-letter-exchange": exchange.name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return arguments if routing_key is None else {**arguments, "x-dead-letter-routing-key": routing_key}
