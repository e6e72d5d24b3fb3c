"""The entry point: run the gateway or an operator's command."""

import sys
from contextlib import aclosing

from notify_common.runtime.process import run, serve
from notify_common.runtime.settings import load_settings

from notify_gateway.application import ROLE, Gateway
from notify_gateway.cli import run_command
from notify_gateway.http.server import LimitedHttpProtocol
from notify_gateway.http_api import create_app
from notify_gateway.settings import GatewaySettings


async def run_gateway(settings: GatewaySettings) -> None:
    """Run the gateway until SIGTERM."""
    async with aclosing(Gateway(settings, settings.tracing(ROLE))) as gateway:
        await serve(
            create_app(gateway),
            host=settings.app_host,
            port=settings.app_port,
            work=gateway.work,
            http=LimitedHttpProtocol,
            also=(settings.health_host, settings.health_port),
            draining=gateway.readiness.drain,
            drain_for=settings.shutdown_delay,
            stopping=gateway.event_hub.close,
        )


def main() -> None:
    """Run the gateway, or the command in `sys.argv`."""
    if len(sys.argv) > 1:
        run_command(sys.argv[1:])
    settings = load_settings(GatewaySettings)
    run(lambda: run_gateway(settings), settings)
