"""Read queue statistics from RabbitMQ's management API; they may be seconds old and are used only for display."""

import logging
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import httpx
from notify_common.rabbitmq.connection import RabbitSettings
from notify_common.runtime.outage import Outage
from pydantic import BaseModel, Field, HttpUrl, TypeAdapter

log = logging.getLogger(__name__)

TIMEOUT = 2.0  # seconds
COLUMNS = "name,messages_ready,messages_unacknowledged,consumers,members"


class QueueStatistics(BaseModel):
    """A queue's message and consumer counts, which RabbitMQ omits if the queue was declared moments ago."""

    name: str
    ready: int = Field(0, alias="messages_ready")
    unacked: int = Field(0, alias="messages_unacknowledged")
    consumers: int = 0
    members: Sequence[str] = ()
    """The nodes with a replica of a quorum queue."""


ALL_QUEUES = TypeAdapter(list[QueueStatistics])


class QueueStatisticsClient:
    """Reads the statistics of all queues in the virtual host with one request, to any node that responds."""

    def __init__(self, settings: RabbitSettings, management_urls: Sequence[HttpUrl]) -> None:
        path = f"/api/queues/{quote(settings.rabbitmq_vhost, safe='')}"
        self._urls = deque(
            httpx.URL(f"{str(url).rstrip('/')}{path}", params={"columns": COLUMNS}) for url in management_urls
        )
        # Without RABBITMQ_TLS, httpx verifies an HTTPS server with its own list of authorities.
        self._files = settings.rabbitmq_files() if settings.rabbitmq_tls else None
        self._login = (settings.rabbitmq_user, settings.rabbitmq_password.get_secret_value())
        self._client: httpx.AsyncClient | None = None
        variable = "RABBITMQ_MANAGEMENT_HOSTS" if len(self._urls) > 1 else "RABBITMQ_MANAGEMENT_URL"
        self._outage = Outage(log, f"the RabbitMQ management API ({variable}) is unavailable")

    async def read(self) -> Mapping[str, QueueStatistics] | None:
        """Return the statistics by queue name; None if the management API is not configured or is unavailable."""
        problems = []
        for url in list(self._urls):
            try:
                queues = await self._read(url)
            except (httpx.HTTPError, ValueError, OSError) as error:
                problems.append(_reason(error))
                self._urls.rotate(-1)  # the next read begins with the next node
                if self._files is not None:
                    await self.aclose()  # the next client reads the certificate files again
            else:
                self._outage.ended()
                return {queue.name: queue for queue in queues}
        if problems:
            self._outage.failed("; ".join(problems))
        return None

    async def _read(self, url: httpx.URL) -> Sequence[QueueStatistics]:
        if self._client is None:
            auth, files = None if url.username else self._login, self._files
            verify = files.context() if files is not None and url.scheme == "https" else True
            self._client = httpx.AsyncClient(auth=auth, timeout=TIMEOUT, trust_env=False, verify=verify)
        response = await self._client.get(url)
        return ALL_QUEUES.validate_json(response.raise_for_status().content)

    async def aclose(self) -> None:
        """Close the HTTP client."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _reason(error: BaseException) -> str:
    """Return the type of the error, and the status or what TLS says. Other texts may contain the URL's password."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__ if cause is None else f"{type(error).__name__}: {cause}"
