"""The values that the sandbox's rooms hand to each other; no rule and no I/O lives here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Vendor = Literal["orq", "braintrust", "weave"]
VENDORS: tuple[Vendor, ...] = ("orq", "braintrust", "weave")

Item = Mapping[str, Any]
"""One JSON object as a client sent it."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing that deserves a reader's eye; the names are explained in `_flags.py`."""

    vendor: str
    flag: str
    detail: str


@dataclass(frozen=True, slots=True)
class Span:
    """A span as one vendor stored it."""

    vendor: Vendor
    project: str
    """Weave: `entity/project`. Braintrust: the parent, `project_id:<uuid>` or `experiment_id:<uuid>`."""

    view: str
    """Weave has two, `traces` and `agents`; the others have one, the empty string."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    attributes: Item
    start_time_unix_nano: int
    end_time_unix_nano: int
    sequence: int = 0
    """The place of its last arrival among all that arrived."""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes it the same span when an exporter repeats it."""
        return (self.vendor, self.project, self.view, self.trace_id, self.span_id)


@dataclass(frozen=True, slots=True)
class Submission:
    """One item that a vendor took: a feedback, a removal, an inserted row, a new project."""

    vendor: Vendor
    operation: str
    project: str
    item: Item
    received_at_unix_nano: int
    sequence: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client."""

    status: int
    body: bytes = b""
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a vendor decided about a call: the answer, what it stores, what is remarkable."""

    answer: Answer
    spans: tuple[Span, ...] = ()
    submissions: tuple[Submission, ...] = ()
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came, without credentials."""

    method: str
    path: str
    """The whole path, the vendor's prefix included."""

    query: str
    headers: Mapping[str, str]
    body: bytes
    """As sent (a gzip body is still gzip), at most `Limits.logged_body_bytes`."""

    received_at_unix_nano: int
    status: int | None = None
    """What was answered; None while it is handled, and where the connection was cut before a status."""

    fault: str | None = None
    """The kind of the fault that met it."""

    def json(self) -> Any:
        """Answer the body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class OTLPEndpoint:
    """What an `OTLPSpanExporter` needs to send spans to one vendor."""

    vendor: Vendor
    url: str
    headers: Mapping[str, str]


class SpanState(TypedDict):
    """A span in `state()["spans"]`."""

    vendor: str
    project: str
    view: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    operation: str | None
    attributes: Item
    start_time_unix_nano: int
    end_time_unix_nano: int


class Target(TypedDict):
    """What a feedback says it is about; `span_id` is None where the vendor knows only traces."""

    trace_id: str | None
    span_id: str | None


class FeedbackState(TypedDict):
    """A feedback in `state()["feedback"]`."""

    vendor: str
    id: str | None
    """The client's or the server's id; Braintrust has none: there it is `metadata.feedback_id`, if sent."""

    kind: str
    """What was said: `property`, `annotation`; `score`, `comment`, `expected`, `tags`, `metadata`; `reaction`, ..."""

    name: str
    value: Any
    user: str | None
    project: str
    target: Target
    joined: bool
    reason: str
    """Why it is an orphan; empty where it is joined."""

    flags: list[str]
    received_at_unix_nano: int
    """When it came first."""

    times: int
    """How often this very thing was applied."""

    removed: bool
    """True where a later request took it back."""

    raw: Item
    """The item as the vendor took it, the ids and defaults that it adds included."""


class FlagState(TypedDict):
    """A flag in `state()["flags"]`."""

    vendor: str
    flag: str
    detail: str


class RowState(TypedDict):
    """A Braintrust row as a person would see it."""

    project: str
    scores: dict[str, float | None]
    expected: Any
    tags: list[str]
    comments: list[str]
    is_span: bool


class BraintrustEffective(TypedDict):
    """Braintrust at the end: rows by their id."""

    rows: dict[str, RowState]


class Effective(TypedDict):
    """What a person would see in each vendor's pages at the end."""

    orq: list[dict[str, Any]]
    braintrust: BraintrustEffective
    weave: list[dict[str, Any]]


class State(TypedDict):
    """All of it: what `Sandbox.state()` and `GET /state` answer."""

    spans: list[SpanState]
    feedback: list[FeedbackState]
    flags: list[FlagState]
    effective: Effective
    requests: int
    orphans: int
    faults: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a feedback is on a span, why not, and what is remarkable about it."""

    joined: bool
    reason: str = ""
    flags: tuple[Flag, ...] = ()


def canonical(value: object) -> str:
    """Write a JSON value in the one form in which equal values are equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def json_answer(status: int, content: object, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer a JSON document."""
    return Answer(status, json.dumps(content).encode(), headers=headers or {})


def text_answer(status: int, text: str) -> Answer:
    """Answer plain text, as Braintrust does when it refuses."""
    return Answer(status, text.encode("utf-8", "replace"), media_type="text/plain; charset=utf-8")


def flags_of(vendor: Vendor, found: Sequence[tuple[str, str]]) -> tuple[Flag, ...]:
    """Give the vendor's name to a list of (flag, detail)."""
    return tuple(Flag(vendor, flag, detail) for flag, detail in found)
