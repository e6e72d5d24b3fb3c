"""Tracing: one trace per notification, with a span for each step from the POST to the written status.

The steps are linked by a `traceparent` (see `contracts/trace_context.py`). If tracing is off, it is only passed on
unchanged; otherwise, `span_export.py` records spans with OpenTelemetry.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Self

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attributes = Mapping[str, object]


@dataclass(slots=True)
class Span:
    """A step in progress. This base class records nothing."""

    traceparent: str | None
    """The parent span for the steps that follow from this one."""

    def set(self, attributes: Attributes) -> None:
        """Set the attributes that are not None."""

    def fail(self, error: str) -> None:
        """Mark the step as failed."""

    def end(self) -> None:
        """End the step. Exiting the context does so, too."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.fail(type(error).__name__)
        self.end()


UNRECORDED = Span(None)


class Tracing:
    """Creates the spans of one process. This base class records none of them."""

    on = False

    def begin(
        self,
        name: str,  # noqa: ARG002 - for subclasses
        parent: str | None,
        kind: Kind = "internal",  # noqa: ARG002 - for subclasses
        attributes: Attributes | None = None,  # noqa: ARG002 - for subclasses
    ) -> Span:
        """Start a span under `parent`, or a new trace if `parent` is None."""
        return UNRECORDED if parent is None else Span(parent)

    def group(self, name: str, members: Iterable[str | None]) -> AbstractContextManager[object]:  # noqa: ARG002
        """Trace work that is done for all `members` together, as a separate trace with links to theirs."""
        return nullcontext()


UNTRACED = Tracing()
