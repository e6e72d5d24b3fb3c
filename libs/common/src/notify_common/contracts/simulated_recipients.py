"""Test recipients: they pass through the whole pipeline without a provider call, and end as their names say."""

import re
from enum import StrEnum


class Behaviour(StrEnum):
    """How a delivery to a test recipient ends."""

    DELIVERED = "delivered"
    PERMANENT = "permanent"
    TEMPORARY = "temporary"
    THROTTLED = "throttled"
    TIMEOUT = "timeout"


NAMES = "|".join(Behaviour)
# RFC 2606 guarantees that `.invalid` belongs to nobody.
RECIPIENT = re.compile(rf"@simulator_({NAMES})|({NAMES})@simulator\.invalid|https?://({NAMES})\.simulator\.invalid/.*")


def simulated_behaviour(recipient: str | None) -> Behaviour | None:
    """Return the behaviour that `permanent@simulator.invalid` or `@simulator_permanent` names; None if it is real."""
    match = RECIPIENT.fullmatch(recipient) if recipient else None
    return Behaviour(next(filter(None, match.groups()))) if match else None
