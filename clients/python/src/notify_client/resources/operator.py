"""Read the figures and links that the console shows to operators."""

from notify_client.overview import ConsoleLinks, ServiceOverview
from notify_client.requests import Request, one, path


def get_overview() -> Request[ServiceOverview]:
    """Return the figures in the console's overview, of all tenants together."""
    return Request(method="GET", path=path("overview"), read=one(ServiceOverview))


def get_links() -> Request[ConsoleLinks]:
    """Return where the console links to."""
    return Request(method="GET", path=path("links"), read=one(ConsoleLinks))
