"""Connect to the gateway that environment variables or a profile name."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from notify_client import AsyncClient, Client, ConnectionFailed
from notify_client.cli.exit_codes import CommandFailed, ExitCode, describe
from notify_client.cli.profiles import DEFAULT, Profile, config_file, read
from notify_client.config import MAX_RETRIES


def resolve(profile_name: str | None) -> Profile:
    """Return the named profile, or else what NOTIFY_URL and NOTIFY_API_KEY say, completed by the profile `default`.

    A profile's key is sent only to the profile's own gateway.
    """
    profiles = read(config_file())
    if profile_name is not None:
        if profile_name not in profiles:
            raise CommandFailed(
                f"there is no profile {profile_name!r}: run notify login --profile {profile_name}", ExitCode.USAGE
            )
        return profiles[profile_name]
    url, key = os.environ.get("NOTIFY_URL"), os.environ.get("NOTIFY_API_KEY") or None
    profile = profiles.get(DEFAULT)
    if url and (profile is None or url.rstrip("/") != profile.url.rstrip("/")):
        return Profile(url, key)
    if profile is None:
        raise CommandFailed("the gateway is not known: run notify login, or set NOTIFY_URL", ExitCode.USAGE)
    return Profile(profile.url, key or profile.api_key, None if url else DEFAULT)


@contextmanager
def connect(profile_name: str | None) -> Iterator[Client]:
    """Yield a client."""
    profile = resolve(profile_name)
    with Client(profile.url, profile.api_key) as client, naming(profile):
        yield client


@asynccontextmanager
async def connect_async(profile_name: str | None, max_retries: int = MAX_RETRIES) -> AsyncIterator[AsyncClient]:
    """Yield a client for an event loop."""
    profile = resolve(profile_name)
    async with AsyncClient(profile.url, profile.api_key, max_retries=max_retries) as client:
        with naming(profile):
            yield client


@contextmanager
def naming(profile: Profile) -> Iterator[None]:
    """Name the gateway in errors of connections, which say nothing otherwise."""
    try:
        yield
    except ConnectionFailed as error:
        origin = ""
        if profile.name is not None and not error.maybe_executed:
            option = "" if profile.name == DEFAULT else f" --profile {profile.name}"
            origin = f" (the profile {profile.name} has this address; if it has changed: notify login{option})"
        raise CommandFailed(f"{profile.url}: {describe(error)}{origin}", ExitCode.UNAVAILABLE) from error
