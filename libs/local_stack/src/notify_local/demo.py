"""The demo, which imports a file of notifications with the command `notify` and follows each one until it is final."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

from notify_common.runtime.settings import load_settings

from notify_local.console import CannotRun, say
from notify_local.folder import StackFolder
from notify_local.stack import GatewayOptions, running_system

POLL_INTERVAL = 0.5  # seconds
START_TIMEOUT = 180.0  # seconds
CONCURRENCY = 50  # requests at a time


async def run_demo(folder: StackFolder, file: Path) -> int:
    """Send the rows of `file` and print their outcomes; return 0 if every row reached a final state."""
    async with _gateway(folder) as url:
        folder.demo_outcomes.unlink(missing_ok=True)
        # Each demo is a run of its own, so that it sends all rows again.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "notify_client.cli", "import", str(file), "--wait", "--run", str(uuid4()),
            "--outcome-file", str(folder.demo_outcomes), "--concurrency", str(CONCURRENCY),
            env=_environment(url),
        )  # fmt: skip
        try:
            return await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):  # Ctrl-C has ended it, too
                process.terminate()
            await process.wait()
            raise


def _environment(url: str) -> dict[str, str]:
    """Return an environment with the gateway's URL and the bootstrap API key, which the demo needs if AUTH=on."""
    key = load_settings(GatewayOptions).bootstrap_api_key
    overrides = {"NOTIFY_URL": url, "NOTIFY_API_KEY": key.get_secret_value() if key else "", "NO_PROXY": "*"}
    return {name: value for name, value in os.environ.items() if name not in {"NOTIFY_PROFILE", "no_proxy"}} | overrides


@asynccontextmanager
async def _gateway(folder: StackFolder) -> AsyncIterator[str]:
    """Yield the URL of the running stack's gateway; if no stack is running, start one for the demo."""
    if not folder.is_locked():
        say("The system is not running; starting it for this demo (`make up` in another terminal keeps it running).")
        async with running_system(folder, show_logs=False) as stack:
            yield stack.addresses["GATEWAY_URL"]
        return
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT
    while not (addresses := folder.addresses()):
        if asyncio.get_running_loop().time() > deadline:
            raise CannotRun("The system in this folder did not become ready.")
        await asyncio.sleep(POLL_INTERVAL)
    if "GATEWAY_URL" not in addresses:
        raise CannotRun("Only the servers are running in this folder; stop them and run this again.")
    yield addresses["GATEWAY_URL"]
