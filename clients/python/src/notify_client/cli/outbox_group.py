"""The group `notify outbox`, whose commands are loaded only when they are used."""

from functools import cached_property
from typing import Any

import typer
from typer.core import TyperGroup
from typing_extensions import override

from notify_client.cli.exit_codes import CommandFailed, ExitCode


class OutboxGroup(TyperGroup):
    """A group that imports SQLAlchemy late: it takes as long as all the rest, and may not be installed."""

    @cached_property
    def _loaded(self) -> TyperGroup:
        try:
            from notify_client.cli.commands.outbox import app  # noqa: PLC0415 - see above
        except ModuleNotFoundError as error:
            if error.name != "sqlalchemy":
                raise
            raise CommandFailed(
                "SQLAlchemy is not installed. Install it: pip install 'notify-gateway-client[outbox]'", ExitCode.USAGE
            ) from None
        return typer.main.get_group(app)

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        return self._loaded.list_commands(ctx)

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._loaded.get_command(ctx, cmd_name)
