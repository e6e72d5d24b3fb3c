"""The Telegram Bot API provider, tested against a fake server."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from notify_common.sending.errors import Throttled
from notify_common.sending.provider import Provider
from notify_telegram_sender.bot_api import PART_INTERVAL
from support.bot_api_peer import BotApiPeer
from support.conformance import Behaviour, Conformance, request


class TestBotApi(Conformance):
    @pytest.fixture
    async def peer(self) -> AsyncIterator[BotApiPeer]:
        peer = BotApiPeer()
        await peer.open()
        yield peer
        await peer.close()

    async def test_throttled_call_reports_the_retry_after_value_from_the_api(
        self, peer: BotApiPeer, provider: Provider
    ) -> None:
        peer.behaviour = Behaviour.THROTTLE
        with pytest.raises(Throttled) as raised:
            await provider.send(request(peer.recipient))
        assert raised.value.retry_after == timedelta(seconds=1)

    async def test_long_text_is_sent_in_parts(self, peer: BotApiPeer, provider: Provider) -> None:
        paragraphs = ["a" * 3000, "b" * 3000, "📦" * 3000]
        assert await provider.send(request(peer.recipient, "\n\n".join(paragraphs))) == "4"
        assert peer.received() == [*paragraphs[:2], "📦" * 2048, "📦" * 952]

    async def test_slow_responses_do_not_shift_the_later_parts(self, peer: BotApiPeer, provider: Provider) -> None:
        """Each part counts towards the rates at its planned time."""
        peer.response_time = 0.5
        await provider.send(request(peer.recipient, "x" * 4096 * 4))
        [(_, second, third, fourth)] = peer.sent_at.values()
        assert fourth - second < 2 * (PART_INTERVAL + peer.response_time)
        assert min(third - second, fourth - third) > PART_INTERVAL - peer.response_time

    async def test_text_is_sent_without_link_previews_or_markup(self, peer: BotApiPeer, provider: Provider) -> None:
        await provider.send(request(peer.recipient))
        assert peer.requests == [
            {"chat_id": "987654321", "text": "Your code: 11111", "link_preview_options": {"is_disabled": True}}
        ]
