"""The RabbitMQ topology: exchanges, queues and bindings. Each service declares the ones that it uses.

exchange `notifications` -> `notifications.<channel>`;
`notifications.<channel>.retry` -> `notifications.<channel>.retry.<delay-ms>`, and from there back to the channel;
`notifications.results` -> `notifications.results.<channel>`; `notifications.dead` -> an archive and the status writer's
inboxes;
`notifications.events` (topic, routing key `<channel>.<status>`, or `dropped`) -> the subscribers of events.
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

SHARED_RESULTS_ROUTING_KEY = "results"
DUE_ROUTING_KEY = "due"
DROPPED_ROUTING_KEY = "dropped"

# The limit is high, because each lost connection increments the count of every prefetched message, handled or not.
REDELIVERY_LIMIT = 100
# No outage reaches this limit. Without one, RabbitMQ 4 would apply its default of 20.
NO_REDELIVERY_LIMIT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue that receives the messages published to `exchange` with `routing_key`."""

    exchange: RabbitExchange
    queue: RabbitQueue
    routing_key: str = ""


def delivery_queue_name(channel: Channel) -> str:
    """Return the name of the queue that a channel's senders consume from."""
    return f"notifications.{channel}"


def retry_exchange(channel: Channel) -> RabbitExchange:
    """Return a channel's retry exchange. With a shared one, senders could write to other channels' retry queues."""
    return RabbitExchange(f"{delivery_queue_name(channel)}.retry", type=ExchangeType.DIRECT, durable=True)


def retry_routing_key(delay: timedelta) -> str:
    """Return the routing key for the retry queue that delays messages by `delay`."""
    return str(_milliseconds(delay))


def retry_queue_name(channel: Channel, delay: timedelta) -> str:
    """Return the name of the channel's retry queue that delays messages by `delay`."""
    return f"{retry_exchange(channel).name}.{_milliseconds(delay)}"


def dead_letters() -> list[Binding]:
    """Return the archive, and then the inboxes from which the status writer learns which deliveries have failed.

    Older status writers read only the first inbox, whose redelivery limit a long database outage may reach. Each inbox
    gets every dead letter, so that none is lost in an upgrade or a rollback.
    """
    return [
        # Listing the archive requeues every message, and RabbitMQ counts each time as a redelivery.
        Binding(DEAD, _quorum_queue("notifications.dead", {"x-delivery-limit": NO_REDELIVERY_LIMIT})),
        Binding(DEAD, _quorum_queue("notifications.dead.inbox", {})),
        Binding(DEAD, _quorum_queue("notifications.dead.failed", {"x-delivery-limit": NO_REDELIVERY_LIMIT})),
    ]


def deliveries(channel: Channel) -> Binding:
    """Return the queue that a channel's senders consume from; its dead letters go to `notifications.dead`."""
    queue = _quorum_queue(delivery_queue_name(channel), _dead_lettering(DEAD))
    return Binding(NOTIFICATIONS, queue, channel.value)


def retries(channel: Channel, delays: Iterable[timedelta]) -> list[Binding]:
    """Return the binding that sends due messages back to the channel's queue, and then one retry queue per delay."""
    exchange = retry_exchange(channel)
    bindings = [Binding(exchange, deliveries(channel).queue, DUE_ROUTING_KEY)]
    for delay in delays:
        # The queue has no x-expires, because an expired queue is deleted together with its messages.
        arguments = _dead_lettering(exchange, DUE_ROUTING_KEY) | {"x-message-ttl": _milliseconds(delay)}
        queue = _quorum_queue(retry_queue_name(channel, delay), arguments)
        bindings.append(Binding(exchange, queue, retry_routing_key(delay)))
    return bindings


def results(channel: Channel | None = None) -> Binding:
    """Return the queue of a channel's results or, without a channel, the queue to which older senders report.

    Status writers read both kinds; see `docs/decisions/0017-a-results-queue-per-channel.md`.
    """
    if channel is None:
        queue = _quorum_queue("notifications.results", _dead_lettering(DEAD))
        return Binding(RESULTS, queue, SHARED_RESULTS_ROUTING_KEY)
    arguments = _dead_lettering(DEAD) | {"x-delivery-limit": NO_REDELIVERY_LIMIT}
    return Binding(RESULTS, _quorum_queue(f"notifications.results.{channel}", arguments), channel.value)


def all_results() -> list[Binding]:
    """Return all queues from which status writers read results."""
    return [*map(results, Channel), results()]


def gateway() -> list[Binding]:
    """Return what a gateway declares."""
    return [*dead_letters(), *map(deliveries, Channel)]


def sender(channel: Channel, delays: Iterable[timedelta]) -> list[Binding]:
    """Return what a channel's senders declare."""
    return [*dead_letters(), results(channel), deliveries(channel), *retries(channel, delays)]


def status_writer() -> list[Binding]:
    """Return what a status writer declares."""
    return [*dead_letters(), *all_results()]


def _milliseconds(delay: timedelta) -> int:
    return round(delay / timedelta(milliseconds=1))


def _quorum_queue(name: str, arguments: QuorumQueueArgs) -> RabbitQueue:
    return RabbitQueue(
        name, queue_type=QueueType.QUORUM, durable=True, arguments={"x-delivery-limit": REDELIVERY_LIMIT, **arguments}
    )


def _dead_lettering(exchange: RabbitExchange, routing_key: str | None = None) -> QuorumQueueArgs:
    # The default strategy (at-most-once) loses messages that the target rejects. At-least-once needs reject-publish.
    arguments: QuorumQueueArgs = {
        "x-dead-letter-exchange": exchange.name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return arguments if routing_key is None else {**arguments, "x-dead-letter-routing-key": routing_key}
