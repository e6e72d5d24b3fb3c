"""The conformance suite for providers: each provider's tests inherit it and supply a peer to send to."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Protocol

import pytest
from notify_common.contracts.channels import Channel
from notify_common.contracts.messages import Content, DeliveryRequested, EmailContent
from notify_common.sending.errors import (
    PermanentFailure,
    ProviderFailure,
    TemporaryFailure,
    Throttled,
    UnknownOutcome,
    Unreachable,
)
from notify_common.sending.provider import Provider
from uuid_utils.compat import uuid7

SECRET = "1234567:a-secret-that-nobody-sees"


class Behaviour(StrEnum):
    """The way a peer treats messages."""

    ACCEPT = "accept"
    PERMANENT = "permanent"
    TEMPORARY = "temporary"
    THROTTLE = "throttle"
    HANG = "hang"
    BREAK = "break"
    """Receive the whole message, and close the connection without a response."""
    CUT_IN_DATA = "cut in data"
    """Close the connection before the message is complete (mail servers only)."""


class Peer(Protocol):
    """A server that a provider talks to."""

    behaviour: Behaviour
    connections: int
    """The number of connections accepted so far."""
    recipient: str
    """A recipient that the peer accepts messages for."""

    def provider(self, secret: str = SECRET) -> Provider:
        """Return a provider that sends to this peer."""

    def received(self) -> list[str]:
        """Return the texts of the accepted messages."""

    async def open(self) -> None:
        """Start listening; after `close`, on the same port as before."""

    async def close(self) -> None:
        """Stop listening, and close all connections."""


class Conformance:
    """The tests that every provider must pass; a subclass defines the fixture `peer`."""

    @pytest.fixture
    async def provider(self, peer: Peer) -> AsyncIterator[Provider]:
        provider = peer.provider()
        yield provider
        await provider.aclose()

    @pytest.fixture
    def request_(self, peer: Peer) -> DeliveryRequested:
        return request(peer.recipient)

    async def test_accepted_message_is_received_once(
        self, peer: Peer, provider: Provider, request_: DeliveryRequested
    ) -> None:
        assert await provider.send(request_)
        assert peer.received() == [request_.content.message]

    @pytest.mark.parametrize(
        ("behaviour", "kind"),
        [
            (Behaviour.PERMANENT, PermanentFailure),
            (Behaviour.TEMPORARY, TemporaryFailure),
            (Behaviour.THROTTLE, Throttled),
            (Behaviour.BREAK, UnknownOutcome),
        ],
    )
    async def test_failure_is_classified_and_the_next_message_is_sent(
        self,
        peer: Peer,
        provider: Provider,
        request_: DeliveryRequested,
        behaviour: Behaviour,
        kind: type[ProviderFailure],
    ) -> None:
        peer.behaviour = behaviour
        with pytest.raises(ProviderFailure) as raised:
            await provider.send(request_)
        assert type(raised.value) is kind
        assert peer.recipient not in f"{raised.value.code} {raised.value.text}"
        peer.behaviour = Behaviour.ACCEPT
        await provider.send(request_)
        assert peer.received() == [request_.content.message]

    async def test_sending_raises_unreachable_until_the_peer_is_back(
        self, peer: Peer, provider: Provider, request_: DeliveryRequested
    ) -> None:
        await provider.send(request_)
        await peer.close()
        for _ in range(2):
            with pytest.raises((Unreachable, UnknownOutcome)):
                await provider.send(request_)
        with pytest.raises(Unreachable):
            await provider.send(request_)
        await peer.open()
        await provider.send(request_)
        assert len(peer.received()) == 2

    async def test_provider_works_after_a_cancelled_call(
        self, peer: Peer, provider: Provider, request_: DeliveryRequested
    ) -> None:
        peer.behaviour = Behaviour.HANG
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await provider.send(request_)
        peer.behaviour = Behaviour.ACCEPT
        await provider.send(request_)
        assert peer.received() == [request_.content.message]

    async def test_each_concurrent_message_arrives_once(self, peer: Peer, provider: Provider) -> None:
        requests = [request(peer.recipient, f"message {number}") for number in range(20)]
        await asyncio.gather(*map(provider.send, requests))
        assert sorted(peer.received()) == sorted(each.content.message for each in requests)

    async def test_connections_are_reused(self, peer: Peer, provider: Provider) -> None:
        for number in range(5):
            await provider.send(request(peer.recipient, f"message {number}"))
        assert peer.connections == 1

    async def test_rejected_credentials_raise_unreachable(self, peer: Peer, request_: DeliveryRequested) -> None:
        provider = peer.provider(SECRET[:-1])
        with pytest.raises(Unreachable):
            await provider.send(request_)
        await provider.aclose()

    async def test_secret_never_appears_in_errors_or_logs(
        self, peer: Peer, provider: Provider, request_: DeliveryRequested, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        errors: list[str] = []
        for behaviour in (*Behaviour, None):
            if behaviour is None:
                await peer.close()
            else:
                peer.behaviour = behaviour
            try:
                async with asyncio.timeout(0.1 if behaviour is Behaviour.HANG else 10):
                    await provider.send(request_)
            except (ProviderFailure, TimeoutError) as error:
                errors += [repr(error), repr(error.__cause__), repr(error.__context__), str(getattr(error, "text", ""))]
        logged = [record.getMessage() for record in caplog.records if record.name != "mail.log"]  # not the peer's log
        for secret in (SECRET, b64encode(SECRET.encode()).decode(), b64encode(f"\0orders\0{SECRET}".encode()).decode()):
            assert secret not in "\n".join([*errors, *logged])

    async def test_missing_recipient_is_a_permanent_failure(self, provider: Provider) -> None:
        with pytest.raises(PermanentFailure, match="no_recipient"):
            await provider.send(request(None))


def request(
    recipient: str | None,
    message: str = "Your code: 11111",
    subject: str | None = None,
    email: EmailContent | None = None,
) -> DeliveryRequested:
    return DeliveryRequested(
        delivery_id=uuid7(),
        notification_id=uuid7(),
        user_id=1,
        channel=Channel.EMAIL,
        recipient=recipient,
        content=Content(message=message, subject=subject, email=email),
    )
