"""The command `python -m notify_local up | servers | services | demo [FILE]`, which `make up` and `make demo` run."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from notify_local.console import CannotRun, say
from notify_local.demo import run_demo
from notify_local.folder import StackFolder
from notify_local.stack import SERVICES, running_servers, running_services, running_system

INTERRUPTED = 130
DEFAULT_FILE = Path("examples/notifications.csv")
MAX_REPLICAS = 20


async def _up(folder: StackFolder, scale: dict[str, int]) -> None:
    async with running_system(folder, show_logs=True, scale=scale) as stack:
        say(ready_message(folder, stack.addresses))
        await asyncio.Event().wait()


def ready_message(folder: StackFolder, addresses: Mapping[str, str]) -> str:
    """Return what `make up` prints when all services are ready."""
    gateway = addresses["GATEWAY_URL"]
    ui = urlsplit(addresses["RABBITMQ_MANAGEMENT_URL"])
    return f"""
Ready.
  Console      {gateway}/
  API          {gateway}/v1/notifications
  Docs         {gateway}/docs
  RabbitMQ UI  http://{ui.hostname}:{ui.port}  (user {ui.username}, password {ui.password})
  Addresses    {folder.stack_env}

Try it, in another terminal:
  curl -i {gateway}/v1/notifications -H 'Content-Type: application/json' \\
    -d '{{"user_id": "123", "channels": ["telegram"], "message": "Your code: 11111"}}'
or, in this folder:
  . .venv/bin/activate && export NOTIFY_URL={gateway}
  notify send --user 123 --channel telegram "Your code: 11111"

Ctrl-C stops everything.
"""


async def _servers(folder: StackFolder) -> None:
    async with running_servers(folder):
        say(f"PostgreSQL and RabbitMQ are ready; their addresses are in {folder.stack_env}. Ctrl-C stops them.")
        await asyncio.Event().wait()


async def _services(folder: StackFolder, scale: dict[str, int]) -> None:
    async with running_services(folder, scale=scale) as stack:
        say(f"Ready: {stack.addresses['GATEWAY_URL']}/v1/notifications. Ctrl-C stops the services.")
        await asyncio.Event().wait()


async def _until_signal(work: Coroutine[Any, Any, int | None], *, code_when_stopped: int) -> int | None:
    """Run `work`. If a signal cancels it, return `code_when_stopped`; later signals do not interrupt its shutdown."""
    task = asyncio.create_task(work)
    signalled = False

    def stop() -> None:
        nonlocal signalled
        if not signalled:
            signalled = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        return code_when_stopped


def _scale(argument: str) -> tuple[str, int]:
    service, _, number = argument.partition("=")
    if service not in SERVICES or not number.isdecimal() or not 1 <= int(number) <= MAX_REPLICAS:
        raise argparse.ArgumentTypeError(
            f"{argument!r} is not SERVICE=NUMBER: use {' | '.join(SERVICES)} and a number from 1 to {MAX_REPLICAS}"
        )
    return service, int(number)


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(prog="python -m notify_local", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".local"), help="the folder for data, logs and addresses")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="run the whole system in the foreground")
    commands.add_parser("servers", help="run only PostgreSQL and RabbitMQ")
    services = commands.add_parser(
        "services", help="run only the services, with the servers set in POSTGRES_* and RABBITMQ_*"
    )
    for command in (up, services):
        command.add_argument(
            "--scale", type=_scale, nargs="+", default=[], metavar="SERVICE=NUMBER", help="run replicas of SERVICE"
        )
    demo = commands.add_parser("demo", help="send a CSV file of notifications and follow each one until it is final")
    demo.add_argument("file", type=Path, nargs="?", default=DEFAULT_FILE)
    arguments = parser.parse_args()
    folder = StackFolder(arguments.folder.resolve())
    commands_by_name: dict[str, Callable[[], Coroutine[Any, Any, int | None]]] = {
        "up": lambda: _up(folder, dict(arguments.scale)),
        "servers": lambda: _servers(folder),
        "services": lambda: _services(folder, dict(arguments.scale)),
        "demo": lambda: run_demo(folder, arguments.file),
    }
    try:
        # Servers are normally stopped by a signal, but a demo that is stopped by one has failed.
        stopped = INTERRUPTED if arguments.command == "demo" else 0
        sys.exit(asyncio.run(_until_signal(commands_by_name[arguments.command](), code_when_stopped=stopped)))
    except CannotRun as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
