"""The routes under `/v1/keys`."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, HTTPException, Path, Query

from notify_gateway.api_keys.schemas import EXAMPLE_KEYS, CreatedKey, KeyPage, KeyQuery, KeyRequest
from notify_gateway.api_keys.tenant_keys import TenantKeys
from notify_gateway.http.authentication import AuthenticatedRoute, CanAdminister
from notify_gateway.http.dependencies import provided
from notify_gateway.http.problems import COMMON_PROBLEMS, documented

router = APIRouter(prefix="/v1/keys", tags=["keys"], responses=COMMON_PROBLEMS, route_class=AuthenticatedRoute)

Keys = Annotated[TenantKeys, Depends(provided(TenantKeys))]


@router.post("", status_code=201, response_model_exclude_none=True, responses=documented(400, 409, 422))
async def create_key(
    body: Annotated[KeyRequest, Body(openapi_examples=EXAMPLE_KEYS)], principal: CanAdminister, keys: Keys
) -> CreatedKey:
    """Create an API key of the same tenant.

    The response is the only one that contains the key itself. A key can grant only scopes that it has. If it expires,
    the keys that it creates must expire by then, too. A tenant that has 1,000 valid keys gets a 409.
    """
    return await keys.create(principal, body)


@router.get("", response_model_exclude_none=True, responses=documented(422, 504))
async def list_keys(query: Annotated[KeyQuery, Query()], principal: CanAdminister, keys: Keys) -> KeyPage:
    """List the tenant's API keys, newest first, including revoked and expired ones."""
    return await keys.page(principal.tenant, query)


@router.delete("/{id}", status_code=204, responses=documented(404, 422))
async def revoke_key(key_id: Annotated[UUID, Path(alias="id")], principal: CanAdminister, keys: Keys) -> None:
    """Revoke an API key of the same tenant, which may be the bootstrap key or the key of this request.

    Gateways may accept the key for up to 5 more seconds.
    """
    if not await keys.revoke(principal, key_id):
        raise HTTPException(404, f"There is no valid key {key_id}.")
