"""Start the status writer."""

from notify_common.runtime.process import run
from notify_common.runtime.settings import load_settings

from notify_status_writer.application import create_status_writer
from notify_status_writer.settings import StatusWriterSettings


def main() -> None:
    """Write results until SIGTERM."""
    settings = load_settings(StatusWriterSettings)
    run(lambda: create_status_writer(settings).serve(settings.health_host, settings.health_port), settings)
