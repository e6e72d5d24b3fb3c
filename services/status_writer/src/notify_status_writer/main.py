"""Start the status writer."""

from notify_common.runtime.process import run
from notify_common.runtime.settings import load_settings

from notify_status_writer.application import create_status_writer
from notify_status_writer.settings import StatusWriterSettings


async def run_status_writer(settings: StatusWriterSettings) -> None:
    """Write results until SIGTERM."""
    await create_status_writer(settings).serve(settings.health_host, settings.health_port)


def main() -> None:
    """Run the status writer."""
    settings = load_settings(StatusWriterSettings)
    run(lambda: run_status_writer(settings), settings)
