"""What is said: `Feedback` as it was given, `FeedbackRecord` as it is kept, `Part` as a vendor gets it.

Everything that makes a judgement valid lives here, as pure functions; this file knows no store and no vendor.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import re
import unicodedata
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import pydantic_core
from opentelemetry.trace import SpanContext, TraceFlags
from typing_extensions import TypedDict

from otel_feedback._dialects import TO, is_unicode
from otel_feedback._handle import FeedbackHandle, checked_attributes, is_time
from otel_feedback.exceptions import InvalidFeedbackError

if TYPE_CHECKING:
    from random import Random

# What pydantic-core loads when it first writes JSON is loaded now, in whatever thread imports this: a process that is
# forked while another thread loads it would wait for it for ever.
pydantic_core.to_json(None)

FeedbackValue = bool | int | float | str | tuple[str, ...]
Source = Literal["human", "llm", "code"]
KEY_KINDS = ("app", "response", "conversation")
SOURCES: tuple[Source, ...] = ("human", "llm", "code")

# Weave takes payloads up to 1 MiB of ASCII-escaped JSON, the smallest limit of the three.
MAX_RECORD_BYTES = 1024 * 1024
# Long enough for any identifier, short enough for an index.
MAX_NAME_CHARS = 256
# A UUID's; longer integers are nobody's keys.
MAX_KEY_BITS = 128
# Beyond it readers of JSON, JavaScript's among them, round to another number (RFC 8259, section 6).
MAX_JSON_INT = 2**53 - 1
# Where .NET's reader stops, the first among those that are in use; pydantic's own stops at 200.
MAX_JSON_DEPTH = 64

# uuid.UUID() reads more than this: braces, underscores, spaces, even "0x".
_UUID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.IGNORECASE | re.ASCII)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

# How a field says nothing; the others say it with `None`.
_UNSAID: Mapping[str, object] = MappingProxyType({"tags": (), "metadata": {}, "native": {}, "lower_is_better": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One judgement as an application gives it: the arguments of `record_feedback` as a value, for `record_many`.

    See `record_feedback` for what each field means. Its `repr` leaves out what a person wrote, and the target, which
    may be a token.
    """

    name: str
    target: FeedbackHandle | str | None = field(default=None, repr=False)
    key: str | int | uuid.UUID | None = None
    key_kind: str | None = None
    value: bool | int | float | str | Sequence[str] | None = None
    scale: tuple[float, float] | None = None
    comment: str | None = field(default=None, repr=False)
    correction: Any = field(default=None, repr=False)
    tags: Sequence[str] = ()
    user_id: str | None = None
    source: Source = "human"
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    time_unix_nano: int | datetime | None = None
    id: str | uuid.UUID | None = None
    to: Sequence[str] | None = None
    native: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRecord:
    """One judgement as it is stored and delivered: validated, joined to its span, with an id of its own.

    `time_unix_nano` is when the person judged, `recorded_at_unix_nano` when it was accepted. `revision` counts the
    judgements that were recorded under the same id before this one. A record that `retracts` says nothing: it takes
    the earlier ones back, and `stands` is then the newest judgement of somebody else that holds instead, as it is when
    the retraction is leased; it is not stored.

    What was declared of its name is kept with it: `is_thumb` is true of a declared `Thumb`, false of anything else that
    is declared, and `None` where nothing is; `lower_is_better` says in which direction its numbers, or its flag, go.
    """

    id: str
    handle: FeedbackHandle
    name: str
    value: FeedbackValue | None = None
    scale: tuple[float, float] | None = None
    comment: str | None = field(default=None, repr=False)
    correction: Any = field(default=None, repr=False)
    tags: tuple[str, ...] = ()
    user_id: str | None = None
    source: Source = "human"
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    native: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    time_unix_nano: int = 0
    recorded_at_unix_nano: int = 0
    revision: int = 0
    retracts: bool = False
    stands: FeedbackRecord | None = None
    is_thumb: bool | None = None
    lower_is_better: bool = False

    @property
    def said(self) -> tuple[str, ...]:
        """The names of the fields that carry something a reader would miss."""
        names = ("value", "comment", "correction", "tags", "user_id", "metadata")
        return tuple(name for name in names if getattr(self, name) != _UNSAID.get(name))

    @property
    def says_nothing(self) -> bool:
        """Whether there is neither a value, a comment, a correction nor a tag."""
        return self.value is None and self.comment is None and self.correction is None and not self.tags

    @property
    def fraction(self) -> float | None:
        """How good it is, from 0 to 1: a thumb is one of the ends, a number its place on the scale, a label nothing.

        1 is always best: where `lower_is_better`, it is the lowest value, or the flag that is down.
        """
        if isinstance(self.value, bool):
            return int(self.value is not self.lower_is_better)
        if not isinstance(self.value, (int, float)):
            return None
        low, high = self.scale or (0, 1)
        # Both ends exactly: `1 - fraction` may be off by a bit.
        return (high - self.value if self.lower_is_better else self.value - low) / (high - low)

    def is_thumb_under(self, names: Collection[str]) -> bool:
        """Tell whether the value is a thumb up or down: as declared, else by the names that an exporter takes for one.

        A value that is no boolean, as one that was redacted, is no thumb.
        """
        return isinstance(self.value, bool) and (self.name in names if self.is_thumb is None else self.is_thumb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One request's worth of a judgement at one vendor.

    `kind` tells the parts of one judgement apart and is the same on every try. `body` is what the vendor gets,
    `route` where (a path or a parent), in the exporter's own terms. `carries` names the fields of the record that
    reach the vendor in this part. Nothing is sent before `not_before_unix_nano`. `action` is what the engine asks
    for: the exporter's `parts()` always says `create`; a part that replaces another has it in `replaces`, and
    `revisions` are all those of the judgement that may be there, the newest first. Of an earlier
    try it is not known whether it went through, where a part `may_have_arrived`.
    """

    record: FeedbackRecord
    kind: str
    body: Mapping[str, Any] = field(repr=False)
    route: str = ""
    carries: frozenset[str] = frozenset()
    not_before_unix_nano: int = 0
    action: Literal["create", "replace", "retract"] = "create"
    replaces: Part | None = None
    revisions: tuple[int, ...] = ()
    may_have_arrived: bool = False

    @property
    def id(self) -> str:
        """The part's own id: the same on every try, in every process."""
        return part_id(self.record.id, self.kind)


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """What became of one judgement at one destination.

    `state` is a state of the outbox's table (`pending`, `leased`, `delivered`, `dead`, `superseded`, `retracted`,
    `skipped`), `reason` says why where there is something to say.
    """

    state: str
    reason: str | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof that a judgement was accepted.

    `durability` is what it survives: `disk` a power cut, `process` a killed process, `memory` nothing.
    `deliveries` maps each exporter's name to its state, `not_carried` to the fields that it cannot carry. *Delivered*
    means that the vendor answered 2xx, not that it was joined.
    """

    id: str
    durability: str
    deliveries: Mapping[str, DeliveryStatus]
    not_carried: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


GivenValue = bool | int | float | str | Sequence[str]


class FeedbackOptions(TypedDict, total=False):
    """The keyword arguments that every way to record a judgement takes; see `record_feedback`."""

    scale: tuple[float, float]
    comment: str | None
    correction: Any
    tags: Sequence[str]
    user_id: str | None
    source: Source
    metadata: Mapping[str, Any]
    time_unix_nano: int | datetime
    id: str | uuid.UUID | None
    to: Sequence[str] | None
    native: Mapping[str, Mapping[str, Any]]


def feedback_of(target: Any, name: Any, value: Any, options: Mapping[str, Any]) -> Feedback:
    """Make a judgement of the arguments of `record_feedback`.

    Raises:
        TypeError: naming the first keyword that it does not take, and the one that may be meant.
    """
    for option in options.keys() - _OPTIONS:
        meant = difflib.get_close_matches(option, _OPTIONS, n=1)
        hint = f"; did you mean {meant[0]}=?" if meant else ""
        raise TypeError(f"record_feedback() got an unexpected keyword argument {option!r}{hint}")
    return Feedback(target=target, name=name, value=value, **options)


_OPTIONS = frozenset(item.name for item in fields(Feedback)) - {"target", "name", "value"}


# --- identity --------------------------------------------------------------------------------------------------


def new_id(time_unix_nano: int, rng: Random) -> str:
    """Make a UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then chance."""
    bits = (time_unix_nano // 1_000_000 & (1 << 48) - 1) << 80 | rng.getrandbits(80)
    return _versioned(bits, 7)


def derived_id(*names: str) -> str:
    """Make a UUIDv8 (RFC 9562, section 5.8) from names: the same names, the same id, in any process."""
    digest = hashlib.sha256(pydantic_core.to_json(names)).digest()
    return _versioned(int.from_bytes(digest[:16], "big"), 8)


def judgement_id(handle: FeedbackHandle, name: str, source: str, user_id: str) -> str:
    """Derive the id under which one person's judgement of one span is kept, so that a change of mind replaces it."""
    return derived_id("judgement", handle.trace_id, handle.span_id, name, source, user_id)


def part_id(record_id: str, kind: str) -> str:
    """Derive a part's id; the value itself goes under the record's own, so that one can be found by the other."""
    return record_id if kind == "value" else derived_id("part", record_id, kind)


def normal_id(given: object) -> str:
    """Write a judgement's id as it is kept, however it was written; what is none stays what it is."""
    text = str(given)
    return str(uuid.UUID(text)) if _UUID.fullmatch(text) else text


def stand_in_handle(kind: str, key: str, to: Sequence[str] | None = None) -> FeedbackHandle:
    """Make the handle that stands in for a call that is not known yet: the same for the same key.

    It says where the judgement itself asks to go: whatever the call says when it is known, that holds.
    """
    bits = uuid.UUID(derived_id("key", kind, key)).int
    return FeedbackHandle(
        SpanContext(bits, bits & (1 << 64) - 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)),
        attributes={} if to is None else {TO: ",".join(to)},
    )


