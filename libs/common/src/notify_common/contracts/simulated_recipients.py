"""Recipients that no provider is called for: they go through the whole pipeline and end as their name says."""

import re
from enum import StrEnum


class Behaviour(StrEnum):
    """How a delivery to such a recipient ends."""

    DELIVERED = "delivered"
    PERMANENT = "permanent"
    TEMPORARY = "temporary"
    THROTTLED = "throttled"
    TIMEOUT = "timeout"


NAMES = "|".join(Behaviour)
# `.invalid` is nobody's domain: RFC 2606.
RECIPIENT = re.compile(rf"@simulator_({NAMES})|({NAMES})@simulator\.invalid|https?://({NAMES})\.simulator\.invalid/.*")


def simulated_behaviour(recipient: str | None) -> Behaviour | None:
    """What `permanent@simulator.invalid` or `@simulator_permanent` asks for; None: it is a real recipient."""
    match = RECIPIENT.fullmatch(recipient) if recipient else None
    return Behaviour(next(filter(None, match.groups()))) if match else None
