"""The operator's commands: `notify-gateway keys …`, `dead …` and `reconcile`."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence

from notify_common.rabbitmq.connection import BROKER_ERRORS
from notify_common.runtime.settings import ServiceSettings, load_settings
from notify_database.errors import DatabaseUnavailable

from notify_gateway.api_keys import commands as keys
from notify_gateway.dead_letters import commands as dead_letters
from notify_gateway.reconciliation import commands as reconciliation


class OperatorSettings(ServiceSettings, dead_letters.DeadLetterSettings, reconciliation.ReconcileSettings):
    """The settings for the operator's commands."""


COMMANDS: Mapping[str, Callable[[OperatorSettings, argparse.Namespace], Coroutine[None, None, bool]]] = {
    "keys": keys.run,
    "dead": dead_letters.run,
    "reconcile": reconciliation.run,
}


def run_command(arguments: Sequence[str]) -> None:
    """Run one command, then exit with status 0 if it succeeded and 1 if it failed."""
    parser = argparse.ArgumentParser(prog="notify-gateway", description="Run the gateway if no command is given.")
    commands = parser.add_subparsers(dest="command", required=True)
    keys.add_arguments(commands.add_parser("keys", help="manage API keys"))
    dead_letters.add_arguments(commands.add_parser("dead", help="inspect, requeue and drop dead letters"))
    reconciliation.add_arguments(
        commands.add_parser("reconcile", help="compare PostgreSQL and RabbitMQ after a restore (docs/operations.md)")
    )
    options = parser.parse_args(arguments)
    settings = load_settings(OperatorSettings)
    try:
        succeeded = asyncio.run(COMMANDS[options.command](settings, options))
    except DatabaseUnavailable as unavailable:
        sys.exit(f"PostgreSQL is unavailable: {unavailable}")
    except BROKER_ERRORS as error:
        sys.exit(f"RabbitMQ error: {error!r}")
    sys.exit(0 if succeeded else 1)
