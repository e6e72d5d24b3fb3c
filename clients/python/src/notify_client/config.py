"""The settings of a client: arguments take precedence over environment variables."""

import os
from dataclasses import dataclass, field
from importlib.metadata import version

import httpx

from notify_client.errors import ConfigurationError

USER_AGENT = f"notify-gateway-client/{version('notify-gateway-client')}"
TIMEOUT = 10.0  # seconds to connect, and to wait for each part of a response
MAX_RETRIES = 3


@dataclass(frozen=True)
class Config:
    """The settings of a client."""

    base_url: str
    api_key: str | None = field(repr=False)
    timeout: float
    max_retries: int

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


def configure(base_url: str | None, api_key: str | None, timeout: float, max_retries: int) -> Config:
    """Return the settings; raise `ConfigurationError` if one is missing or invalid."""
    base_url = base_url or os.environ.get("NOTIFY_URL")
    if not base_url:
        raise ConfigurationError("The gateway's URL is missing: pass base_url, or set NOTIFY_URL.")
    api_key = api_key or os.environ.get("NOTIFY_API_KEY") or None
    # The message must not repeat the key.
    if api_key is not None and not api_key.isascii():
        raise ConfigurationError(
            "The API key (api_key or NOTIFY_API_KEY) has characters that are not ASCII, such as the … of an example: "
            "it is not a real key. A gateway with AUTH=off needs none."
        )
    if api_key is not None and not (api_key.isprintable() and " " not in api_key):
        raise ConfigurationError("The API key (api_key or NOTIFY_API_KEY) contains a space, a line break or the like.")
    return Config(_checked(base_url), api_key, timeout, max_retries)


def _checked(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"The gateway's URL (base_url or NOTIFY_URL) is invalid: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigurationError(
            "The gateway's URL (base_url or NOTIFY_URL) must look like https://notify.example.org, without a user, "
            "a query or a fragment."
        )
    return str(url).rstrip("/")
