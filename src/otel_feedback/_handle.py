"""`FeedbackHandle`: which span a judgement is about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanContext, TraceFlags, format_span_id, format_trace_id

from otel_feedback import _dialects
from otel_feedback.exceptions import InvalidFeedbackError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# W3C Trace Context, section 3.2: version, trace-id, parent-id and trace-flags in lower-case hex. Version ff is
# forbidden, version 00 ends there, later versions may go on after another dash.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<rest>-.*)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class FeedbackHandle:
    """A span, as far as a judgement needs to know it: its context and a few attributes, never any content.

    `started_at` and `ended_at` are Unix nanoseconds, `None` where they are not known. `root` is the context's span
    id of the local root, the outermost span of the same trace in this process; without one the span is its own.
    `attributes` holds model, provider, operation, response id, conversation id and routing, under OpenTelemetry's
    names.
    """

    context: SpanContext
    root: int = 0
    started_at: int | None = None
    ended_at: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        """Hash by the ids: neither a mapping nor OpenTelemetry's trace state can be hashed."""
        return hash((self.context.trace_id, self.context.span_id))

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a handle go to another process by pickle, which knows no read-only mapping."""
        return type(self), (self.context, self.root, self.started_at, self.ended_at, dict(self.attributes))

    @property
    def trace_id(self) -> str:
        """The trace id as 32 lower-case hex digits."""
        return format_trace_id(self.context.trace_id)

    @property
    def span_id(self) -> str:
        """The span id as 16 lower-case hex digits."""
        return format_span_id(self.context.span_id)

    @property
    def root_span_id(self) -> str:
        """The local root span's id as 16 lower-case hex digits."""
        return format_span_id(self.root or self.context.span_id)

    @property
    def is_valid(self) -> bool:
        """Whether both ids are there: without an SDK, or switched off, a call has none."""
        return self.context.is_valid

    @property
    def is_sampled(self) -> bool:
        """Whether the span was sampled, so that a vendor can have it at all."""
        return self.context.trace_flags.sampled

    def to_traceparent(self) -> str:
        """Write the handle as a W3C `traceparent`: version 00, the ids, the flags."""
        return f"00-{self.trace_id}-{self.span_id}-{self.context.trace_flags:02x}"

    @classmethod
    def from_traceparent(cls, traceparent: str, *, attributes: Mapping[str, str] | None = None) -> FeedbackHandle:
        """Read a W3C `traceparent` (https://www.w3.org/TR/trace-context/#traceparent-header).

        Args:
            traceparent: what `to_traceparent()` wrote, or a header that your own service made. One that comes
                from a client proves nothing: give browsers a signed token.

            attributes: what else is known of the span, such as `braintrust.parent`.

        Raises:
            InvalidFeedbackError: when it is malformed, in upper case, or has an all-zero id; or when an attribute is
                no text.
        """
        found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
        if found is None or (found["version"] == "00" and found["rest"]):
            raise InvalidFeedbackError(
                "this is no W3C traceparent; expected '00-<32 hex>-<16 hex>-<2 hex>', in lower case",
                field="traceparent",
                value=traceparent,
            )
        context = SpanContext(
            trace_id=int(found["trace"], 16),
            span_id=int(found["span"], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(found["flags"], 16)),
        )
        if not context.is_valid:
            raise InvalidFeedbackError(
                "this traceparent has an all-zero id, which names no span; was there a span at all?",
                field="traceparent",
                value=traceparent,
            )
        return cls(context, attributes=MappingProxyType(checked_attributes(attributes or {})))

    @classmethod
    def from_span(cls, span: Span) -> FeedbackHandle:
        """Take the handle of a span that your code holds; of a span that is not recording, only the ids.

        Without an SDK, or outside any span, the handle is there and `is_valid` is false.
        """
        attributes = getattr(span, "attributes", None) or {}
        return cls(
            span.get_span_context(),
            started_at=_plausible(getattr(span, "start_time", None)),
            ended_at=_plausible(getattr(span, "end_time", None)),
            attributes=MappingProxyType(_dialects.handle_attributes(attributes)),
        )


def _plausible(time_unix_nano: int | None) -> int | None:
    """Take a span's time; one that no clock shows, as of a span that was ended in another unit, is not known."""
    return time_unix_nano if is_time(time_unix_nano) else None


def is_time(value: object) -> bool:
    """Tell whether a value is a time in Unix nanoseconds that a store can hold, or is not known."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63)


def checked_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """Copy a handle's attributes, refusing what is no text: vendors' routes are read from them.

    Raises:
        InvalidFeedbackError: naming the attribute, where there is one.
    """
    if not isinstance(attributes, Mapping):
        raise InvalidFeedbackError(
            "a handle's attributes are a mapping from strings to strings", field="attributes", value=attributes
        )
    for name, value in attributes.items():
        if not all(isinstance(text, str) and _dialects.is_unicode(text) for text in (name, value)):
            raise InvalidFeedbackError(
                f"the handle's attribute {name!r} must be a string of whole Unicode characters",
                field="attributes",
                value=attributes,
            )
    return dict(attributes)
