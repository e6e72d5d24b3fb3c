"""The routes below `/api/deliveries`."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Path, Response

from notify_gateway.deliveries.queries import DeliveryQueries
from notify_gateway.deliveries.retries import DeliveryRetries
from notify_gateway.deliveries.retry_jobs import RetryJobs, new_job
from notify_gateway.deliveries.schemas import DeliveryOfNotification, RetryCount, RetryJobView, RetryRequest
from notify_gateway.http.authentication import AuthenticatedRoute, CanAdminister, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.problems import COMMON_PROBLEMS, documented

router = APIRouter(
    prefix="/api/deliveries", tags=["deliveries"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute
)

Queries = Annotated[DeliveryQueries, Depends(provided(DeliveryQueries))]
Jobs = Annotated[RetryJobs, Depends(provided(RetryJobs))]
Retries = Annotated[DeliveryRetries, Depends(provided(DeliveryRetries))]
Id = Annotated[UUID, Path(alias="id")]


@router.get("/{id:uuid}", responses=documented(404, 422))
async def get_delivery(id_: Id, principal: CanRead, queries: Queries) -> DeliveryOfNotification:
    """One delivery, and of which notification it is: logs and messages name it."""
    return await _delivery(queries, principal.tenant, id_)


@router.post("/{id}/retry", status_code=202, responses=documented(404, 409, 422))
async def retry_delivery(
    id_: Id, principal: CanAdminister, queries: Queries, retries: Retries
) -> DeliveryOfNotification:
    """Put a failed delivery back, as a new round with a new budget; its history stays."""
    retried = await retries.retry(principal.tenant, id_)
    delivery = await _delivery(queries, principal.tenant, id_)
    if not retried:
        raise HTTPException(409, f"Only a failed delivery can be retried; this one is {delivery.status}.")
    return delivery


@router.post(
    "/retry",
    status_code=202,
    response_model=RetryJobView,
    responses={200: {"model": RetryCount, "description": "`dry_run`: how many match."}, **documented(400, 422)},
)
async def retry_deliveries(
    body: RetryRequest, principal: CanAdminister, jobs: Jobs, retries: Retries, response: Response
) -> RetryJobView | Response:
    """Put back all failed deliveries that match, in the background; `dry_run` only counts them."""
    job = new_job(principal.tenant, body)
    if not body.dry_run:
        return await jobs.start(job)
    count = RetryCount(count=await retries.count(job))
    return Response(count.model_dump_json(), 200, dict(response.headers), "application/json")


@router.get("/retry/{id}", responses=documented(404, 422))
async def get_retry_job(id_: Id, principal: CanAdminister, jobs: Jobs) -> RetryJobView:
    """How far a retry of many is."""
    job = await jobs.get(principal.tenant, id_)
    if job is None:
        raise HTTPException(404, f"There is no retry {id_}.")
    return job


async def _delivery(queries: DeliveryQueries, tenant: str, delivery_id: UUID) -> DeliveryOfNotification:
    delivery = await queries.get(tenant, delivery_id)
    if delivery is None:
        raise HTTPException(404, f"There is no delivery {delivery_id}.")
    return delivery
