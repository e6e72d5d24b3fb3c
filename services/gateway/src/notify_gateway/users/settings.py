"""Store a user's settings for a channel, if the principal may change them."""

from notify_common.contracts.channels import Channel

from notify_gateway.http.authentication import require_scope
from notify_gateway.http.principal import Principal, Scope
from notify_gateway.users.channels import UserChannels
from notify_gateway.users.schemas import UserChannel, UserChannelSettings, valid_recipient


async def store_settings(
    channels: UserChannels, principal: Principal, user: str, channel: Channel, settings: UserChannelSettings
) -> UserChannel:
    """Store the settings and return what is stored now; may raise 403 or `RequestValidationError`."""
    if "opted_out" in settings.model_fields_set and not settings.opted_out:
        require_scope(principal, Scope.OPT_OUTS_CLEAR)
    if settings.recipient is not None:
        settings = settings.model_copy(update={"recipient": valid_recipient(channel, settings.recipient)})
    return await channels.store(principal.tenant, user, channel, settings)