def _versioned(bits: int, version: int) -> str:
    """Set the version and the variant of RFC 9562 in 128 bits."""
    bits = bits & ~(0xF << 76) | version << 76
    bits = bits & ~(0b11 << 62) | 0b10 << 62
    return str(uuid.UUID(int=bits))


# --- validation ------------------------------------------------------------------------------------------------


def make_record(
    feedback: Feedback,
    handle: FeedbackHandle,
    *,
    now_unix_nano: int,
    rng: Random,
    is_thumb: bool | None = None,
    lower_is_better: bool = False,
) -> FeedbackRecord:
    """Validate a judgement and give it its id; the target has been looked up already.

    Raises:
        InvalidFeedbackError: naming the field and what to do.
    """
    check_handle(handle)
    name = check_name(feedback.name)
    user_id = None if feedback.user_id is None else identifier(feedback.user_id, "user_id")
    record = _written(
        feedback,
        record_id=_id(feedback, handle, now_unix_nano, rng),
        handle=handle,
        name=name,
        user_id=user_id,
        now_unix_nano=now_unix_nano,
        is_thumb=is_thumb,
        lower_is_better=lower_is_better,
    )
    if record.says_nothing:
        raise InvalidFeedbackError("nothing was said: give a value, a comment, a correction or tags", field="value")
    _check_size(record)
    return record


