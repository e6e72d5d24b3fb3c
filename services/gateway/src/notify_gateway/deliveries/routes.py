"""The routes under `/api/deliveries`."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Path, Response
from notify_common.contracts.messages import DeliveryStatus

from notify_gateway.deliveries.queries import DeliveryQueries
from notify_gateway.deliveries.retries import MAX_ROUNDS, DeliveryRetries
from notify_gateway.deliveries.retry_jobs import MAX_UNFINISHED, RetryJobs, new_job
from notify_gateway.deliveries.schemas import DeliveryOfNotification, RetryCount, RetryJobView, RetryRequest
from notify_gateway.deliveries.visibility import visible_to
from notify_gateway.http.authentication import AuthenticatedRoute, CanAdminister, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.problems import COMMON_PROBLEMS, RETRY_AFTER, documented, found

router = APIRouter(
    prefix="/api/deliveries", tags=["deliveries"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute
)

Queries = Annotated[DeliveryQueries, Depends(provided(DeliveryQueries))]
Jobs = Annotated[RetryJobs, Depends(provided(RetryJobs))]
Retries = Annotated[DeliveryRetries, Depends(provided(DeliveryRetries))]
Id = Annotated[UUID, Path(alias="id")]
COUNTED: dict[str, Any] = {
    "model": RetryCount,
    "description": "The number of matching deliveries, if `dry_run` is set.",
}


@router.get("/{id:uuid}", responses=documented(404, 422, 504))
async def get_delivery(id_: Id, principal: CanRead, queries: Queries) -> DeliveryOfNotification:
    """Retrieve a delivery and the id of its notification.

    Use this to look up a delivery id that you found in a log or a message.
    """
    return visible_to(principal, found(await queries.get(principal.tenant, id_), f"There is no delivery {id_}."))


@router.post("/{id}/retry", status_code=202, responses=documented(404, 409, 422, 504))
async def retry_delivery(
    id_: Id, principal: CanAdminister, queries: Queries, retries: Retries
) -> DeliveryOfNotification:
    """Retry a failed delivery.

    The delivery starts a new round with a full budget of attempts. Earlier attempts stay in its history. A delivery
    can be retried 999 times.
    """
    retried = await retries.retry(principal.tenant, id_)
    delivery = found(await queries.get(principal.tenant, id_), f"There is no delivery {id_}.")
    if not retried:
        if delivery.status is DeliveryStatus.FAILED and delivery.round >= MAX_ROUNDS:
            raise HTTPException(409, f"This delivery has been retried {MAX_ROUNDS - 1} times, which is the maximum.")
        raise HTTPException(409, f"Only a failed delivery can be retried; this one is {delivery.status}.")
    return visible_to(principal, delivery)


@router.post(
    "/retry", status_code=202, response_model=RetryJobView, responses={200: COUNTED, **documented(400, 422, 504)}
)
async def retry_deliveries(
    body: RetryRequest, principal: CanAdminister, jobs: Jobs, response: Response
) -> RetryJobView | Response:
    """Start a job that retries all matching failed deliveries in the background.

    With `dry_run`, the deliveries are counted but not retried. A tenant may have 100 unfinished jobs.
    """
    job = new_job(principal.tenant, body)
    if not body.dry_run:
        if (started := await jobs.start(job)) is None:
            detail = f"This tenant has {MAX_UNFINISHED} unfinished retry jobs; wait until one has finished."
            raise HTTPException(429, detail, {"Retry-After": str(RETRY_AFTER)})
        return started
    count = RetryCount(count=await jobs.count(job))
    return Response(count.model_dump_json(), 200, dict(response.headers), "application/json")


@router.get("/retry/{id}", responses=documented(404, 422, 504))
async def get_retry_job(id_: Id, principal: CanAdminister, jobs: Jobs) -> RetryJobView:
    """Retrieve the progress of a retry job."""
    return found(await jobs.find(principal.tenant, id_), f"There is no retry job {id_}.")
