"""`notify-gateway keys …`: create, list and revoke API keys."""

import argparse
import sys
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from notify_common.runtime.clock import utc_now
from notify_database.engine import PostgresSettings, create_engine
from pydantic import ValidationError
from sqlalchemy import Row

from notify_gateway.api_keys.schemas import KeyRequest
from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.http.principal import DEFAULT_TENANT, Scope

OPTIONS = {"name": "--name", "scopes": "--scope", "expires_at": "--expires"}
"""The option that sets each field of a `KeyRequest` that can be invalid."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `notify-gateway keys`."""
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="create a key; it is printed once and cannot be shown again")
    create.add_argument(
        "--tenant", type=_tenant, default=DEFAULT_TENANT, help="the tenant of the key (default: %(default)s)"
    )
    create.add_argument("--name", default="", help="a note on what the key is for")
    scopes = [scope.value for scope in Scope]
    create.add_argument("--scope", action="append", required=True, choices=scopes, help="grant a scope; repeatable")
    create.add_argument(
        "--expires",
        type=_time,
        metavar="TIME",
        help="reject the key from this day or time on, such as 2027-01-31 or 2027-01-31T18:00+01:00; the zone is UTC "
        "if none is given",
    )
    create.add_argument("--test", action="store_true", help="only simulate everything that is posted with the key")
    actions.add_parser("list", help="list all keys with their ids, tenants, scopes and validity")
    revoke = actions.add_parser("revoke", help="revoke a key; all gateways reject it within 5 s")
    revoke.add_argument("id", type=UUID)


async def run(settings: PostgresSettings, options: argparse.Namespace) -> bool:
    """Run one action; return whether it succeeded."""
    engine = create_engine(settings, pool_size=1)
    keys = ApiKeyStore(engine)
    try:
        if options.action == "create":
            return await _create(keys, options)
        if options.action == "list":
            now = utc_now()
            for key in await keys.list():
                print(_line(key, now))
        elif not await keys.revoke(options.id):
            print(f"There is no valid key {options.id}.", file=sys.stderr)
            return False
    finally:
        await engine.dispose()
    return True


async def _create(keys: ApiKeyStore, options: argparse.Namespace) -> bool:
    try:
        request = KeyRequest(name=options.name, scopes=options.scope, expires_at=options.expires, test=options.test)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            field = str(problem.get("ctx", {}).get("field") or problem["loc"][0])
            print(f"{OPTIONS[field]}: {problem['msg']}", file=sys.stderr)
        return False
    if (rejection := request.rejection_at(utc_now())) is not None:
        field, reason = rejection.split(": ", 1)
        print(f"{OPTIONS[field]}: {reason}", file=sys.stderr)
        return False
    scopes = frozenset(request.scopes)
    key_id, token = await keys.create(
        options.tenant, request.name, scopes, expires_at=request.expires_at, test=request.test
    )
    print(f"{key_id}  {token}")
    return True


def _line(key: Row[Any], now: datetime) -> str:
    if key.revoked_at is not None:
        state = f"revoked {_minute(key.revoked_at)}"
    elif key.expires_at is None:
        state = "valid"
    else:
        state = f"{'valid until' if key.expires_at > now else 'expired'} {_minute(key.expires_at)}"
    used = "unused" if key.last_used_at is None else f"used {_minute(key.last_used_at)}"
    owner = f"{key.id}  {key.tenant:<15} {','.join(key.scopes):<25} {'test' if key.test else 'live'}"
    return f"{owner}  {_minute(key.created_at)}  {state:<28}  {used:<21}  {key.name}"


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"


def _tenant(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time or a day, such as 2027-01-31") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