def redacted(record: FeedbackRecord, redact: Callable[[Feedback], Feedback]) -> FeedbackRecord:
    """Let an application's hook take something out of a record; its identity stays.

    Raises:
        InvalidFeedbackError: when what the hook answers is no judgement.
    """
    given = {item.name: getattr(record, item.name) for item in fields(Feedback) if hasattr(record, item.name)}
    # A copy: a hook that changes what it is given must not change what others get.
    feedback = redact(Feedback(target=record.handle, **copy.deepcopy(given)))
    if not isinstance(feedback, Feedback):
        raise InvalidFeedbackError("redact must answer a Feedback", field="redact", value=feedback)
    user_id = None if feedback.user_id is None else identifier(feedback.user_id, "user_id")
    written = _written(
        without_idle_scale(feedback, record.scale),
        record_id=record.id,
        handle=record.handle,
        name=record.name,
        user_id=user_id,
        now_unix_nano=record.recorded_at_unix_nano,
        is_thumb=record.is_thumb,
        lower_is_better=record.lower_is_better,
    )
    _check_size(written)
    return written


def without_idle_scale(feedback: Feedback, scale: tuple[float, float] | None) -> Feedback:
    """Take out the scale that a judgement had, where its number has been redacted: only a new one can be wrong."""
    return feedback if is_number(feedback.value) or feedback.scale != scale else replace(feedback, scale=None)


