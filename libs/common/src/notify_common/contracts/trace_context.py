"""W3C Trace Context (https://www.w3.org/TR/trace-context/): the `traceparent` that links the steps of a notification.

It is stored with the notification, and passed on in message headers and in results.
"""

import re

TRACEPARENT_HEADER = "traceparent"
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def read_traceparent(text: object) -> str | None:
    """Return `text` if it is a valid `traceparent`, else None. It must be checked, because clients can send it."""
    return text if isinstance(text, str) and TRACEPARENT.fullmatch(text) else None


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace id (32 hexadecimal digits), or None if there is no `traceparent`."""
    return None if traceparent is None else traceparent.split("-")[1]
