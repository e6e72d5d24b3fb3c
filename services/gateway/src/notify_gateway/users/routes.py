"""The routes below `/api/users`."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path
from notify_common.contracts.channels import Channel

from notify_gateway.http.authentication import AuthenticatedRoute, CanRead, CanSend
from notify_gateway.http.dependencies import provided
from notify_gateway.http.fields import UserId
from notify_gateway.http.problems import COMMON_PROBLEMS, documented
from notify_gateway.users.channels import UserChannels
from notify_gateway.users.schemas import UserChannelSettings, UserChannelView, valid_recipient

router = APIRouter(prefix="/api/users", tags=["users"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)

Channels = Annotated[UserChannels, Depends(provided(UserChannels))]
UserIdInPath = Annotated[UserId, Path(alias="user_id")]


@router.get("/{user_id}/channels", responses=documented(422))
async def list_user_channels(user_id: UserIdInPath, principal: CanRead, channels: Channels) -> list[UserChannelView]:
    """Where a user is reached, and which channels the user does not want."""
    return await channels.of_user(principal.tenant, user_id)


@router.get("/{user_id}/channels/{channel}", responses=documented(404, 422))
async def get_user_channel(
    user_id: UserIdInPath, channel: Channel, principal: CanRead, channels: Channels
) -> UserChannelView:
    """What is stored of one channel of a user."""
    for stored in await channels.of_user(principal.tenant, user_id):
        if stored.channel is channel:
            return stored
    raise HTTPException(404, f"Nothing is stored of {channel} of user {user_id}.")


@router.put("/{user_id}/channels/{channel}", responses=documented(400, 422))
async def put_user_channel(
    user_id: UserIdInPath, channel: Channel, body: UserChannelSettings, principal: CanSend, channels: Channels
) -> UserChannelView:
    """Store where a user is reached over a channel, or that the user does not want it.

    The recipient goes with notifications that are posted from then on and name none. That a user has opted out holds
    for what is scheduled, too.
    """
    settings = body
    if body.recipient is not None:
        settings = body.model_copy(update={"recipient": valid_recipient(channel, body.recipient)})
    return await channels.store(principal.tenant, user_id, channel, settings)


@router.delete("/{user_id}/channels/{channel}", status_code=204, responses=documented(404, 422))
async def delete_user_channel(user_id: UserIdInPath, channel: Channel, principal: CanSend, channels: Channels) -> None:
    """Forget what is stored of a channel of a user."""
    if not await channels.forget(principal.tenant, user_id, channel):
        raise HTTPException(404, f"Nothing is stored of {channel} of user {user_id}.")
