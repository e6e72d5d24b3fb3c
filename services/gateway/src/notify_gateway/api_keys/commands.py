"""`notify-gateway keys …`: create, list and revoke API keys."""

import argparse
import sys
from uuid import UUID

from notify_database.engine import PostgresSettings, create_engine

from notify_gateway.api_keys.store import ApiKeyStore
from notify_gateway.http.authentication import DEFAULT_TENANT, Scope


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `notify-gateway keys`."""
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="create a key; it is printed once and cannot be shown again")
    create.add_argument("--tenant", default=DEFAULT_TENANT, help="the tenant of the key (default: %(default)s)")
    create.add_argument("--name", default="", help="a note on what the key is for")
    scopes = [scope.value for scope in Scope]
    create.add_argument("--scope", action="append", required=True, choices=scopes, help="grant a scope; repeatable")
    actions.add_parser("list", help="list all keys with their ids, tenants and scopes")
    revoke = actions.add_parser("revoke", help="revoke a key; all gateways reject it within 5 s")
    revoke.add_argument("id", type=UUID)


async def run(settings: PostgresSettings, options: argparse.Namespace) -> bool:
    """Run one action; return whether it succeeded."""
    engine = create_engine(settings, pool_size=1)
    keys = ApiKeyStore(engine)
    try:
        if options.action == "create":
            key_id, token = await keys.create(options.tenant, options.name, frozenset(map(Scope, options.scope)))
            print(f"{key_id}  {token}")
        elif options.action == "list":
            for key in await keys.list():
                state = f"revoked {key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "valid"
                created = f"{key.created_at:%Y-%m-%d %H:%M}"
                print(f"{key.id}  {key.tenant:<15} {','.join(key.scopes):<25} {created}  {state:<24} {key.name}")
        elif not await keys.revoke(options.id):
            print(f"There is no valid key {options.id}.", file=sys.stderr)
            return False
    finally:
        await engine.dispose()
    return True