def _written(
    feedback: Feedback,
    *,
    record_id: str,
    handle: FeedbackHandle,
    name: str,
    user_id: str | None,
    now_unix_nano: int,
    is_thumb: bool | None,
    lower_is_better: bool,
) -> FeedbackRecord:
    """Check what is said, and write it as a record."""
    return FeedbackRecord(
        id=record_id,
        handle=handle,
        name=name,
        value=_value(feedback.value, feedback.scale),
        scale=_scale(feedback.scale, feedback.value),
        comment=None if feedback.comment is None else _text(feedback.comment, "comment"),
        correction=_correction(feedback.correction),
        tags=_tags(feedback.tags),
        user_id=user_id,
        source=_source(feedback.source),
        metadata=_mapping(feedback.metadata, "metadata"),
        native=native_of(feedback.native),
        time_unix_nano=_time(feedback.time_unix_nano, now_unix_nano),
        recorded_at_unix_nano=now_unix_nano,
        is_thumb=is_thumb,
        lower_is_better=lower_is_better,
    )


def _source(source: object) -> Source:
    """Check who judged."""
    if source not in SOURCES:
        raise InvalidFeedbackError(f"source must be one of {', '.join(SOURCES)}", field="source", value=source)
    return SOURCES[SOURCES.index(source)]


def check_name(given: object) -> str:
    """Check the name under which something is judged.

    Raises:
        InvalidFeedbackError: when it is no text of one line, or one that W&B keeps for itself.
    """
    name = identifier(given, "name")
    if name.lower().startswith("wandb."):
        raise InvalidFeedbackError(
            "names that begin with 'wandb.' belong to W&B; choose another", field="name", value=given
        )
    return name


def native_of(given: object) -> dict[str, dict[str, Any]]:
    """Check what is set of vendors' own fields: a mapping of JSON by exporter's name.

    Raises:
        InvalidFeedbackError: naming what is no mapping, or nothing that JSON has a word for.
    """
    return {exporter: _mapping(body, f"native[{exporter!r}]") for exporter, body in _mapping(given, "native").items()}


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number, which a boolean is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_size(record: FeedbackRecord) -> None:
    """Refuse a record that is too large, naming the field that is most of it."""
    sizes = {name: len(json.dumps(value)) for name, value in _record_fields(record).items()}
    if sum(sizes.values()) > MAX_RECORD_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InvalidFeedbackError(
            f"the judgement is larger than {MAX_RECORD_BYTES} bytes of JSON; make {largest} shorter",
            field=largest,
            value=getattr(record, largest),
        )


def check_handle(handle: FeedbackHandle) -> None:
    """Refuse what is no handle, or a handle without ids."""
    if not isinstance(handle, FeedbackHandle):
        raise InvalidFeedbackError(
            "the target must be a FeedbackHandle; raw ids go through FeedbackHandle.from_traceparent()",
            field="target",
            value=handle,
        )
    is_root = isinstance(handle.root, int) and 0 <= handle.root < 1 << 64
    is_flagged = isinstance(handle.context, SpanContext) and isinstance(handle.context.trace_flags, int)
    if not (is_flagged and is_root and is_time(handle.started_at) and is_time(handle.ended_at)):
        raise InvalidFeedbackError(
            "this handle was put together wrongly: it needs a SpanContext, a 64-bit root and times in Unix nanoseconds",
            field="target",
            value=handle,
        )
    if not handle.is_valid:
        raise InvalidFeedbackError(
            "this handle has all-zero ids and names no span; is an OpenTelemetry SDK configured where the call runs?",
            field="target",
            value=handle,
        )
    checked_attributes(handle.attributes)


