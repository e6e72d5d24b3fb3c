"""The webhook provider, tested against a receiver that verifies signatures."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import httpcore
import pytest
from notify_common.runtime.networks import networks
from notify_common.sending.errors import PermanentFailure, TemporaryFailure, Throttled, UnknownOutcome, Unreachable
from notify_common.sending.provider import Provider
from notify_webhook_sender.addresses import is_in, is_public
from notify_webhook_sender.webhook import Webhook, broken
from support.conformance import SECRET, Behaviour, Conformance, request
from support.webhook_peer import WebhookPeer, key


class TestWebhook(Conformance):
    @pytest.fixture
    async def peer(self, tmp_path: Path) -> AsyncIterator[WebhookPeer]:
        peer = WebhookPeer(tmp_path)
        await peer.open()
        yield peer
        await peer.close()

    async def test_repeated_delivery_has_the_same_webhook_id(self, peer: WebhookPeer, provider: Provider) -> None:
        requested = request(peer.recipient, "您的订单", "发货通知")
        requested = requested.model_copy(update={"notification_id": UUID("01a20fef-757b-7769-8f68-f865c55d4831")})
        for _ in range(2):
            assert await provider.send(requested) == str(requested.delivery_id)
        assert {each.headers["webhook-id"] for each in peer.requests} == {str(requested.delivery_id)}
        assert {each.headers["host"] for each in peer.requests} == {peer.recipient.split("/")[2]}
        assert peer.payloads()[0] == {
            "type": "notification",
            "timestamp": "2026-11-24T23:41:21.147000+00:00",
            "data": {
                "notification_id": str(requested.notification_id),
                "user_id": 1,
                "user": "1",
                "subject": "发货通知",
                "message": "您的订单",
            },
        }

    async def test_both_secrets_sign_during_rotation(self, peer: WebhookPeer) -> None:
        provider = Webhook(peer.settings(f"{key('the next secret of them all')} {key(SECRET)}"))
        await provider.send(request(peer.recipient))
        assert len(peer.requests[0].headers["webhook-signature"].split()) == 2
        await provider.aclose()

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    async def test_redirect_is_not_followed(self, peer: WebhookPeer, provider: Provider, status: int) -> None:
        peer.answers[Behaviour.ACCEPT] = (status, {"Location": f"{peer.recipient}/elsewhere"}, b"")
        with pytest.raises(TemporaryFailure, match=f"http_{status}"):
            await provider.send(request(peer.recipient))
        assert [each.path for each in peer.requests] == ["/hooks"]

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::]", "[::ffff:127.0.0.1]", "2130706433"])
    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_internal_address_is_refused(self, peer: WebhookPeer, scheme: str, host: str) -> None:
        provider = Webhook(peer.settings(key(SECRET), webhook_allowed_networks="192.0.2.0/24"))
        url = f"{scheme}://{host}:{peer.recipient.rpartition(':')[2]}"
        with pytest.raises(PermanentFailure, match="address_refused"):
            await provider.send(request(url))
        assert peer.connections == 0
        await provider.aclose()

    async def test_untrusted_certificate_is_refused(self, peer: WebhookPeer) -> None:
        provider = Webhook(peer.settings(key(SECRET), webhook_ca_file=None))
        with pytest.raises(Unreachable, match="tls"):
            await provider.send(request(peer.recipient))
        await provider.aclose()

    @pytest.mark.parametrize(
        "url", ["ftp://example.org", "https://", "https://user:pass@example.org/", "nonsense", f"https://h/{'é' * 500}"]
    )
    async def test_invalid_url_is_a_permanent_failure(self, provider: Provider, url: str) -> None:
        with pytest.raises(PermanentFailure, match="bad_address"):
            await provider.send(request(url))

    async def test_invalid_hostname_is_a_permanent_failure(self, provider: Provider) -> None:
        with pytest.raises(PermanentFailure, match="bad_address"):
            await provider.send(request(f"https://{'x' * 64}.example/"))

    async def test_unresolvable_hostname_is_unreachable(self, provider: Provider) -> None:
        with pytest.raises(Unreachable, match="dns"):
            await provider.send(request("https://hooks.nowhere.example/"))

    @pytest.mark.parametrize(
        ("status", "retry_after", "wait"),
        [
            (429, "7", timedelta(seconds=7)),
            (503, "7", timedelta(seconds=7)),
            (429, "-7", timedelta()),
            (429, "999999999999", timedelta(hours=1)),
            (429, "soon", None),
            (429, format_datetime(datetime(2000, 1, 1, tzinfo=UTC), usegmt=True), timedelta()),
            (429, format_datetime(datetime(2900, 1, 1, tzinfo=UTC), usegmt=True), timedelta(hours=1)),
        ],
    )
    async def test_retry_after_from_a_busy_receiver_is_honoured(
        self, peer: WebhookPeer, provider: Provider, status: int, retry_after: str, wait: timedelta | None
    ) -> None:
        peer.answers[Behaviour.ACCEPT] = (status, {"Retry-After": retry_after}, b"")
        with pytest.raises(Throttled) as raised:
            await provider.send(request(peer.recipient))
        assert raised.value.retry_after == wait

    async def test_success_status_counts_even_if_the_response_body_is_incomplete(
        self, peer: WebhookPeer, provider: Provider
    ) -> None:
        peer.answers[Behaviour.ACCEPT] = (200, {"Content-Length": "10"}, b"half")
        async with asyncio.timeout(0.5):
            assert await provider.send(request(peer.recipient))

    async def test_receiver_that_requires_a_client_certificate_is_a_provider_failure(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        peer = WebhookPeer(tmp_path / "other", wants_client=True)
        await peer.open()
        provider = peer.provider()
        # The receiver sends a TLS alert or resets the connection.
        with pytest.raises((Unreachable, UnknownOutcome)):
            await provider.send(request(peer.recipient))
        await provider.aclose()
        await peer.close()

    async def test_success_status_counts_however_long_the_response_body_is(
        self, peer: WebhookPeer, provider: Provider
    ) -> None:
        peer.answers[Behaviour.ACCEPT] = (200, {"Content-Length": "1000000"}, b"x" * 20_000)
        assert await provider.send(request(peer.recipient))


def test_tls_alert_means_unreachable_rather_than_an_unknown_outcome() -> None:
    alert, noise = ssl.SSLError(1, "no certificate"), ssl.SSLError(1, "wrong version")
    alert.reason, noise.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED", "WRONG_VERSION_NUMBER"
    assert isinstance(broken(alert), Unreachable)
    assert isinstance(broken(noise), UnknownOutcome)
    assert isinstance(broken(httpcore.ReadError()), UnknownOutcome)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - nothing listens on it
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d70e", True),
        ("2002:0a00:0001::", False),
        ("fec0::1", False),
        ("::7f00:1", False),
        ("::ffff:0:a9fe:a9fe", False),
        ("64:ff9b:1::a9fe:a9fe", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("192.88.99.1", False),
        ("192.0.0.9", False),
        ("192.0.0.10", False),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
        ("100.100.100.200", False),
        ("fd20:ce::254", False),
        ("::ffff:168.63.129.16", False),
        ("64:ff9b::a83f:8110", False),
        ("2002:a83f:8110::1", False),
        ("2001:0:808:808::1", False),
        ("::808:808", False),
    ],
)
def test_internal_and_reserved_addresses_are_not_public(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public


@pytest.mark.parametrize(
    ("address", "allowed", "permitted"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("169.254.1.1", "169.254.0.0/16", True),
        ("169.254.169.254", "169.254.0.0/16", False),
        ("169.254.169.254", "0.0.0.0/0", False),
        ("169.254.169.254", "169.254.169.254/32", True),
        ("169.254.169.254", "169.254.0.0/16 169.254.169.254", True),
        ("169.254.170.2", "169.254.170.0/24", False),
        ("100.100.100.200", "100.64.0.0/10", False),
        ("168.63.129.16", "168.63.0.0/16", False),
        ("192.0.0.192", "192.0.0.0/24", False),
        ("fd00:ec2::254", "fd00::/8", False),
        ("fd00:ec2::254", "fd00:ec2::254/128", True),
        ("fd20:ce::254", "fd00::/8", False),
        ("::ffff:169.254.169.254", "169.254.0.0/16", False),
        ("64:ff9b::a9fe:a9fe", "64:ff9b::/96", False),
        ("64:ff9b::a01:203", "64:ff9b::/96", True),
    ],
)
def test_allowed_network_does_not_allow_the_metadata_service_of_a_cloud(
    address: str, allowed: str, permitted: bool
) -> None:
    assert is_in(ip_address(address), networks(allowed)) is permitted
