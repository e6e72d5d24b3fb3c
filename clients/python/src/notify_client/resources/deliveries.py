"""Find deliveries, and retry failed ones."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from notify_client.methods import AsyncResource, Resource, async_listing, async_method, listing, method
from notify_client.models import Channel, Delivery, DeliveryStatus, ErrorClass, Expansion, Page
from notify_client.requests import Request, given, metadata_filters, one, page, path


def get_delivery(id: UUID | str) -> Request[Delivery]:  # noqa: A002 - the API's name
    """Return a delivery with its attempts."""
    return Request(method="GET", path=path("deliveries", id), read=one(Delivery))


def list_deliveries(
    *,
    status: DeliveryStatus | Sequence[DeliveryStatus] | None = None,
    error_class: ErrorClass | None = None,
    channel: Channel | None = None,
    user_id: str | None = None,
    reference: str | None = None,
    metadata: Mapping[str, str] | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    expand: Sequence[Expansion] | None = None,
    page_size: int | None = None,
    cursor: UUID | str | None = None,
) -> Request[Page[Delivery]]:
    """Iterate over deliveries, those of newer notifications first.

    Without `user_id`, `reference` and `created_after`, the list covers the 24 hours before `created_before`, or before
    now. `expand` adds the `attempts` or the `content`.
    """
    query = given(
        status=status,
        error_class=error_class,
        channel=channel,
        user_id=user_id,
        reference=reference,
        created_after=created_after,
        created_before=created_before,
        expand=expand,
        limit=page_size,
        cursor=cursor,
    )
    query |= metadata_filters(metadata)
    return Request(method="GET", path=path("deliveries"), query=query, read=page(Delivery))


def retry_delivery(id: UUID | str) -> Request[Delivery]:  # noqa: A002 - the API's name
    """Start a new round of attempts for a failed delivery."""
    return Request(method="POST", path=path("deliveries", id, "retry"), read=one(Delivery), idempotent=False)


class Deliveries(Resource):
    """`client.deliveries`."""

    get = method(get_delivery)
    list = listing(list_deliveries)
    retry = method(retry_delivery)


class AsyncDeliveries(AsyncResource):
    """`client.deliveries`."""

    get = async_method(get_delivery)
    list = async_listing(list_deliveries)
    retry = async_method(retry_delivery)
