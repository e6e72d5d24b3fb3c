"""Read queue statistics from RabbitMQ's management API; they may be seconds old and are used only for display."""

import logging
import ssl
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
        # Without RABBITMQ_TLS, httpx verifies an HTTPS server with its own list of authorities.
        self._files = settings.rabbitmq_files() if settings.rabbitmq_tls else None
        self._login = (settings.rabbitmq_user, settings.rabbitmq_password.get_secret_value())
        self._client: httpx.AsyncClient | None = None
        self._outage = Outage(log, "the RabbitMQ management API (RABBITMQ_MANAGEMENT_URL) is unavailable")

    async def read(self) -> Mapping[str, QueueStatistics] | None:
        """Return the statistics by queue name; None if the management API is not configured or is unavailable."""
        if self._url is None:
            return None
        try:
            if self._client is None:
                auth, files = None if self._url.username else self._login, self._files
                verify = files.context() if files is not None and self._url.scheme == "https" else True
                self._client = httpx.AsyncClient(auth=auth, timeout=TIMEOUT, trust_env=False, verify=verify)
            response = await self._client.get(self._url)
            if not response.is_success:
                self._outage.failed(f"status {response.status_code}")
                return None
            queues = ALL_QUEUES.validate_json(response.content)
        except (httpx.HTTPError, ValueError, OSError) as error:
            self._outage.failed(_reason(error))
            if self._files is not None:
                await self.aclose()  # the next client reads the certificate files again
            return None
        self._outage.ended()
        return {queue.name: queue for queue in queues}

    async def aclose(self) -> None:
        """Close the HTTP client."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _reason(error: BaseException) -> str:
    """Return the type of the error, and what TLS says. Other texts may contain the URL and its password."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__ if cause is None else f"{type(error).__name__}: {cause}"
