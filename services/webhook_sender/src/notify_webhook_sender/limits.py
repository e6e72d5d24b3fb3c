"""Limit the calls in progress to a host, to a domain and of a tenant, so that slow receivers do not delay others."""

from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Address, ip_address, ip_network
from urllib.parse import urlsplit

from notify_common.contracts.messages import DeliveryRequested
from notify_common.sending.call_slots import Quota
from notify_common.sending.provider_limits import ProviderLimits
from publicsuffixlist import PublicSuffixList

from notify_webhook_sender.settings import WebhookSenderSettings

# The limit is short, because a receiver that is down or slow must not delay messages to other receivers.
ADMISSION_TIMEOUT = timedelta(seconds=1)
# The settings limit the calls of one tenant to a host and a domain; all tenants together may make this many times as
# many. Otherwise one could use up all calls to the receivers of another, for example with ports that never respond.
ALL_TENANTS = 2
MAX_DOMAINS = 10_000  # remembered
IPV6_SITE = 64  # bits; a site gets at least a /64 (RFC 6177), so its addresses belong together


def webhook_limits(settings: WebhookSenderSettings) -> ProviderLimits:
    """Return the limits for calls to receivers. Each host counts as a provider."""
    # https://publicsuffix.org: the list is part of the package, and is never fetched.
    suffixes = PublicSuffixList()
    calls_per_tenant = settings.webhook_calls_per_tenant or (settings.concurrency + 1) // 2
    # The calls in progress and the waiting ones of a tenant must leave places for the messages of other tenants.
    waiting_per_tenant = settings.concurrency // 3

    @lru_cache(MAX_DOMAINS)
    def domain_of(host: str) -> str:
        """Return the domain that its owner has registered, or the address or IPv6 site."""
        try:
            address = ip_address(host)
        except ValueError:
            return suffixes.privatesuffix(host) or host
        return host if isinstance(address, IPv4Address) else str(ip_network(f"{host}/{IPV6_SITE}", strict=False))

    def quotas_of(request: DeliveryRequested) -> tuple[Quota, ...]:
        tenant, url = request.tenant or "", request.recipient or ""
        domain, per_domain = f"domain {domain_of(_name_of(url))}", settings.webhook_calls_per_domain
        return (
            Quota(f"tenant {tenant}", calls_per_tenant, waiting_per_tenant),
            Quota(f"host {host_of(url)} of {tenant}", settings.webhook_calls_per_host),
            Quota(f"{domain} of {tenant}", per_domain),
            Quota(domain, ALL_TENANTS * per_domain),
        )

    return ProviderLimits(
        concurrency=ALL_TENANTS * settings.webhook_calls_per_host,
        admission_timeout=ADMISSION_TIMEOUT,
        connect_timeout=timedelta(seconds=settings.connect_timeout()),
        provider_of=host_of,
        quotas_of=quotas_of,
    )


def host_of(url: str) -> str:
    """Return the URL's scheme, host and port, because URLs that share them are down or busy together."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""  # `send` rejects such a URL
    # Calls to port 0 fail, and so does TLS to a name with a final dot, which no certificate has, or to a port where the
    # receiver speaks plain HTTP. That must not open the circuit of the same host without them.
    return f"{parts.scheme}://{parts.hostname or ''}{'' if port is None else f':{port}'}"


def _name_of(url: str) -> str:
    """Return the host's name or address."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
