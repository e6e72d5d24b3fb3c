"""`python -m notify_common.runtime.healthcheck`: exit 0 if the service in this container is ready."""

import os
import sys
from http import HTTPStatus
from http.client import HTTPConnection

TIMEOUT = 5.0  # seconds


def main() -> None:
    """Request `/readyz` on `HEALTH_PORT`."""
    port = int(os.environ["HEALTH_PORT"])
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except OSError as error:
        sys.exit(f"no response from /readyz: {error}")
    if response.status != HTTPStatus.OK:
        sys.exit(body)


if __name__ == "__main__":
    main()
