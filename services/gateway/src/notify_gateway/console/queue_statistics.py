"""What waits in RabbitMQ's queues, as its management API tells: some seconds old, and nothing that work depends on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import httpx
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.outage import Outage
from pydantic import HttpUrl

log = logging.getLogger(__name__)

TIMEOUT = 2.0  # seconds
COLUMNS = "name,messages_ready,messages_unacknowledged,consumers"


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """Of one queue, in messages."""

    ready: int
    unacked: int
    consumers: int


class QueueStatisticsClient:
    """Asks for all queues of the virtual host at once."""

    def __init__(self, settings: RabbitSettings, management_url: HttpUrl | None) -> None:
        self._url = None
        if management_url is not None:
            vhost = quote(settings.rabbitmq_vhost, safe="")
            self._url = httpx.URL(f"{str(management_url).rstrip('/')}/api/queues/{vhost}", params={"columns": COLUMNS})
        self._login = (settings.rabbitmq_user, settings.rabbitmq_password.get_secret_value())
        self._client: httpx.AsyncClient | None = None
        self._outage = Outage(log, "RABBITMQ_MANAGEMENT_URL does not answer")

    async def read(self) -> Mapping[str, QueueStatistics] | None:
        """By the names of the queues; None where there is no management API, or it does not answer."""
        if self._url is None:
            return None
        if self._client is None:
            auth = None if self._url.username else self._login
            self._client = httpx.AsyncClient(auth=auth, timeout=TIMEOUT, trust_env=False)
        try:
            answer = await self._client.get(self._url)
            if not answer.is_success:
                self._outage.failed(f"status {answer.status_code}")
                return None
            queues = answer.json()
            figures = {
                # A queue that was declared a moment ago has no figures yet.
                queue["name"]: QueueStatistics(
                    ready=queue.get("messages_ready", 0),
                    unacked=queue.get("messages_unacknowledged", 0),
                    consumers=queue.get("consumers", 0),
                )
                for queue in queues
            }
        except (httpx.HTTPError, ValueError) as error:
            self._outage.failed(type(error).__name__)  # its text may have the URL, with a password
            return None
        self._outage.ended()
        return figures

    async def aclose(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.aclose()
