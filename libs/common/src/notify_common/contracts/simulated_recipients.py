"""Test recipients, which pass through the whole pipeline without a provider call. Their names set the outcome."""

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
# RFC 2606 reserves `.invalid`, so these addresses cannot belong to anybody.
RECIPIENT = re.compile(rf"@simulator_({NAMES})|({NAMES})@simulator\.invalid|https?://({NAMES})\.simulator\.invalid/.*")


def simulated_behaviour(recipient: str | None) -> Behaviour | None:
    """Return the behaviour that a name like `permanent@simulator.invalid` selects; None for a real recipient."""
    match = RECIPIENT.fullmatch(recipient) if recipient else None
    return Behaviour(next(filter(None, match.groups()))) if match else None
