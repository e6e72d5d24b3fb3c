"""Limit the calls to the Bot API, so that one tenant's long messages do not occupy all connections."""

from dataclasses import replace

from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.call_slots import Quota
from notify_common.sending.provider_limits import ProviderLimits

from notify_telegram_sender.bot_api import is_split
from notify_telegram_sender.settings import TelegramSenderSettings

LONG_SHARE = 3  # a tenant's long messages may take one in so many connections, and of the places to wait for them


def telegram_limits(settings: TelegramSenderSettings) -> ProviderLimits:
    """Return the limits for calls to the Bot API.

    A message that is sent in parts occupies a connection for up to 16 seconds, and any other for a fraction of one.
    """
    limits = ProviderLimits(
        concurrency=settings.telegram_connections,
        rate=settings.telegram_rate,
        rate_per_recipient=settings.telegram_rate_per_chat,
    )
    calls = max(1, settings.telegram_connections // LONG_SHARE)
    waiting = limits.prefetch(settings.concurrency, settings.provider_timeout) // LONG_SHARE

    def quotas_of(request: DeliveryRequested) -> tuple[Quota, ...]:
        # Messages with markup are never split.
        if settings.telegram_parse_mode is not None or not is_split(request.content.message):
            return ()
        return (Quota(f"long messages of tenant {request.tenant or ''}", calls, waiting),)

    return replace(limits, quotas_of=quotas_of)
