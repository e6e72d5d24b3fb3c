"""The routes under `/v1/deliveries` and `/v1/retries`."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Query, Response

from notify_gateway.deliveries.filters import METADATA_PARAMETER
from notify_gateway.deliveries.queries import DeliveryQueries
from notify_gateway.deliveries.retries import DeliveryRetries, retry_rejected
from notify_gateway.deliveries.retry_jobs import RetryJobs, new_job
from notify_gateway.deliveries.schemas import (
    EXAMPLE_FILTERS,
    Delivery,
    DeliveryPage,
    DeliveryQuery,
    RetryCount,
    RetryFilter,
    RetryProgress,
)
from notify_gateway.deliveries.visibility import visible_to
from notify_gateway.http.authentication import AuthenticatedRoute, CanAdminister, CanRead
from notify_gateway.http.dependencies import provided
from notify_gateway.http.json_lists import json_page
from notify_gateway.http.problem_codes import ProblemCode
from notify_gateway.http.problems import COMMON_PROBLEMS, documented, found

router = APIRouter(prefix="/v1", tags=["deliveries"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)

Queries = Annotated[DeliveryQueries, Depends(provided(DeliveryQueries))]
Jobs = Annotated[RetryJobs, Depends(provided(RetryJobs))]
Retries = Annotated[DeliveryRetries, Depends(provided(DeliveryRetries))]
Id = Annotated[UUID, Path(alias="id")]
LOCATION = {"Location": {"description": "The URL of the job's progress.", "schema": {"type": "string"}}}


@router.get(
    "/deliveries",
    response_model=DeliveryPage,
    responses=documented(422, 504),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
async def list_deliveries(
    query: Annotated[DeliveryQuery, Query()], principal: CanRead, queries: Queries, response: Response
) -> Response:
    """List deliveries, those of newer notifications first, for example all that failed with a certain error."""
    page = await queries.page(principal.tenant, query)
    return await json_page(page.items, partial(visible_to, principal), page.next_cursor, response)


@router.get(
    "/deliveries/{id}",
    response_model_exclude_none=True,
    responses=documented(404, 422, 504),
)
async def get_delivery(id_: Id, principal: CanRead, queries: Queries) -> Delivery:
    """Retrieve a delivery with its attempts, for example by an id that you found in a log or a message."""
    return visible_to(principal, found(await queries.get(principal.tenant, id_), f"There is no delivery {id_}."))


@router.post(
    "/deliveries/{id}/retry",
    status_code=202,
    response_model_exclude_none=True,
    responses=documented(404, ProblemCode.NOT_RETRYABLE, 422, 504),
)
async def retry_delivery(id_: Id, principal: CanAdminister, queries: Queries, retries: Retries) -> Delivery:
    """Retry a failed delivery.

    The delivery starts a new round with a full budget of attempts. Earlier attempts stay in its history. A delivery
    can be retried 999 times.
    """
    retried = await retries.retry(principal.tenant, id_)
    delivery = found(await queries.get(principal.tenant, id_), f"There is no delivery {id_}.")
    if not retried:
        raise retry_rejected(delivery)
    return visible_to(principal, delivery)


@router.post(
    "/retries",
    status_code=202,
    response_model_exclude_none=True,
    responses={
        202: {"headers": LOCATION},
        **documented(400, 422, 429, ProblemCode.TOO_MANY_IN_PROGRESS, ProblemCode.TOO_MANY_RETRY_JOBS, 504),
    },
)
async def start_retries(
    body: Annotated[RetryFilter, Body(openapi_examples=EXAMPLE_FILTERS)],
    principal: CanAdminister,
    jobs: Jobs,
    response: Response,
) -> RetryProgress:
    """Start a job that retries all matching failed deliveries in the background.

    A tenant may have 100 unfinished jobs.
    """
    job = await jobs.start(new_job(principal.tenant, body))
    response.headers["Location"] = f"{router.prefix}/retries/{job.id}"
    return job


@router.post("/retries/preview", responses=documented(400, 422, 504))
async def preview_retries(
    body: Annotated[RetryFilter, Body(openapi_examples=EXAMPLE_FILTERS)], principal: CanAdminister, jobs: Jobs
) -> RetryCount:
    """Count the deliveries that a job with this filter would retry now."""
    return RetryCount(count=await jobs.count(new_job(principal.tenant, body)))


@router.get(
    "/retries/{id:uuid}",
    response_model_exclude_none=True,
    responses=documented(404, 422, 504),
)
async def get_retry_job(id_: Id, principal: CanAdminister, jobs: Jobs) -> RetryProgress:
    """Retrieve the progress of a job that retries deliveries."""
    return found(await jobs.find(principal.tenant, id_), f"There is no retry job {id_}.")