def check_one_target(feedback: Feedback) -> None:
    """Refuse a judgement with no target or with two."""
    if (feedback.target is None) == (feedback.key is None):
        raise InvalidFeedbackError(
            "give exactly one of a target and key=: which call is this about?",
            field="target",
            value=(feedback.target, feedback.key),
        )
    if feedback.target is not None and not isinstance(feedback.target, str):
        check_handle(feedback.target)
    if feedback.key is not None:
        check_key(feedback.key, feedback.key_kind)
    elif feedback.key_kind is not None:
        raise _wrong_kind(feedback.key_kind)


def check_key(key: object, kind: object = None) -> None:
    """Refuse what is nobody's id of an answer: a key is a text, a UUID, or an integer no longer than one."""
    if kind is not None and kind not in KEY_KINDS:
        raise _wrong_kind(kind)
    is_number = isinstance(key, int) and not isinstance(key, bool) and key.bit_length() <= MAX_KEY_BITS
    if not is_number and not isinstance(key, uuid.UUID):
        _text(key, "key")


def _wrong_kind(kind: object) -> InvalidFeedbackError:
    return InvalidFeedbackError(
        f"key_kind goes with key= and is one of {', '.join(KEY_KINDS)}", field="key_kind", value=kind
    )


def _id(feedback: Feedback, handle: FeedbackHandle, now_unix_nano: int, rng: Random) -> str:
    """Take the id that was given, derive it from the person, or make a new one."""
    if feedback.id is not None:
        if not _UUID.fullmatch(str(feedback.id)):
            raise InvalidFeedbackError("id must be a UUID, such as uuid.uuid4()", field="id", value=feedback.id)
        return normal_id(feedback.id)
    if feedback.user_id is not None:
        return judgement_id(handle, feedback.name, feedback.source, feedback.user_id)
    return new_id(now_unix_nano, rng)


