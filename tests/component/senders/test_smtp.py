"""The SMTP provider, tested against a server with STARTTLS and authentication."""

from base64 import b64encode
from collections.abc import AsyncIterator
from email.header import decode_header, make_header
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from notify_common.contracts.messages import EmailContent
from notify_common.sending.errors import Unreachable
from notify_common.sending.provider import Provider
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

    async def test_message_has_the_expected_headers_and_text(self, peer: SmtpPeer, provider: Provider) -> None:
        requested = request("a@bücher.example", "您的订单\n已发货。\n.\nEnde", "发货通知")
        await provider.send(requested)
        [message] = peer.messages
        assert message["From"] == "Example Shop <orders@example.org>"
        assert message["To"] == "a@xn--bcher-kva.example"
        assert message["Subject"] == "发货通知"
        assert message["Message-ID"] == f"<{requested.delivery_id}@example.org>"
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
    async def test_subject_cannot_inject_headers(self, peer: SmtpPeer, provider: Provider, subject: str) -> None:
        await provider.send(request(peer.recipient, "the text", subject))
        await provider.send(request(peer.recipient, f"{subject}\nthe text"))
        for message in peer.messages:
            assert message["Bcc"] is None
            assert set(message.keys()) == HEADERS
            assert message.get_content_type() == "text/plain"
        assert peer.received()[0] == "the text"
        decoded = str(make_header(decode_header(peer.raw[0]["Subject"])))
        assert decoded == " ".join(subject.split())

    async def test_long_list_unsubscribe_is_not_folded(self, peer: SmtpPeer) -> None:
        value = "<https://example.org/unsubscribe?token=" + "a" * 200 + ">"
        provider = Smtp(peer.settings(email_list_unsubscribe=value))
        await provider.send(request(peer.recipient))
        assert peer.raw[0]["List-Unsubscribe"] == value
        await provider.aclose()

    async def test_html_is_sent_as_an_alternative_to_the_text(self, peer: SmtpPeer, provider: Provider) -> None:
        html = "<p>Ваш заказ <b>5512</b></p>\n"
        await provider.send(request(peer.recipient, "Ваш заказ 5512", email=EmailContent(html=html)))
        [message] = peer.messages
        assert message.get_content_type() == "multipart/alternative"
        text, marked_up = message.iter_parts()
        assert (text.get_content_type(), marked_up.get_content_type()) == ("text/plain", "text/html")
        assert text.get_content().strip() == "Ваш заказ 5512"
        assert marked_up.get_content().replace("\r\n", "\n") == html
        assert not message.defects

    async def test_message_options_override_the_default_reply_to_and_list_unsubscribe(self, peer: SmtpPeer) -> None:
        provider = Smtp(
            peer.settings(email_reply_to="all@example.org", email_list_unsubscribe="<mailto:all@example.org>")
        )
        own = EmailContent(reply_to="one@bücher.example", list_unsubscribe="https://example.org/u?token=" + "x" * 200)
        await provider.send(request(peer.recipient))
        await provider.send(request(peer.recipient, email=own))
        first, second = peer.raw
        assert (first["Reply-To"], first["List-Unsubscribe"]) == ("all@example.org", "<mailto:all@example.org>")
        assert first["List-Unsubscribe-Post"] is None
        assert second["Reply-To"] == "one@xn--bcher-kva.example"
        assert second["List-Unsubscribe"] == f"<{own.list_unsubscribe}>"
        assert second["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"  # RFC 8058
        await provider.aclose()

    @pytest.mark.parametrize("subject", ["Your order", "您的订单已发货", None])
    async def test_dkim_signature_covers_the_message(self, peer: SmtpPeer, subject: str | None) -> None:
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
        public = b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

        def dns(name: bytes, timeout: float = 5) -> bytes | None:  # noqa: ARG001 - dkimpy's signature
            return b"v=DKIM1; k=rsa; p=" + public if name == b"s1._domainkey.example.org." else None

        provider = Smtp(peer.settings(email_dkim_selector="s1", email_dkim_key=pem.replace("\n", "\\n")))
        own = EmailContent(html="<p>x</p>", list_unsubscribe="https://example.org/u")
        await provider.send(request(peer.recipient, "Line one\n.\nline three ", subject, own))
        [content] = peer.contents
        assert dkim.verify(content, dnsfunc=dns)
        assert not dkim.verify(content.replace(b"One-Click", b"Two-Click"), dnsfunc=dns)
        assert not dkim.verify(content.replace(b"<p>", b"<b>").replace(b"PHA+", b"PGI+"), dnsfunc=dns)
        await provider.aclose()

    async def test_repeated_delivery_has_the_same_message_id(self, peer: SmtpPeer, provider: Provider) -> None:
        requested = request(peer.recipient)
        await provider.send(requested)
        await provider.send(requested.model_copy(update={"attempt": 2}))
        first, second = peer.messages
        assert first["Message-ID"] == second["Message-ID"]

    async def test_non_ascii_address_is_not_encoded(self, peer: SmtpPeer, provider: Provider) -> None:
        await provider.send(request("данные@example.org"))
        assert peer.messages[0]["To"] == "данные@example.org"

    async def test_subject_defaults_to_the_first_line_of_the_text(self, peer: SmtpPeer, provider: Provider) -> None:
        await provider.send(request(peer.recipient, "Line one\nand two"))
        await provider.send(request(peer.recipient, "x" * 1000))
        assert [message["Subject"] for message in peer.messages] == ["Line one", "x" * 77 + "…"]

    async def test_untrusted_certificate_is_refused(self, peer: SmtpPeer) -> None:
        stranger = peer.settings()
        stranger.smtp_ca_file = None
        provider = Smtp(stranger)
        with pytest.raises(Unreachable, match="tls"):
            await provider.send(request(peer.recipient))
        assert peer.messages == []
