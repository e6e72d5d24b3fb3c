"""Read queue statistics from RabbitMQ's management API; they may be seconds old and are used only for display."""

import logging
from collections.abc import Mapping
from urllib.parse import quote

import httpx
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.outage import Outage
from pydantic import BaseModel, Field, HttpUrl, TypeAdapter

log = logging.getLogger(__name__)

TIMEOUT = 2.0  # seconds
COLUMNS = "name,messages_ready,messages_unacknowledged,consumers"


class QueueStatistics(BaseModel):
    """A queue's message and consumer counts, which RabbitMQ omits if the queue was declared moments ago."""

    name: str
    ready: int = Field(0, alias="messages_ready")
    unacked: int = Field(0, alias="messages_unacknowledged")
    consumers: int = 0


ALL_QUEUES = TypeAdapter(list[QueueStatistics])


class QueueStatisticsClient:
    """Reads the statistics of all queues in the virtual host with one request."""

    def __init__(self, settings: RabbitSettings, management_url: HttpUrl | None) -> None:
        self._url = None
        if management_url is not None:
            vhost = quote(settings.rabbitmq_vhost, safe="")
            self._url = httpx.URL(f"{str(management_url).rstrip('/')}/api/queues/{vhost}", params={"columns": COLUMNS})
        self._login = (settings.rabbitmq_user, settings.rabbitmq_password.get_secret_value())
        self._client: httpx.AsyncClient | None = None
        self._outage = Outage(log, "the RabbitMQ management API (RABBITMQ_MANAGEMENT_URL) is unavailable")

    async def read(self) -> Mapping[str, QueueStatistics] | None:
        """Return the statistics by queue name; None if the management API is not configured or is unavailable."""
        if self._url is None:
            return None
        if self._client is None:
            auth = None if self._url.username else self._login
            self._client = httpx.AsyncClient(auth=auth, timeout=TIMEOUT, trust_env=False)
        try:
            response = await self._client.get(self._url)
            if not response.is_success:
                self._outage.failed(f"status {response.status_code}")
                return None
            queues = ALL_QUEUES.validate_json(response.content)
        except (httpx.HTTPError, ValueError) as error:
            self._outage.failed(type(error).__name__)  # the full text may contain the URL and its password
            return None
        self._outage.ended()
        return {queue.name: queue for queue in queues}

    async def aclose(self) -> None:
        """Close the HTTP client."""
        if self._client is not None:
            await self._client.aclose()
