"""Manage the API keys of the tenant."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from notify_client.methods import AsyncResource, Resource, async_listing, async_method, listing, method
from notify_client.models import CreatedKey, Key, Page, Scope
from notify_client.requests import Request, given, nothing, one, page, path


def create_key(
    *, scopes: Sequence[Scope], name: str = "", expires_at: datetime | None = None, test: bool = False
) -> Request[CreatedKey]:
    """Create a key. Only this response contains its `token`."""
    body = given(name=name, scopes=scopes, expires_at=expires_at, test=test)
    return Request(method="POST", path=path("keys"), body=body, read=one(CreatedKey), idempotent=False)


def list_keys(*, page_size: int | None = None, cursor: UUID | str | None = None) -> Request[Page[Key]]:
    """Iterate over the keys, newest first, with those that have been revoked or have expired."""
    return Request(method="GET", path=path("keys"), query=given(limit=page_size, cursor=cursor), read=page(Key))


def revoke_key(id: UUID | str) -> Request[None]:  # noqa: A002 - the API's name
    """Revoke a key."""
    return Request(method="DELETE", path=path("keys", id), read=nothing)


class Keys(Resource):
    """`client.keys`."""

    create = method(create_key)
    list = listing(list_keys)
    revoke = method(revoke_key)


class AsyncKeys(AsyncResource):
    """`client.keys`."""

    create = async_method(create_key)
    list = async_listing(list_keys)
    revoke = async_method(revoke_key)
