"""Remember the keys that were valid when they were last looked up."""

from collections.abc import Iterator
from dataclasses import dataclass

from notify_gateway.http.principal import Principal


@dataclass(frozen=True, slots=True)
class ValidKey:
    """A key that was valid when it was last looked up."""

    principal: Principal
    looked_up_at: float
    """When the look-up began. What it found may be as old."""
    used_at: float
    """When the look-up ended."""


class ValidKeys:
    """At most `limit` keys by their hashes.

    If there are more, a tenant that has the most of them loses its oldest. Otherwise a tenant could displace the keys
    of all others, because it can use and revoke any number of keys.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: dict[bytes, ValidKey] = {}
        self._tenants: dict[str, dict[bytes, None]] = {}  # the hashes of each tenant's keys, oldest entry first

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[ValidKey]:
        return iter(self._keys.values())

    def __contains__(self, hashed: bytes) -> bool:
        return hashed in self._keys

    def get(self, hashed: bytes) -> ValidKey | None:
        """Return the key with this hash, or None if it is not remembered."""
        return self._keys.get(hashed)

    def add(self, hashed: bytes, key: ValidKey) -> None:
        """Remember a key as the newest one."""
        self.discard(hashed)
        self._keys[hashed] = key
        self._tenants.setdefault(key.principal.tenant, {})[hashed] = None
        if len(self._keys) > self._limit:
            largest = max(self._tenants.values(), key=len)
            self.discard(next(iter(largest)))

    def discard(self, hashed: bytes) -> None:
        """Forget a key."""
        key = self._keys.pop(hashed, None)
        if key is None:
            return
        tenant = key.principal.tenant
        del self._tenants[tenant][hashed]
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    def forget_unused(self, since: float, *, keep: frozenset[bytes]) -> None:
        """Forget all keys that have not been used since then, except those in `keep`."""
        for hashed in [each for each, key in self._keys.items() if key.used_at < since and each not in keep]:
            self.discard(hashed)
