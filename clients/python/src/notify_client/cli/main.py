"""The entry point of `notify`, which works without the extra `cli` just well enough to ask for it."""

import sys
from collections.abc import Sequence

EXTRA = {"typer", "rich"}
INTERRUPTED = 130  # `ExitCode` needs typer


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; without the extra, print how to install it."""
    try:
        from notify_client.cli.app import app  # noqa: PLC0415 - typer and rich may not be installed
    except KeyboardInterrupt:  # the imports take long enough
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        sys.exit("notify: typer and rich are not installed. Install them: pip install 'notify-gateway-client[cli]'")
    app(arguments, prog_name="notify")
