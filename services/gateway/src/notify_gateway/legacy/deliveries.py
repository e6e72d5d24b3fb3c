"""The routes under `/api/deliveries`."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Response

from notify_gateway.deliveries.queries import DeliveryQueries
from notify_gateway.deliveries.retries import DeliveryRetries, retry_rejected
from notify_gateway.deliveries.retry_jobs import RetryJobs, new_job
from notify_gateway.deliveries.schemas import RetryCount
from notify_gateway.deliveries.visibility import visible_to
from notify_gateway.http.authentication import AuthenticatedRoute, CanAdminister, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.problems import LEGACY_PROBLEMS, Problem, documented, found
from notify_gateway.legacy import schemas

router = APIRouter(
    prefix="/api/deliveries",
    tags=["deliveries"],
    responses=LEGACY_PROBLEMS,
    route_class=AuthenticatedRoute,
    deprecated=True,
)

Queries = Annotated[DeliveryQueries, Depends(provided(DeliveryQueries))]
Jobs = Annotated[RetryJobs, Depends(provided(RetryJobs))]
Retries = Annotated[DeliveryRetries, Depends(provided(DeliveryRetries))]
Id = Annotated[UUID, Path(alias="id")]
COUNTED: dict[str, Any] = {
    "model": RetryCount,
    "description": "The number of matching deliveries, if `dry_run` is set.",
}


@router.get("/{id:uuid}", responses=documented(404, 422, 504, model=Problem))
async def get_delivery(id_: Id, principal: CanRead, queries: Queries) -> schemas.LegacyDeliveryOfNotification:
    """Retrieve a delivery and the id of its notification.

    Use this to look up a delivery id that you found in a log or a message.
    """
    delivery = found(await queries.get(principal.tenant, id_), f"There is no delivery {id_}.")
    return schemas.delivery(visible_to(principal, delivery))


@router.post("/{id}/retry", status_code=202, responses=documented(404, 409, 422, 504, model=Problem))
async def retry_delivery(
    id_: Id, principal: CanAdminister, queries: Queries, retries: Retries
) -> schemas.LegacyDeliveryOfNotification:
    """Retry a failed delivery.

    The delivery starts a new round with a full budget of attempts. Earlier attempts stay in its history. A delivery
    can be retried 999 times.
    """
    retried = await retries.retry(principal.tenant, id_)
    delivery = found(await queries.get(principal.tenant, id_), f"There is no delivery {id_}.")
    if not retried:
        raise retry_rejected(delivery)
    return schemas.delivery(visible_to(principal, delivery))


@router.post(
    "/retry",
    status_code=202,
    response_model=schemas.LegacyRetryJob,
    responses={200: COUNTED, **documented(400, 422, 504, model=Problem)},
)
async def retry_deliveries(
    body: schemas.LegacyRetryRequest, principal: CanAdminister, jobs: Jobs, response: Response
) -> object:
    """Start a job that retries all matching failed deliveries in the background.

    With `dry_run`, the deliveries are counted but not retried. A tenant may have 100 unfinished jobs.
    """
    job = new_job(principal.tenant, body)
    if not body.dry_run:
        return schemas.LegacyRetryJob.model_construct(**vars(await jobs.start(job)))
    count = RetryCount(count=await jobs.count(job))
    return Response(count.model_dump_json(), 200, dict(response.headers), "application/json")


@router.get("/retry/{id}", responses=documented(404, 422, 504, model=Problem))
async def get_retry_job(id_: Id, principal: CanAdminister, jobs: Jobs) -> schemas.LegacyRetryJob:
    """Retrieve the progress of a retry job."""
    job = found(await jobs.find(principal.tenant, id_), f"There is no retry job {id_}.")
    return schemas.LegacyRetryJob.model_construct(**vars(job))
