"""The port to a vendor: `FeedbackExporter`, what it is given (`Part`) and what it answers (`Result`).

Everything about the outcome of a delivery lives here, as data; this file does not know who retries.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from otel_feedback._dialects import is_unicode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_feedback._record import FeedbackRecord, Part


@dataclass(frozen=True, slots=True)
class Success:
    """The vendor answered 2xx."""

    reason: str = "delivered"


@dataclass(frozen=True, slots=True)
class RetryableFailure:
    """It was not applied and may be tried again.

    `retry_after_millis` is the vendor's wish, which only ever lengthens the wait. `give_up_after_millis` is the age at
    which this failure is final, for one that is only worth waiting for a while. What was not even tried, because of
    something before it, has made no attempt. `removed` are the earlier revisions that have been removed all the same:
    another try need not remove them again.
    """

    reason: str
    retry_after_millis: int | None = None
    give_up_after_millis: int | None = None
    is_tried: bool = True
    removed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Unclear:
    """It may have been applied: the answer was lost, or was a 5xx. It is tried again under the same id.

    `removed` is that of a `RetryableFailure`.
    """

    reason: str
    retry_after_millis: int | None = None
    removed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PermanentFailure:
    """This part is not sent again: the vendor refuses it, or it `may_have_arrived` and must not do so twice.

    `removed` is that of a `RetryableFailure`.
    """

    reason: str
    may_have_arrived: bool = False
    removed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PauseDestination:
    """Something is wrong with the destination, not with the part: nothing is sent there until it is mended.

    `removed` is that of a `RetryableFailure`.
    """

    reason: str
    removed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """There is nothing to send."""

    reason: str


Result = Success | RetryableFailure | Unclear | PermanentFailure | PauseDestination | Skipped


class FeedbackExporter(Protocol):
    """One vendor, or anything else that takes judgements.

    - `name` is how users route to it and how its deliveries are kept; it must not change between runs.
    - `parts` is pure and does no I/O: it says what the vendor would get, each part with a `kind` of its own, and may
      raise `InvalidFeedbackError`, which refuses the judgement before it is accepted. No parts: nothing to carry.
    - `export` sends parts and answers one result for each, in order. A part may come again under the same id. Its
      `action` is `create`, `replace` (an earlier one with the same id is there) or `retract`. It does not raise; what
      it raises all the same is taken as `Unclear`.
    - `export` may be called from several threads at once.
    - `force_flush` sends what the exporter itself buffers and says whether all of it went.
    - `shutdown` releases what it holds and is idempotent.

    Optional: `exports_unsampled = True` for a destination that needs no trace; `start()`, called before the first
    delivery, which raises `ConfigurationError` where something is missing; `span_attributes`, which capture
    sets on its own spans; `orders_by_call = True` where the vendor keeps one value for all who judge a call, so that
    what they say has to arrive in the order in which it was accepted.
    """

    name: str

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """Say what is to be sent for a record."""
        ...

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        """Send parts; one result for each."""
        ...

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is buffered."""
        ...

    def shutdown(self) -> None:
        """Release everything."""
        ...


def parts_of(exporter: FeedbackExporter, record: FeedbackRecord) -> dict[str, Part]:
    """Say what a vendor would get for a record, by kind of part; a retraction says nothing.

    Raises:
        ValueError: when a kind is no text that a store can keep.
    """
    parts = {} if record.retracts else {part.kind: part for part in exporter.parts(record)}
    if not all(isinstance(kind, str) and is_unicode(kind) for kind in parts):
        raise ValueError("the kind of a part must be a text")
    return parts


def not_carried(record: FeedbackRecord, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Name what was said and reaches this vendor in no part."""
    carried = frozenset[str]().union(*(part.carries for part in parts.values()))
    return tuple(name for name in record.said if name not in carried)


def changes(record: FeedbackRecord, wanted: Mapping[str, Part], standing: Mapping[str, Part]) -> dict[str, Part]:
    """Turn what a vendor should have and what it has into what is to be done: create, replace, retract, or nothing."""
    todo = {}
    for kind, part in wanted.items():
        if kind not in standing:
            todo[kind] = part
        elif not _says_the_same(part, standing[kind]):
            todo[kind] = replace(part, action="replace", replaces=standing[kind])
    for kind, part in standing.items():
        if kind not in wanted:
            todo[kind] = replace(part, action="retract", record=replace(part.record, stands=record.stands))
    return todo


def _says_the_same(part: Part, other: Part) -> bool:
    """Tell whether a reader at the vendor would see no difference."""
    return part.carries == other.carries and _seen_of(part) == _seen_of(other)


def _seen_of(part: Part) -> str:
    """Write what a reader at the vendor sees of a part: as text, because to Python `True` is 1 and 1 is 1.0."""
    record = part.record
    about: list[Any] = [record.handle.trace_id, record.handle.span_id, record.source]
    if part.kind == "value":
        about += [record.name, record.scale, record.native, record.is_thumb, record.lower_is_better]
    carried = [getattr(record, name) for name in sorted(part.carries)]
    return json.dumps([about, carried], sort_keys=True, default=dict)


def where(error: BaseException) -> str:
    """Name a foreign exception and its place, but never its text: it may quote a comment, or a key."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
