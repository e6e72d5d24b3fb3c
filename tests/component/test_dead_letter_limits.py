"""The limits of the archives of dead letters: the oldest leave first, and nothing else waits or is lost."""

from collections.abc import Iterator, Mapping

import pytest
from notify_common.contracts import topology
from notify_common.contracts.channels import Channel
from notify_common.rabbitmq.connection import RabbitSettings
from support.amqp import Hand
from support.broker_users import installed_definitions
from support.servers import Servers
from support.services import eventually

ARCHIVES = [binding.queue.name for binding in topology.archives()]
ARCHIVE, INBOX = (binding.queue.name for binding in topology.dead_letters(Channel.TELEGRAM))
SHARED, *SHARED_INBOXES = (binding.queue.name for binding in topology.dead_letters())


@pytest.fixture(autouse=True)
def installed(servers: Servers, rabbit: RabbitSettings) -> Iterator[None]:
    with installed_definitions(servers, rabbit):
        yield


def limit(servers: Servers, rabbit: RabbitSettings, limits: Mapping[str, int]) -> None:
    """Change the limits of the installed policy, as an operator does."""
    policy = {"pattern": topology.ARCHIVE_PATTERN, "apply-to": "queues", "definition": dict(limits)}
    with servers.management() as management:
        path = f"/api/policies/{rabbit.rabbitmq_vhost}/{topology.ARCHIVE_POLICY}"
        management.put(path, json=policy).raise_for_status()


async def holds(hand: Hand, depths: Mapping[str, int]) -> None:
    async def reached() -> bool:
        return {queue: await hand.depth(queue) for queue in depths} == depths

    await eventually(reached, f"the queues hold {depths}")


async def test_rabbitmq_applies_the_limits_to_the_archives_only(servers: Servers, rabbit: RabbitSettings) -> None:
    expected = {name: dict(topology.ARCHIVE_LIMITS) for name in ARCHIVES}

    async def applied() -> bool:
        # The management API takes a few seconds to show a queue's policy.
        with servers.management() as management:
            queues = management.get(f"/api/queues/{rabbit.rabbitmq_vhost}").raise_for_status().json()
        policies = {queue["name"]: queue.get("effective_policy_definition") for queue in queues}
        return expected == {name: policy for name, policy in policies.items() if policy}

    await eventually(applied, "the archives have the limits, and no other queue has any")


async def test_full_archive_drops_its_oldest_messages_and_nothing_else(
    servers: Servers, rabbit: RabbitSettings, hand: Hand
) -> None:
    limit(servers, rabbit, {"max-length": 3})
    for number in range(6):
        await hand.publish("notifications.dead.telegram", "", str(number))
    await holds(hand, {ARCHIVE: 3, INBOX: 6, SHARED: 0})
    assert [(await hand.next_message(ARCHIVE)).body for _ in range(3)] == [b"3", b"4", b"5"]


async def test_messages_that_rabbitmq_dead_letters_do_not_wait_for_a_full_archive(
    servers: Servers, rabbit: RabbitSettings, hand: Hand
) -> None:
    limit(servers, rabbit, {"max-length-bytes": 10})
    source = await hand.channel.get_queue("notifications.telegram")
    for _ in range(5):
        await hand.publish("notifications", "telegram", b"seven..")
        message = await source.get()
        assert message is not None
        await message.reject(requeue=False)
    await holds(hand, {"notifications.telegram": 0, SHARED: 1, **dict.fromkeys(SHARED_INBOXES, 5)})


async def test_old_dead_letters_leave_the_archive(servers: Servers, rabbit: RabbitSettings, hand: Hand) -> None:
    limit(servers, rabbit, {"message-ttl": 200})
    await hand.publish("notifications.dead.telegram", "", b"old")
    await holds(hand, {ARCHIVE: 0, INBOX: 1})