def _value(value: object, scale: object) -> FeedbackValue | None:
    """Check a value by its type: a thumb, a number with its scale, a label or labels."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return _number(value, scale)
    if isinstance(value, str):
        return identifier(value, "value")
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return _labels(value, "value")
    raise InvalidFeedbackError(
        "a value is a bool (a thumb), a number, a string (a label) or a list of strings (labels), "
        f"not {type(value).__name__}",
        field="value",
        value=value,
    )


def _number(value: float, scale: object) -> float:
    """Check a number against its scale, both ends included."""
    number = _plain_number(value, "value")
    if scale is None and isinstance(number, int):
        raise InvalidFeedbackError(
            "an int needs its scale, as in scale=(1, 5): one star is not 100 %", field="value", value=value
        )
    low, high = (0.0, 1.0) if scale is None else ends_of(scale)
    if not low <= number <= high:
        hint = "; give scale=(lowest, highest) for another range" if scale is None else ""
        raise InvalidFeedbackError(
            f"the value lies outside its scale of {low:g} to {high:g}{hint}", field="value", value=value
        )
    return number


def _scale(scale: object, value: object) -> tuple[float, float] | None:
    """Check a scale, which belongs to numbers only."""
    if scale is None:
        return None
    if not is_number(value):
        raise InvalidFeedbackError("a scale belongs to a number", field="scale", value=scale)
    return ends_of(scale)


def ends_of(scale: object) -> tuple[float, float]:
    """Read a scale as its lowest and its highest value.

    Raises:
        InvalidFeedbackError: when it is not two finite numbers in that order.
    """
    ends = tuple(scale) if isinstance(scale, (tuple, list)) else ()
    if len(ends) == 2 and all(map(is_number, ends)):
        low, high = (_plain_number(end, "scale") for end in ends)
        # Two floats may lie so far apart that the range between them is infinite.
        if low < high and math.isfinite(high - low):
            return low, high
    raise InvalidFeedbackError(
        "a scale is two finite numbers, the lowest and the highest value, as in scale=(1, 5)",
        field="scale",
        value=scale,
    )


def _plain_number(value: float, name: str) -> float:
    """Take a number as a plain int or float that every reader of JSON reads as the same one."""
    if not isinstance(value, int):
        if not math.isfinite(value):
            raise InvalidFeedbackError(f"{name} has a number that is not finite", field=name, value=value)
        return float(value)
    if abs(value) > MAX_JSON_INT:
        raise InvalidFeedbackError(
            f"{name} has an integer beyond {MAX_JSON_INT}, which readers of JSON round; give it as a string",
            field=name,
            value=value,
        )
    return int(value)


def _text(value: object, name: str, *, limit: int = MAX_RECORD_BYTES) -> str:
    """Check a text: a string that says something, can be written as UTF-8 and is not too long."""
    if not isinstance(value, str):
        raise InvalidFeedbackError(f"{name} must be a string, not {type(value).__name__}", field=name, value=value)
    if not value.strip():
        raise InvalidFeedbackError(f"{name} is empty; leave it out instead", field=name, value=value)
    if len(value) > limit:
        raise InvalidFeedbackError(f"{name} is longer than {limit} characters", field=name, value=value)
    return _plain_text(value, name)


def _plain_text(value: str, name: str) -> str:
    """Take a text as a plain string, a member of an enumeration as what it stands for."""
    if not is_unicode(value):
        raise InvalidFeedbackError(
            f"{name} has half of a surrogate pair, which no vendor can store; decode the text as UTF-8",
            field=name,
            value=value,
        )
    # Not str(), which answers 'Color.RED' for a member of `class Color(str, Enum)`.
    return str.__str__(value)


def identifier(value: object, name: str) -> str:
    """Check a text of one line that names something: a judgement, a person, a label.

    Raises:
        InvalidFeedbackError: when it is none, is too long, or has a line break.
    """
    text = _text(value, name, limit=MAX_NAME_CHARS)
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise InvalidFeedbackError(
            f"{name} has a control character, such as a line break; longer text is a comment", field=name, value=value
        )
    return text


def _labels(value: object, name: str) -> tuple[str, ...]:
    """Check several labels, each once."""
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        raise InvalidFeedbackError(f"{name} must be a list of strings", field=name, value=value)
    if not value:
        raise InvalidFeedbackError(f"{name} is an empty list; leave it out instead", field=name, value=value)
    return tuple(dict.fromkeys(identifier(label, name) for label in value))


def _tags(tags: object) -> tuple[str, ...]:
    """Check the tags; there may be none."""
    if tags is None or (isinstance(tags, (list, tuple)) and not tags):
        return ()
    return _labels(tags, "tags")


def _correction(correction: object) -> Any:
    """Check what the answer should have been: a text that says something, or JSON; nothing given is none."""
    if correction is None:
        return None
    return _text(correction, "correction") if isinstance(correction, str) else _json(correction, "correction")


def _mapping(value: object, name: str) -> dict[str, Any]:
    """Check a mapping with string keys and JSON values."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidFeedbackError(f"{name} must be a mapping", field=name, value=value)
    return dict(_json(value, name))


