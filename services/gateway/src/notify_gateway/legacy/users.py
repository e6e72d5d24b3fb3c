"""The routes under `/api/users`."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Response
from notify_common.contracts.channels import Channel

from notify_gateway.http.authentication import AuthenticatedRoute, CanReadRecipients, CanWriteRecipients
from notify_gateway.http.dependencies import provided
from notify_gateway.http.fields import UserId
from notify_gateway.http.principal import Scope
from notify_gateway.http.problems import LEGACY_PROBLEMS, Problem, documented, found
from notify_gateway.legacy.schemas import LegacyUserChannel
from notify_gateway.users import schemas as current
from notify_gateway.users.channels import UserChannels
from notify_gateway.users.schemas import UserChannelSettings
from notify_gateway.users.settings import store_settings

router = APIRouter(
    prefix="/api/users", tags=["users"], responses=LEGACY_PROBLEMS, route_class=AuthenticatedRoute, deprecated=True
)

Channels = Annotated[UserChannels, Depends(provided(UserChannels))]
UserIdInPath = Annotated[UserId, Path(alias="user_id")]


@router.get("/{user_id}/channels", responses=documented(404, 422, 504, model=Problem))
async def list_user_channels(
    user_id: UserIdInPath, principal: CanReadRecipients, channels: Channels
) -> list[LegacyUserChannel]:
    """List a user's stored recipients and opt-outs."""
    return [_view(stored) for stored in await channels.list_of_user(principal.tenant, str(user_id))]


@router.get("/{user_id}/channels/{channel}", responses=documented(404, 422, 504, model=Problem))
async def get_user_channel(
    user_id: UserIdInPath, channel: Channel, principal: CanReadRecipients, channels: Channels
) -> LegacyUserChannel:
    """Retrieve a user's stored recipient and opt-out for one channel."""
    stored = {each.channel: each for each in await channels.list_of_user(principal.tenant, str(user_id))}
    return _view(found(stored.get(channel), f"User {user_id} has no stored {channel} channel."))


@router.put(
    "/{user_id}/channels/{channel}",
    response_model=LegacyUserChannel,
    responses={204: {"description": "Stored. The key may not read it."}, **documented(400, 404, 422, model=Problem)},
)
async def put_user_channel(
    user_id: UserIdInPath,
    channel: Channel,
    body: UserChannelSettings,
    principal: CanWriteRecipients,
    channels: Channels,
    response: Response,
) -> LegacyUserChannel | Response:
    """Store a user's recipient for a channel, or the user's opt-out from the channel.

    Fields that the request leaves out keep their values. A stored recipient is used for new notifications that name no
    recipient. An opt-out also cancels notifications that are already scheduled.

    `"opted_out": false` requires the scope `opt-outs:clear`, even if the user has not opted out: otherwise, a 403 would
    reveal who has. Only a key with the scope `recipients:read` gets what is stored; for others, the status is 204.
    """
    stored = await store_settings(channels, principal, str(user_id), channel, body)
    return _view(stored) if Scope.RECIPIENTS_READ in principal.scopes else Response(None, 204, dict(response.headers))


@router.delete("/{user_id}/channels/{channel}", status_code=204, responses=documented(404, 422, model=Problem))
async def delete_user_channel(
    user_id: UserIdInPath, channel: Channel, principal: CanWriteRecipients, channels: Channels
) -> None:
    """Delete a user's stored recipient for one channel. An opt-out from the channel is kept."""
    if not await channels.delete_recipient(principal.tenant, str(user_id), channel):
        raise HTTPException(404, f"User {user_id} has no stored {channel} recipient.")


def _view(stored: current.UserChannel) -> LegacyUserChannel:
    return LegacyUserChannel.model_construct(**vars(stored))
