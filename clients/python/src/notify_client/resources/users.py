"""Store the recipients and opt-outs of users."""

from notify_client.methods import AsyncResource, Resource, async_listing, async_method, listing, method
from notify_client.models import Channel, Page, UserChannel
from notify_client.requests import UNSET, Request, Unset, nothing, one, page, path


def list_user_channels(user_id: str) -> Request[Page[UserChannel]]:
    """Iterate over what is stored for a user."""
    return Request(method="GET", path=path("users", user_id, "channels"), read=page(UserChannel))


def get_user_channel(user_id: str, channel: Channel) -> Request[UserChannel]:
    """Return what is stored for a user and a channel."""
    return Request(method="GET", path=path("users", user_id, "channels", channel), read=one(UserChannel))


def set_user_channel(
    user_id: str,
    channel: Channel,
    *,
    recipient: str | Unset | None = UNSET,
    opted_out: bool | Unset = UNSET,
) -> Request[UserChannel | None]:
    """Store a recipient or an opt-out. What is not given stays as it is; the recipient None deletes the stored one.

    Returns what is stored now, or None if the key lacks the scope `recipients:read`.
    """
    fields = {"recipient": recipient, "opted_out": opted_out}
    body = {name: value for name, value in fields.items() if value is not UNSET}
    return Request(method="PUT", path=path("users", user_id, "channels", channel), body=body, read=_one_or_none)


def delete_user_channel(user_id: str, channel: Channel) -> Request[None]:
    """Delete the stored recipient. An opt-out stays."""
    return Request(method="DELETE", path=path("users", user_id, "channels", channel), read=nothing)


def _one_or_none(content: bytes) -> UserChannel | None:
    return UserChannel.model_validate_json(content) if content else None


class Users(Resource):
    """`client.users`."""

    list = listing(list_user_channels)
    get = method(get_user_channel)
    set = method(set_user_channel)
    delete = method(delete_user_channel)


class AsyncUsers(AsyncResource):
    """`client.users`."""

    list = async_listing(list_user_channels)
    get = async_method(get_user_channel)
    set = async_method(set_user_channel)
    delete = async_method(delete_user_channel)
