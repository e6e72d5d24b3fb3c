"""A publisher to which the broker does not confirm some of the messages."""

import asyncio
from collections.abc import Sequence
from typing import Any

from notify_common.errors import PublishFailed
from notify_common.rabbitmq.publisher import ConfirmedPublisher, OutgoingMessage
from typing_extensions import override

NOT_CONFIRMED = PublishFailed("not confirmed")


class UnconfirmedPublisher(ConfirmedPublisher):
    """Messages with `unconfirmed_key` are unconfirmed until `ended` is set, as if their queue had lost its majority."""

    unconfirmed_key: str
    failure: PublishFailed
    began: asyncio.Event
    ended: asyncio.Event

    @override
    async def publish(self, messages: Sequence[OutgoingMessage], **options: Any) -> list[PublishFailed | None]:
        if messages[0].routing_key != self.unconfirmed_key:
            return await super().publish(messages, **options)
        self.began.set()
        await self.ended.wait()
        return [self.failure] * len(messages)


def unconfirmed(routing_key: str, failure: PublishFailed = NOT_CONFIRMED) -> type[UnconfirmedPublisher]:
    """Return a class of publishers that share their events."""

    class Unconfirmed(UnconfirmedPublisher):
        unconfirmed_key = routing_key
        began = asyncio.Event()
        ended = asyncio.Event()

    Unconfirmed.failure = failure
    return Unconfirmed
