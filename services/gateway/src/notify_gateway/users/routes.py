"""The routes under `/api/users`."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path
from notify_common.contracts.channels import Channel

from notify_gateway.http.authentication import AuthenticatedRoute, CanRead, CanSend
from notify_gateway.http.dependencies import provided
from notify_gateway.http.fields import UserId
from notify_gateway.http.problems import COMMON_PROBLEMS, documented, found
from notify_gateway.users.channels import UserChannels
from notify_gateway.users.schemas import UserChannelSettings, UserChannelView, valid_recipient

router = APIRouter(prefix="/api/users", tags=["users"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)

Channels = Annotated[UserChannels, Depends(provided(UserChannels))]
UserIdInPath = Annotated[UserId, Path(alias="user_id")]


@router.get("/{user_id}/channels", responses=documented(422, 504))
async def list_user_channels(user_id: UserIdInPath, principal: CanRead, channels: Channels) -> list[UserChannelView]:
    """List a user's stored recipients and opt-outs."""
    return await channels.list_of_user(principal.tenant, user_id)


@router.get("/{user_id}/channels/{channel}", responses=documented(404, 422, 504))
async def get_user_channel(
    user_id: UserIdInPath, channel: Channel, principal: CanRead, channels: Channels
) -> UserChannelView:
    """Retrieve a user's stored recipient and opt-out for one channel."""
    stored = {each.channel: each for each in await channels.list_of_user(principal.tenant, user_id)}
    return found(stored.get(channel), f"User {user_id} has no stored {channel} channel.")


@router.put("/{user_id}/channels/{channel}", responses=documented(400, 422))
async def put_user_channel(
    user_id: UserIdInPath, channel: Channel, body: UserChannelSettings, principal: CanSend, channels: Channels
) -> UserChannelView:
    """Store a user's recipient for a channel, or the user's opt-out from the channel.

    Fields that the request leaves out keep their values. A stored recipient is used for new notifications that name no
    recipient. An opt-out also cancels notifications that are already scheduled.
    """
    if body.recipient is not None:
        body = body.model_copy(update={"recipient": valid_recipient(channel, body.recipient)})
    return await channels.store(principal.tenant, user_id, channel, body)


@router.delete("/{user_id}/channels/{channel}", status_code=204, responses=documented(404, 422))
async def delete_user_channel(user_id: UserIdInPath, channel: Channel, principal: CanSend, channels: Channels) -> None:
    """Delete a user's stored recipient and opt-out for one channel."""
    if not await channels.delete(principal.tenant, user_id, channel):
        raise HTTPException(404, f"User {user_id} has no stored {channel} channel.")
