"""The routes under `/v1/users`."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, HTTPException, Path, Response
from notify_common.contracts.channels import Channel

from notify_gateway.http.authentication import AuthenticatedRoute, CanReadRecipients, CanWriteRecipients
from notify_gateway.http.dependencies import provided
from notify_gateway.http.fields import UserKey
from notify_gateway.http.principal import Scope
from notify_gateway.http.problems import COMMON_PROBLEMS, documented, found
from notify_gateway.users.channels import UserChannels
from notify_gateway.users.schemas import EXAMPLE_SETTINGS, UserChannel, UserChannelPage, UserChannelSettings
from notify_gateway.users.settings import store_settings

router = APIRouter(prefix="/v1/users", tags=["users"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)

Channels = Annotated[UserChannels, Depends(provided(UserChannels))]
User = Annotated[UserKey, Path(alias="user_id")]


@router.get(
    "/{user_id}/channels",
    response_model_exclude_none=True,
    responses=documented(404, 422, 504),
)
async def list_user_channels(user: User, principal: CanReadRecipients, channels: Channels) -> UserChannelPage:
    """List a user's stored recipients and opt-outs. There is at most one item for each channel."""
    return UserChannelPage(items=await channels.list_of_user(principal.tenant, user))


@router.get(
    "/{user_id}/channels/{channel}",
    response_model_exclude_none=True,
    responses=documented(404, 422, 504),
)
async def get_user_channel(
    user: User, channel: Channel, principal: CanReadRecipients, channels: Channels
) -> UserChannel:
    """Retrieve a user's stored recipient and opt-out for one channel."""
    stored = {each.channel: each for each in await channels.list_of_user(principal.tenant, user)}
    return found(stored.get(channel), f"User {user} has no stored {channel} channel.")


@router.put(
    "/{user_id}/channels/{channel}",
    response_model=UserChannel,
    response_model_exclude_none=True,
    responses={204: {"description": "Stored. The key may not read it."}, **documented(400, 404, 422)},
)
async def put_user_channel(
    user: User,
    channel: Channel,
    body: Annotated[UserChannelSettings, Body(openapi_examples=EXAMPLE_SETTINGS)],
    principal: CanWriteRecipients,
    channels: Channels,
    response: Response,
) -> UserChannel | Response:
    """Store a user's recipient for a channel, or the user's opt-out from the channel.

    Fields that the request leaves out keep their values. A stored recipient is used for new notifications that name no
    recipient. An opt-out also cancels notifications that are already scheduled.

    `"opted_out": false` requires the scope `opt-outs:clear`, even if the user has not opted out: otherwise, a 403 would
    reveal who has. Only a key with the scope `recipients:read` gets what is stored; for others, the status is 204.
    """
    stored = await store_settings(channels, principal, user, channel, body)
    return stored if Scope.RECIPIENTS_READ in principal.scopes else Response(None, 204, dict(response.headers))


@router.delete(
    "/{user_id}/channels/{channel}",
    status_code=204,
    responses=documented(404, 422),
)
async def delete_user_channel(user: User, channel: Channel, principal: CanWriteRecipients, channels: Channels) -> None:
    """Delete a user's stored recipient for one channel. An opt-out from the channel is kept."""
    if not await channels.delete_recipient(principal.tenant, user, channel):
        raise HTTPException(404, f"User {user} has no stored {channel} recipient.")
