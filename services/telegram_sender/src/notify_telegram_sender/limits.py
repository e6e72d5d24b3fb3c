"""Limit the calls to the Bot API, so that one tenant's long messages do not occupy all connections.

Each part of a long message is a message to Telegram, and counts towards its rates.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.call_slots import Quota
from notify_common.sending.provider_limits import ProviderLimits

from notify_telegram_sender.bot_api import PART_INTERVAL, is_split, split
from notify_telegram_sender.settings import TelegramSenderSettings

# A tenant's long messages may take one in so many connections, of the messages per second, and of the places to wait.
LONG_SHARE = 3


def telegram_limits(settings: TelegramSenderSettings) -> ProviderLimits:
    """Return the limits for calls to the Bot API.

    A message that is sent in parts occupies a connection for up to 16 seconds, and any other for a fraction of one.
    """
    limits = ProviderLimits(
        concurrency=settings.telegram_connections,
        rate=settings.telegram_rate,
        rate_per_recipient=settings.telegram_rate_per_chat,
    )
    # A call in progress sends a message per `PART_INTERVAL`, so all of them must not use up the rate either.
    most = min(settings.telegram_connections, (settings.telegram_rate or math.inf) * PART_INTERVAL)
    calls = max(1, int(most // LONG_SHARE))
    waiting = limits.prefetch(settings.concurrency, settings.provider_timeout) // LONG_SHARE

    def in_parts(request: DeliveryRequested) -> bool:
        # Messages with markup are never split.
        return settings.telegram_parse_mode is None and is_split(request.content.message)

    def quotas_of(request: DeliveryRequested) -> tuple[Quota, ...]:
        if not in_parts(request):
            return ()
        return (Quota(f"long messages of tenant {request.tenant or ''}", calls, waiting),)

    def further_messages_of(request: DeliveryRequested) -> Sequence[float]:
        if not in_parts(request):
            return ()
        return [number * PART_INTERVAL for number in range(1, len(split(request.content.message)))]

    return replace(limits, quotas_of=quotas_of, further_messages_of=further_messages_of)
