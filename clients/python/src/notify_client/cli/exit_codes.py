"""Exit codes, and the one line that each expected error prints."""

import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import typer
from pydantic_core import PydanticSerializationError
from typer.core import TyperGroup
from typing_extensions import override

from notify_client import errors
from notify_client.cli.output import one_line


class ExitCode(IntEnum):
    """The exit codes and their meanings."""

    OK = 0
    FAILED = 1
    """The command has worked, but a delivery or a row has failed."""
    USAGE = 2
    """The arguments, the profile or the request are invalid."""
    DENIED = 3
    """The API key is not valid, or lacks a scope."""
    NOT_FOUND = 4
    UNAVAILABLE = 5
    """The gateway is unavailable or has failed. The same command may work later."""
    CONFLICT = 6
    """The state of the resource does not allow this."""
    TIMED_OUT = 7
    """Waiting has ended before the notification was final."""
    INTERRUPTED = 130


CODES: dict[type[errors.NotifyError], ExitCode] = {
    errors.AuthenticationFailed: ExitCode.DENIED,
    errors.PermissionDenied: ExitCode.DENIED,
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.Conflict: ExitCode.CONFLICT,
    errors.InvalidRequest: ExitCode.USAGE,
    errors.ConfigurationError: ExitCode.USAGE,
    errors.WaitTimedOut: ExitCode.TIMED_OUT,
}


class CommandFailed(Exception):
    """The command cannot do what it should. The message says why."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


def code_for(error: errors.NotifyError) -> ExitCode:
    """Return the exit code for an error of the library."""
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), ExitCode.UNAVAILABLE)


def describe(error: errors.NotifyError) -> str:
    """Return one line that says what is wrong, with the names of the fields that are invalid."""
    if isinstance(error, errors.NotCancellable):
        states = ", ".join(f"{each.channel} {each.status}" for each in error.deliveries)
        return one_line(f"{error.detail} Deliveries: {states}" if states else error.detail)
    if isinstance(error, errors.ApiError) and error.errors:
        return one_line("; ".join(f"{each.field}: {each.detail}" for each in error.errors))
    return one_line(str(error))


class OneLineErrors(TyperGroup):
    """The root command. It prints expected errors in one line, and exits with a code that says what went wrong."""

    @override
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(
                args, prog_name, complete_var, standalone_mode=False, windows_expand_args=windows_expand_args, **extra
            )
        except errors.NotifyError as error:
            code = _fail(describe(error), code_for(error))
        except CommandFailed as error:
            code = _fail(str(error), error.code)
        except typer.TyperException as error:
            code = _fail(_usage_error(error), ExitCode.USAGE)
        except typer.Abort:
            code = _fail("aborted", ExitCode.INTERRUPTED)
        except (UnicodeError, PydanticSerializationError):
            code = _fail("an argument or the standard input is not valid UTF-8", ExitCode.USAGE)
        except BrokenPipeError:  # the reader, such as `head`, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = ExitCode.FAILED
        sys.exit(int(code or 0))


def _usage_error(error: typer.TyperException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    hint = f" (see: {context.command_path} --help)" if context is not None else ""
    return f"{message.removesuffix('.')}{hint}" if message else ""


def _fail(message: str, code: ExitCode) -> ExitCode:
    if message:
        typer.echo(f"notify: {one_line(message)}", err=True)
    return code
