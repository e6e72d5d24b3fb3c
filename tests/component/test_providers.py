"""Each provider against a real peer. What all must do stands in `Conformance`, which a new one inherits."""

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from email.header import decode_header, make_header
from pathlib import Path
from uuid import uuid4

import pytest
from notify_common.channels import Channel
from notify_common.messages import Content, DeliveryRequested
from notify_common.sending.provider import (
    PermanentFailure,
    Provider,
    ProviderFailure,
    TemporaryFailure,
    Throttled,
    UnknownOutcome,
    Unreachable,
)
from notify_email_sender.smtp import Smtp
from support.peers import SECRET, Behaviour, BotApiPeer, Peer, SmtpPeer


class Conformance:
    """What a provider does, whatever it sends over. A subclass has the fixture `peer`."""

    @pytest.fixture
    async def provider(self, peer: Peer) -> AsyncIterator[Provider]:
        provider = peer.provider()
        yield provider
        await provider.aclose()

    @pytest.fixture
    def request_(self, peer: Peer) -> DeliveryRequested:
        return request(peer.recipient)

    async def test_what_it_takes_is_received_once(
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
    async def test_a_refusal_says_what_is_to_be_done_and_the_next_one_is_sent(
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

    async def test_a_peer_that_is_away_is_unreachable_and_found_again(
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

    async def test_a_call_can_be_cut_off(self, peer: Peer, provider: Provider, request_: DeliveryRequested) -> None:
        peer.behaviour = Behaviour.HANG
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await provider.send(request_)
        peer.behaviour = Behaviour.ACCEPT
        await provider.send(request_)
        assert peer.received() == [request_.content.message]

    async def test_many_at_once_arrive_once_each(self, peer: Peer, provider: Provider) -> None:
        requests = [request(peer.recipient, f"message {number}") for number in range(20)]
        await asyncio.gather(*map(provider.send, requests))
        assert sorted(peer.received()) == sorted(each.content.message for each in requests)

    async def test_connections_are_used_again(self, peer: Peer, provider: Provider) -> None:
        for number in range(5):
            await provider.send(request(peer.recipient, f"message {number}"))
        assert peer.connections == 1

    async def test_a_secret_that_is_refused_is_no_deliverys_fault(
        self, peer: Peer, request_: DeliveryRequested
    ) -> None:
        provider = peer.provider(SECRET[:-1])
        with pytest.raises(Unreachable):
            await provider.send(request_)
        await provider.aclose()

    async def test_the_secret_is_never_told(
        self, peer: Peer, provider: Provider, request_: DeliveryRequested, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        told: list[str] = []
        for behaviour in (*Behaviour, None):
            if behaviour is None:
                await peer.close()
            else:
                peer.behaviour = behaviour
            try:
                async with asyncio.timeout(0.1 if behaviour is Behaviour.HANG else 10):
                    await provider.send(request_)
            except (ProviderFailure, TimeoutError) as error:
                told += [repr(error), repr(error.__cause__), repr(error.__context__), str(getattr(error, "text", ""))]
        own = [record.getMessage() for record in caplog.records if record.name != "mail.log"]  # that is the peer's
        for secret in (SECRET, b64encode(SECRET.encode()).decode(), b64encode(f"\0orders\0{SECRET}".encode()).decode()):
            assert secret not in "\n".join([*told, *own])

    async def test_nobody_can_be_reached_without_a_recipient(self, provider: Provider) -> None:
        with pytest.raises(PermanentFailure, match="no_recipient"):
            await provider.send(request(None))


def request(recipient: str | None, message: str = "Your code: 11111", subject: str | None = None) -> DeliveryRequested:
    return DeliveryRequested(
        delivery_id=uuid4(),
        notification_id=uuid4(),
        user_id=1,
        channel=Channel.EMAIL,
        recipient=recipient,
        content=Content(message=message, subject=subject),
    )


HEADERS = {
    "Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding",
    "MIME-Version",
}  # fmt: skip


class TestSmtp(Conformance):
    @pytest.fixture
    async def peer(self, tmp_path: Path) -> AsyncIterator[SmtpPeer]:
        peer = SmtpPeer(tmp_path)
        await peer.open()
        yield peer
        await peer.close()

    async def test_a_message_is_what_it_should_be(self, peer: SmtpPeer, provider: Provider) -> None:
        wanted = request("a@bücher.example", "您的订单\n已发货。\n.\nEnde", "发货通知")
        await provider.send(wanted)
        [message] = peer.messages
        assert message["From"] == "Example Shop <orders@example.org>"
        assert message["To"] == "a@xn--bcher-kva.example"
        assert message["Subject"] == "发货通知"
        assert message["Message-ID"] == f"<{wanted.delivery_id}@example.org>"
        assert message["Auto-Submitted"] == "auto-generated"
        assert message.get_content_type() == "text/plain"
        assert peer.received() == ["您的订单\n已发货。\n.\nEnde"]
        assert not message.defects

    @pytest.mark.parametrize(
        "subject",
        [
            "=?utf-8?q?foo=0D=0ABcc:_evil@example.org?=",
            "=?utf-8?q?foo=0D=0A=0D=0A<h1>?=",
            "line\u2028separator\x0band\x85more",
            "x" * 500,
            "é" * 500,
        ],
    )
    async def test_nothing_in_a_subject_is_more_than_a_subject(
        self, peer: SmtpPeer, provider: Provider, subject: str
    ) -> None:
        await provider.send(request(peer.recipient, "the text", subject))
        await provider.send(request(peer.recipient, f"{subject}\nthe text"))
        for message in peer.messages:
            assert message["Bcc"] is None
            assert set(message.keys()) == HEADERS
            assert message.get_content_type() == "text/plain"
        assert peer.received()[0] == "the text"
        told = str(make_header(decode_header(peer.raw[0]["Subject"])))
        assert told == " ".join(subject.split())

    async def test_a_long_list_unsubscribe_is_one_line(self, peer: SmtpPeer) -> None:
        value = "<https://example.org/unsubscribe?token=" + "a" * 200 + ">"
        provider = Smtp(peer.settings(email_list_unsubscribe=value))
        await provider.send(request(peer.recipient))
        assert peer.raw[0]["List-Unsubscribe"] == value
        await provider.aclose()

    async def test_a_repeat_has_the_same_message_id(self, peer: SmtpPeer, provider: Provider) -> None:
        wanted = request(peer.recipient)
        await provider.send(wanted)
        await provider.send(wanted.model_copy(update={"attempt": 2}))
        first, second = peer.messages
        assert first["Message-ID"] == second["Message-ID"]

    async def test_an_address_that_is_not_ascii_is_written_as_it_is(self, peer: SmtpPeer, provider: Provider) -> None:
        await provider.send(request("данные@example.org"))
        assert peer.messages[0]["To"] == "данные@example.org"

    async def test_a_text_without_subject_has_its_first_line(self, peer: SmtpPeer, provider: Provider) -> None:
        await provider.send(request(peer.recipient, "Line one\nand two"))
        await provider.send(request(peer.recipient, "x" * 1000))
        assert [message["Subject"] for message in peer.messages] == ["Line one", "x" * 77 + "…"]

    async def test_a_certificate_that_nobody_vouches_for_is_refused(self, peer: SmtpPeer) -> None:
        stranger = peer.settings()
        stranger.smtp_ca_file = None
        provider = Smtp(stranger)
        with pytest.raises(Unreachable, match="tls"):
            await provider.send(request(peer.recipient))
        assert peer.messages == []


class TestBotApi(Conformance):
    @pytest.fixture
    async def peer(self) -> AsyncIterator[BotApiPeer]:
        peer = BotApiPeer()
        await peer.open()
        yield peer
        await peer.close()

    async def test_it_says_how_long_to_wait(self, peer: BotApiPeer, provider: Provider) -> None:
        peer.behaviour = Behaviour.THROTTLE
        with pytest.raises(Throttled) as raised:
            await provider.send(request(peer.recipient))
        assert raised.value.retry_after == timedelta(seconds=1)

    async def test_a_long_text_is_sent_in_parts(self, peer: BotApiPeer, provider: Provider) -> None:
        paragraphs = ["a" * 3000, "b" * 3000, "📦" * 3000]
        assert await provider.send(request(peer.recipient, "\n\n".join(paragraphs))) == "4"
        assert peer.received() == [*paragraphs[:2], "📦" * 2048, "📦" * 952]

    async def test_links_are_not_shown_and_nothing_is_marked_up(self, peer: BotApiPeer, provider: Provider) -> None:
        await provider.send(request(peer.recipient))
        assert peer.requests == [
            {"chat_id": "987654321", "text": "Your code: 11111", "link_preview_options": {"is_disabled": True}}
        ]
