"""SMTP, against a server with STARTTLS and a login."""

from collections.abc import AsyncIterator
from email.header import decode_header, make_header
from pathlib import Path

import pytest
from notify_common.sending.provider import Provider, Unreachable
from notify_email_sender.smtp import Smtp
from support.conformance import Conformance, request
from support.smtp_peer import SmtpPeer

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
