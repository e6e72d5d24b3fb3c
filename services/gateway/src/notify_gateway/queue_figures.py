"""What waits in RabbitMQ's queues, as its management API tells: some seconds old, and nothing that work depends on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import httpx
from notify_common.lasting_fault import LastingFault
from notify_common.rabbitmq import RabbitSettings

log = logging.getLogger(__name__)

TIMEOUT = 2.0  # seconds
COLUMNS = "name,messages_ready,messages_unacknowledged,consumers"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one queue, in messages."""

    ready: int
    unacked: int
    consumers: int


class QueueFigures:
    """Asks for all queues of the virtual host at once."""

    def __init__(self, settings: RabbitSettings, management_url: str | None) -> None:
        self._url = None
        if management_url is not None:
            vhost = quote(settings.rabbitmq_vhost, safe="")
            self._url = httpx.URL(f"{management_url.rstrip('/')}/api/queues/{vhost}", params={"columns": COLUMNS})
        self._login = (settings.rabbitmq_user, settings.rabbitmq_password.get_secret_value())
        self._client: httpx.AsyncClient | None = None
        self._fault = LastingFault(log, "RABBITMQ_MANAGEMENT_URL does not answer")

    async def read(self) -> Mapping[str, Figures] | None:
        """By the names of the queues; None where there is no management API, or it does not answer."""
        if self._url is None:
            return None
        if self._client is None:
            auth = None if self._url.username else self._login
            self._client = httpx.AsyncClient(auth=auth, timeout=TIMEOUT, trust_env=False)
        try:
            answer = await self._client.get(self._url)
            if not answer.is_success:
                self._fault.occurred(f"status {answer.status_code}")
                return None
            queues = answer.json()
            figures = {
                # A queue that was declared a moment ago has no figures yet.
                queue["name"]: Figures(
                    ready=queue.get("messages_ready", 0),
                    unacked=queue.get("messages_unacknowledged", 0),
                    consumers=queue.get("consumers", 0),
                )
                for queue in queues
            }
        except (httpx.HTTPError, ValueError) as error:
            self._fault.occurred(type(error).__name__)  # its text may have the URL, with a password
            return None
        self._fault.over()
        return figures

    async def aclose(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.aclose()
