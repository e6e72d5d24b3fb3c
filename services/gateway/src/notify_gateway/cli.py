"""The operator's commands: `notify-gateway keys …` and `notify-gateway dead …`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from notify_common.rabbitmq.connection import BROKER_ERRORS
from notify_common.runtime.settings import ServiceSettings, load_settings
from notify_database.errors import DatabaseUnavailable

from notify_gateway.api_keys import commands as keys
from notify_gateway.dead_letters import commands as dead_letters


class OperatorSettings(ServiceSettings, dead_letters.DeadLetterSettings):
    """The settings for the operator's commands."""


def run_command(arguments: Sequence[str]) -> None:
    """Run one command, then exit with status 0 if it succeeded and 1 if it failed."""
    parser = argparse.ArgumentParser(prog="notify-gateway", description="Run the gateway if no command is given.")
    commands = parser.add_subparsers(dest="command", required=True)
    keys.add_arguments(commands.add_parser("keys", help="manage API keys"))
    dead_letters.add_arguments(commands.add_parser("dead", help="inspect, requeue and drop dead letters"))
    options = parser.parse_args(arguments)
    settings = load_settings(OperatorSettings)
    run = keys.run if options.command == "keys" else dead_letters.run
    try:
        succeeded = asyncio.run(run(settings, options))
    except DatabaseUnavailable as unavailable:
        sys.exit(f"PostgreSQL is unavailable: {unavailable}")
    except BROKER_ERRORS as error:
        sys.exit(f"RabbitMQ error: {error!r}")
    sys.exit(0 if succeeded else 1)
