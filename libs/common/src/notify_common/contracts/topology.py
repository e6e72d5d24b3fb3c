"""The RabbitMQ topology: exchanges, queues and bindings. Each service declares the ones that it uses.

exchange `notifications` -> `notifications.<channel>`;
`notifications.<channel>.retry` -> `notifications.<channel>.retry.<delay-ms>`, and from there back to the channel;
`notifications.results.<channel>` -> a queue of the same name; `notifications.results` -> these queues and one of the
same name, for older senders;
`notifications.dead.<channel>` -> an archive of the same name and the status writer's inbox; `notifications.dead` -> the
same for what RabbitMQ dead-letters itself;
`notifications.events` (topic, routing key `<channel>.<status>`, or `dropped`) -> the subscribers of events.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import chain
from types import MappingProxyType

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


# RabbitMQ applies this policy to the archives, so that dead letters cannot fill the disk. It is a policy, because the
# arguments of an existing queue cannot change. The oldest messages leave first, and publishers never wait.
ARCHIVE_POLICY = "notifications.dead"
ARCHIVE_PATTERN = rf"^notifications\.dead(\.({'|'.join(Channel)}))?$"
ARCHIVE_LIMITS = MappingProxyType(
    {
        "max-length": 100_000,
        "max-length-bytes": 256 * 2**20,
        "message-ttl": 30 * 24 * 3600 * 1000,  # milliseconds
    }
)


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


def results_exchange(channel: Channel) -> RabbitExchange:
    """Return the exchange to which a channel's senders report; with a shared one, they could report for others."""
    return RabbitExchange(f"{RESULTS.name}.{channel}", type=ExchangeType.DIRECT, durable=True)


def dead_letter_exchange(queue: str) -> RabbitExchange:
    """Return the exchange to which the consumers of `queue` publish its dead letters.

    Each channel has its own, so that the status writer knows which channel a dead letter belongs to, and so that one
    channel's dead letters cannot push those of another out of an archive.
    """
    channel = channel_of(queue)
    return DEAD if channel is None else _dead_letter_exchange(channel)


def channel_of(queue: str) -> Channel | None:
    """Return the only channel whose senders can write to `queue`; None if it is shared, or not ours."""
    return _channels_of_queues().get(queue)


def dead_letters(channel: Channel | None = None) -> list[Binding]:
    """Return a channel's archive, and then the inbox from which the status writer learns what has failed.

    Without a channel, return those of the messages that RabbitMQ dead-letters itself, which have one more inbox: older
    status writers read only the first one, whose redelivery limit a long database outage may reach. Each inbox gets
    every dead letter, so that none is lost in an upgrade or a rollback.
    """
    exchange = DEAD if channel is None else _dead_letter_exchange(channel)
    # Listing the archive requeues every message, and RabbitMQ counts each time as a redelivery.
    archive, inbox = (
        Binding(exchange, _quorum_queue(name, {"x-delivery-limit": NO_REDELIVERY_LIMIT}))
        for name in (exchange.name, f"{exchange.name}.failed")
    )
    if channel is not None:
        return [archive, inbox]
    return [archive, Binding(DEAD, _quorum_queue(f"{DEAD.name}.inbox", {})), inbox]


def archives() -> list[Binding]:
    """Return all archives: the shared one, and then one per channel."""
    return [dead_letters()[0], *(dead_letters(channel)[0] for channel in Channel)]


def all_dead_letters() -> list[Binding]:
    """Return all archives and inboxes."""
    return [*dead_letters(), *chain.from_iterable(map(dead_letters, Channel))]


def deliveries(channel: Channel) -> Binding:
    """Return the queue that a channel's senders consume from; what RabbitMQ dead-letters goes to `notifications.dead`.

    The arguments of an existing queue cannot change, so RabbitMQ's own dead letters still share one exchange.
    """
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
    exchange, arguments = results_exchange(channel), _dead_lettering(DEAD) | {"x-delivery-limit": NO_REDELIVERY_LIMIT}
    return Binding(exchange, _quorum_queue(exchange.name, arguments), channel.value)


def all_results() -> list[Binding]:
    """Return all queues from which status writers read results."""
    return [*map(results, Channel), results()]


def results_of_older_senders() -> list[Binding]:
    """Return the bindings of the exchange to which older senders report the results of all channels."""
    return [Binding(RESULTS, results(channel).queue, channel.value) for channel in Channel]


def gateway() -> list[Binding]:
    """Return what a gateway declares."""
    return [*all_dead_letters(), *map(deliveries, Channel)]


def sender(channel: Channel, delays: Iterable[timedelta]) -> list[Binding]:
    """Return what a channel's senders declare."""
    ends = [*dead_letters(), *dead_letters(channel), results(channel)]
    return [*ends, deliveries(channel), *retries(channel, delays)]


def status_writer() -> list[Binding]:
    """Return what a status writer declares."""
    return [*all_dead_letters(), *all_results(), *results_of_older_senders()]


@cache
def _channels_of_queues() -> Mapping[str, Channel]:
    return {
        binding.queue.name: channel
        for channel in Channel
        for binding in (deliveries(channel), results(channel), *dead_letters(channel))
    }


def _dead_letter_exchange(channel: Channel) -> RabbitExchange:
    return RabbitExchange(f"{DEAD.name}.{channel}", type=ExchangeType.FANOUT, durable=True)


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
