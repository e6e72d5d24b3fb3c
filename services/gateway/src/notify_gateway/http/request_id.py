"""The id of a request, which its response, logs, span and problem repeat."""

import random
import re

HEADER = b"request-id"
# A client's own id is kept if it is short and harmless wherever it is shown.
ACCEPTABLE = re.compile(rb"[A-Za-z0-9_.:=+/@-]{1,100}")
REQUEST_ID = "notify.request_id"
"""The scope key of the id."""


def request_id(named: bytes | None) -> str:
    """Return the id that the client has `named`, or else a new one."""
    if named is not None and ACCEPTABLE.fullmatch(named):
        return named.decode("ascii")
    return f"req_{random.getrandbits(96):024x}"
