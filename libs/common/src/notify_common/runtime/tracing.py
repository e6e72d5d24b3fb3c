"""Traces: one per notification, with a span for each step from the POST to the status written.

What joins the steps is the text of a `traceparent` (https://www.w3.org/TR/trace-context/): it is stored with the
notification and travels in the headers of its messages and in its results. Where nothing is exported it is passed on
as it came, and nothing else is done.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Self, cast

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, object]


@dataclass(slots=True)
class Span:
    """A step under way; this one is not recorded."""

    traceparent: str | None
    """Of what follows from this step."""

    def set(self, attributes: Attributes) -> None:
        """Tell more about it."""

    def fail(self, error: str) -> None:
        """It does not come to what it is for."""

    def end(self) -> None:
        """It is over; as a context manager it ends by itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.fail(type(error).__name__)
        self.end()


UNRECORDED = Span(None)


class Tracing:
    """The spans of one process; of this class, none."""

    on = False

    def begin(
        self,
        name: str,  # noqa: ARG002 - of who records
        parent: str | None,
        kind: Kind = "internal",  # noqa: ARG002 - as above
        attributes: Attributes | None = None,  # noqa: ARG002 - as above
    ) -> Span:
        """A span that follows from `parent`; without one it begins a trace."""
        return UNRECORDED if parent is None else Span(parent)

    def group(self, name: str, members: Iterable[str | None]) -> AbstractContextManager[object]:  # noqa: ARG002 - as above
        """What is done at once for all `members`: a trace of its own, linked to theirs, as long as the context."""
        return nullcontext()


UNTRACED = Tracing()


def create_tracing(otlp_endpoint: str | None, service: str) -> Tracing:
    """Export spans to an OpenTelemetry collector at `otlp_endpoint` (OTLP over HTTP), if there is one."""
    if otlp_endpoint is None:
        return UNTRACED
    # Only who exports pays for the libraries: 15 MB and 75 ms.
    return cast("Tracing", import_module("notify_common.runtime.span_export").exporting(otlp_endpoint, service))