def _json(value: Any, name: str, depth: int = 1) -> Any:
    """Bring a value into plain JSON, refusing what JSON has no word for."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return _plain_number(value, name)
    if isinstance(value, str):
        return _plain_text(value, name)
    if isinstance(value, datetime):
        return _aware(value, name).isoformat()
    if isinstance(value, (Mapping, list, tuple)):
        return _container(value, name, depth)
    raise InvalidFeedbackError(
        f"{name} has a {type(value).__name__}, for which JSON has no word", field=name, value=value
    )


def _container(value: Mapping[Any, Any] | Sequence[Any], name: str, depth: int) -> Any:
    """Bring a mapping, a list or a tuple into plain JSON, down to a depth that every reader can follow."""
    if depth > MAX_JSON_DEPTH:
        raise InvalidFeedbackError(
            f"{name} is nested deeper than {MAX_JSON_DEPTH} levels, or contains itself", field=name, value=value
        )
    if not isinstance(value, Mapping):
        return [_json(item, name, depth + 1) for item in value]
    if not all(isinstance(key, str) for key in value):
        raise InvalidFeedbackError(f"{name} has a key that is no string", field=name, value=value)
    return {_plain_text(key, name): _json(item, name, depth + 1) for key, item in value.items()}


def _time(value: object, now_unix_nano: int) -> int:
    """Read the time of a judgement; nothing given means now."""
    if value is None:
        return now_unix_nano
    if isinstance(value, datetime):
        # In whole numbers: a float of seconds is a microsecond off now and then.
        value = (_aware(value, "time_unix_nano") - _EPOCH) // timedelta(microseconds=1) * 1_000
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63:
        return int(value)
    raise InvalidFeedbackError(
        "time_unix_nano is nanoseconds since 1970, or a datetime since then with a time zone",
        field="time_unix_nano",
        value=value,
    )


def _aware(value: datetime, name: str) -> datetime:
    """Refuse a datetime without a time zone."""
    if value.utcoffset() is None:
        raise InvalidFeedbackError(
            f"{name} has a datetime without a time zone; use datetime.now(timezone.utc)",
            field=name,
            value=value,
        )
    return value


# --- as text ---------------------------------------------------------------------------------------------------


def handle_to_json(handle: FeedbackHandle) -> str:
    """Write a handle as JSON, for a store."""
    return pydantic_core.to_json(_handle_fields(handle)).decode()


def handle_from_json(text: str) -> FeedbackHandle:
    """Read what `handle_to_json` wrote."""
    return _handle_from(pydantic_core.from_json(text))


def record_to_json(record: FeedbackRecord) -> str:
    """Write a record as JSON, for a store; its revision is a column of the store's."""
    return pydantic_core.to_json(_record_fields(record)).decode()


def record_from_json(text: str, *, revision: int = 0) -> FeedbackRecord:
    """Read what `record_to_json` wrote."""
    return _record_from(pydantic_core.from_json(text), revision)


_PLAIN = tuple(item.name for item in fields(FeedbackRecord) if item.name not in ("handle", "stands", "revision"))


def _record_fields(record: FeedbackRecord) -> dict[str, Any]:
    written = {name: getattr(record, name) for name in _PLAIN}
    written = {name: value for name, value in written.items() if value != _UNSAID.get(name)}
    written["handle"] = _handle_fields(record.handle)
    return written


def _record_from(read: dict[str, Any], revision: int = 0) -> FeedbackRecord:
    for name in ("scale", "tags", "value"):
        if isinstance(read.get(name), list):
            read[name] = tuple(read[name])
    read["handle"] = _handle_from(read["handle"])
    # What a newer release has added under the same schema can be left out.
    return FeedbackRecord(**{name: read[name] for name in (*_PLAIN, "handle") if name in read}, revision=revision)


def _handle_fields(handle: FeedbackHandle) -> dict[str, Any]:
    context = handle.context
    written: dict[str, Any] = {"context": [handle.trace_id, handle.span_id, int(context.trace_flags)]}
    if not context.is_remote:
        written["is_local"] = True
    if handle.root:
        written["root"] = handle.root_span_id
    if handle.started_at is not None:
        written["started_at"] = handle.started_at
    if handle.ended_at is not None:
        written["ended_at"] = handle.ended_at
    if handle.attributes:
        written["attributes"] = dict(handle.attributes)
    return written


def _handle_from(read: dict[str, Any]) -> FeedbackHandle:
    trace_id, span_id, flags = read["context"]
    return FeedbackHandle(
        SpanContext(
            int(trace_id, 16),
            int(span_id, 16),
            is_remote=not read.get("is_local", False),
            trace_flags=TraceFlags(flags),
        ),
        root=int(read.get("root", "0"), 16),
        started_at=read.get("started_at"),
        ended_at=read.get("ended_at"),
        attributes=MappingProxyType(read.get("attributes", {})),
    )
