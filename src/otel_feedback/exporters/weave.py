"""W&B Weave: `POST /feedback/create`, `/feedback/batch/create`, `/feedback/replace`, `/feedback/purge`.

Source: docs.wandb.ai, Weave service API, and the trace server's own code as weave 0.53.12 ships it, for what the page
leaves out. The server never checks `weave_ref`: a wrong one answers 200 and joins nothing, so the one function
`weave_ref` builds them all. Everything that Weave needs to be told lives here; this file does no I/O.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import quote

import pydantic
import pydantic_core
from typing_extensions import TypedDict

from otel_feedback import environment_variables as env
from otel_feedback._dialects import CONVERSATION_ID
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord, Part, part_id
from otel_feedback._time import NANOS_PER_MILLI, iso_utc
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import PauseDestination, PermanentFailure, Result, Success
from otel_feedback.exporters._http import (
    Exchange,
    HTTPFeedbackExporter,
    HTTPOptions,
    NoAnswer,
    Text,
    check_api_key,
    check_choice,
    check_names,
    check_text,
    json_of,
    native_fields,
    not_tried,
    reason_of,
    require_api_key,
    text_or,
)

if TYPE_CHECKING:
    import httpx

CREATE, BATCH, REPLACE, PURGE = "/feedback/create", "/feedback/batch/create", "/feedback/replace", "/feedback/purge"

REACTION = "wandb.reaction.1"
NOTE = "wandb.note.1"
AGENT_FEEDBACK = "wandb.agent_user_feedback"
AGENT_MONITOR = "wandb.agent_monitor"
ANNOTATION = "wandb.annotation."
RUNNABLE = "wandb.runnable."

# Weave refuses a longer note (its MAX_FEEDBACK_NOTE_LENGTH).
MAX_NOTE_CHARS = 1024
# And a larger payload, measured as `len(json.dumps(payload))` (its CLICKHOUSE_MAX_FEEDBACK_PAYLOAD_SIZE).
MAX_PAYLOAD_CHARS = 1024 * 1024
# What the server writes beside an emoji before it measures: its name, and both again without skin tones. The longest of
# Unicode's sequences takes 350.
REACTION_ROOM_CHARS = 512
# A request's body.
MAX_BODY_BYTES = 32 * 1024 * 1024
# As many as Weave's own client sends at once (its DEFAULT_MAX_BATCH_SIZE).
MAX_BATCH_ITEMS = 100
# A server that has no batches is asked for one again after this: it may have been replaced by a newer one.
NO_BATCH_MILLIS = 3_600_000

THUMB_UP, THUMB_DOWN = "👍", "👎"

# The types on which Weave takes a scorer's fields; on any other it answers 400.
SCORED_TYPES = (AGENT_FEEDBACK, AGENT_MONITOR, RUNNABLE)

# What Weave has of its own types; any other that begins so is reserved.
RESERVED = "wandb."
_OWN_TYPE = re.compile(
    r"wandb\.(reaction\.1|note\.1|agent_user_feedback|agent_monitor|annotation\..+|runnable\..+)", re.DOTALL
)

# Two parts, raw: a URL-encoded project is another project. W&B allows spaces inside a part, but none of /\#?%:.
_PART = r"(?!\s)[^/\\#?%:\x00-\x1f\x7f]+(?<!\s)"
_PROJECT_ID = re.compile(f"{_PART}/{_PART}")

View = Literal["traces", "agents"]
Level = Literal["span", "trace", "conversation"]
RefKind = Literal["call", "agent_span", "agent_turn", "agent_conversation"]

# What a judgement is put on. The Traces view has no reference to a trace: its outermost call stands for it.
REF_KINDS: Mapping[tuple[View, Level], RefKind] = MappingProxyType(
    {
        ("traces", "span"): "call",
        ("traces", "trace"): "call",
        ("agents", "span"): "agent_span",
        ("agents", "trace"): "agent_turn",
        ("agents", "conversation"): "agent_conversation",
    }
)

# The ids that can join: lower-case hex, not all zeros; a conversation's is any text.
_SPAN_ID, _TRACE_ID = r"(?!0+$)[0-9a-f]{16}", r"(?!0+$)[0-9a-f]{32}"
_IDS: Mapping[str, re.Pattern[str]] = {
    "call": re.compile(_SPAN_ID),
    "agent_span": re.compile(_SPAN_ID),
    "agent_turn": re.compile(_TRACE_ID),
    "agent_conversation": re.compile(r".*\S.*", re.DOTALL),
}

# A reference to what Weave keeps; objects and ops have a version, calls have none.
_REF = re.compile(
    rf"weave:///(?P<project>{_PART}/{_PART})/(?:(?P<kind>object|op)/(?P<name>[\w.-]+):[\w.*-]+|(?P<call>call)/[\w-]+)"
)

# The references that belong to what runnables and monitors say, and what each may refer to.
RUN_REFS: Mapping[str, Sequence[str]] = MappingProxyType(
    {"runnable_ref": ("object", "op"), "call_ref": ("call",), "trigger_ref": ("object", "op")}
)

# What a server without batches answers to them.
NO_BATCHES = frozenset({404, 405})

# Unicode's emoji of one character (the package `emoji` 2.16, Unicode 17), with the block that is kept for new ones.
_EMOJI_RANGES = (
    "a9 ae 203c 2049 2122 2139 2194-2199 21a9-21aa 231a-231b 2328 23cf 23e9-23f3 23f8-23fa 24c2 25aa-25ab "
    "25b6 25c0 25fb-25fe 2600-2604 260e 2611 2614-2615 2618 261d 2620 2622-2623 2626 262a 262e-262f "
    "2638-263a 2640 2642 2648-2653 265f-2660 2663 2665-2666 2668 267b 267e-267f 2692-2697 2699 269b-269c "
    "26a0-26a1 26a7 26aa-26ab 26b0-26b1 26bd-26be 26c4-26c5 26c8 26ce-26cf 26d1 26d3-26d4 26e9-26ea "
    "26f0-26f5 26f7-26fa 26fd 2702 2705 2708-270d 270f 2712 2714 2716 271d 2721 2728 2733-2734 2744 2747 "
    "274c 274e 2753-2755 2757 2763-2764 2795-2797 27a1 27b0 27bf 2934-2935 2b05-2b07 2b1b-2b1c 2b50 2b55 "
    "3030 303d 3297 3299 1f004 1f0cf 1f170-1f171 1f17e-1f17f 1f18e 1f191-1f19a 1f201-1f202 1f21a 1f22f "
    "1f232-1f23a 1f250-1f251 1f300-1f321 1f324-1f393 1f396-1f397 1f399-1f39b 1f39e-1f3f0 1f3f3-1f3f5 "
    "1f3f7-1f4fd 1f4ff-1f53d 1f549-1f54e 1f550-1f567 1f56f-1f570 1f573-1f57a 1f587 1f58a-1f58d 1f590 "
    "1f595-1f596 1f5a4-1f5a5 1f5a8 1f5b1-1f5b2 1f5bc 1f5c2-1f5c4 1f5d1-1f5d3 1f5dc-1f5de 1f5e1 1f5e3 "
    "1f5e8 1f5ef 1f5f3 1f5fa-1f64f 1f680-1f6c5 1f6cb-1f6d2 1f6d5-1f6d9 1f6dc-1f6e5 1f6e9 1f6eb-1f6ec "
    "1f6f0 1f6f3-1f6fc 1f7e0-1f7eb 1f7f0 1f90c-1f93a 1f93c-1f945 1f947-1f9ff 1fa70-1faff "
)


def _characters(ranges: str) -> str:
    """Write ranges of code points as the inside of a regular expression's brackets."""
    return "".join("-".join(f"\\U{end:0>8}" for end in each.split("-")) for each in ranges.split())


_ONE = rf"[{_characters(_EMOJI_RANGES)}][\U0001f3fb-\U0001f3ff\ufe0e\ufe0f]?"
_EMOJI = re.compile(
    rf"{_ONE}(?:\u200d{_ONE})*"  # one picture, with a skin tone or without, or several joined
    r"|[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"  # flags of countries and regions
    r"|[0-9#*]\ufe0f?\u20e3"  # keycaps
)

Confidence = Annotated[float, pydantic.Field(ge=0, le=1)]


class WeaveNative(TypedDict, total=False):
    """What `native={"weave": …}` may set: every published field but the ids and the user that W&B fills in."""

    feedback_type: Text
    payload: dict[str, Any]
    creator: Text
    annotation_ref: str
    runnable_ref: str
    call_ref: str
    trigger_ref: str
    queue_id: str
    scorer_tags: list[str]
    scorer_tag_reasons: dict[str, str]
    scorer_tag_confidences: dict[str, Confidence]
    scorer_ratings: dict[str, Confidence]
    scorer_rating_reasons: dict[str, str]
    scorer_rating_confidences: dict[str, Confidence]


class WeaveExporter(HTTPFeedbackExporter):
    """Sends judgements to W&B Weave, onto the span's call.

    Args:
        project_id: `entity/project`; by default `WANDB_ENTITY` and `WANDB_PROJECT`, or `WANDB_PROJECT` with a slash.

        api_key: by default `WANDB_API_KEY`.

        base_url: by default `WF_TRACE_SERVER_URL`, else `/traces` at a `WANDB_BASE_URL` of your own, else
            `https://trace.wandb.ai`.

        name: how users route to it.

        view: where the spans are: `traces` for those sent to `/otel/v1/traces`, `agents` for
            `/agents/otel/v1/traces`.

        level: what a judgement is put on: the `span`, its `trace` (in the Traces view the outermost call, in the
            Agents view the turn), or its `conversation` (Agents view only). Where the conversation's id is not known
            it is put on the trace, and the payload says `"level": "trace"`.

        thumbs: the undeclared names whose booleans are a thumb up or down.

        annotations: the names whose values are annotations of Weave's, each with the reference to its annotation spec,
            as in `{"helpful": "weave:///acme/chat/object/helpfulness:digest"}`. Traces view only. The server holds the
            value against the spec.

        options: timeouts and transport.
    """

    native_type = WeaveNative

    def __init__(
        self,
        project_id: str | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        name: str = "weave",
        view: View = "traces",
        level: Level = "span",
        thumbs: Sequence[str] = ("rating", "thumb"),
        annotations: Mapping[str, str] = MappingProxyType({}),
        options: HTTPOptions | None = None,
    ) -> None:
        super().__init__(name=name, base_url=text_or(base_url, "base_url", _base_url()), options=options)
        self._api_key = check_api_key(text_or(api_key, "api_key", env.read(env.WANDB_API_KEY)), env.WANDB_API_KEY)
        self.project_id = check_project_id(text_or(project_id, "project_id", _project_id()))
        check_choice(view, "view", get_args(View))
        check_choice(level, "level", [each for its_view, each in REF_KINDS if its_view == view])
        self.view: View = view
        self.level: Level = level
        self.thumbs = check_names(thumbs, "thumbs")
        self.annotations = check_annotations(annotations, view=view, project_id=self.project_id)
        self._single_until_nano = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """Basic authorization: the user is always `api`."""
        return {"authorization": "Basic " + base64.b64encode(f"api:{self._api_key}".encode()).decode()}

    def start(self) -> None:
        """Refuse to start without a key or a project."""
        require_api_key(self._api_key, self.name, env.WANDB_API_KEY)
        if not self.project_id:
            raise ConfigurationError(
                "Weave needs a project: set WANDB_ENTITY and WANDB_PROJECT or give project_id='entity/project'",
                setting=env.WANDB_PROJECT,
            )
        super().start()

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """The value, the correction, the comment; tags, metadata and time ride on the first of them.

        In the Agents view tags are part of the value, also where there is no other value.
        """
        native = native_fields(record, self.name, WeaveNative)
        kinds = [kind for kind in ("value", "correction", "comment") if getattr(record, kind) is not None]
        if "value" not in kinds and (not kinds or (record.tags and self.view == "agents")):
            kinds.insert(0, "value")
        # Who said it, and in which queue, is true of every row.
        shared = {name: native[name] for name in ("creator", "queue_id") if name in native}
        first, *others = kinds
        return [
            self._part(record, first, native, is_first=True),
            *(self._part(record, kind, shared, is_first=False) for kind in others),
        ]

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        """Create many with one request, replace and purge one by one, in order; stop where the destination does.

        Of a batch that is refused the halves are sent, since the server takes all of it or nothing; where it has no
        batches, each part by itself.
        """
        results: list[Result] = []
        waiting = deque(self._requests(parts))
        lacks_batches = False
        while waiting:
            batch = waiting.popleft()
            try:
                if len(batch) == 1:
                    answered = [(yield from self._deliver(batch[0]))]
                elif lacks_batches:
                    waiting.extendleft([part] for part in reversed(batch))
                    continue
                else:
                    response = yield self.request("POST", BATCH, {"batch": [part.body for part in batch]})
                    # Of no text can it be told whom it quotes.
                    answered = [self.result(response)] * len(batch)
                    if response.status_code in NO_BATCHES:
                        lacks_batches = True
                    if smaller := _smaller(batch, response.status_code, answered[0]):
                        waiting.extendleft(reversed(smaller))
                        continue
            except NoAnswer as silence:
                results += [silence.result] * len(batch)
                break
            results += answered
            if _stops(answered[-1]):
                break
            if lacks_batches:
                # Only now is it known that the server has this project, and no batches.
                self._single_until_nano = self._now_nano + NO_BATCH_MILLIS * NANOS_PER_MILLI
        return results + [not_tried(results[-1])] * (len(parts) - len(results)) if results else []

    @property
    def _now_nano(self) -> int:
        return self._options.clock.monotonic_nano()

    def _requests(self, parts: Sequence[Part]) -> Iterator[list[Part]]:
        """Cut parts into requests: what is created goes in batches.

        Not so what may have arrived: if the server fails at it, it does not sink the others for ever.
        """
        is_single = self._now_nano < self._single_until_nano
        for may_be_many, run in groupby(parts, lambda part: part.action == "create" and not part.may_have_arrived):
            limit = MAX_BATCH_ITEMS if may_be_many and not is_single else 1
            yield from _batches(run, limit)

    def _part(self, record: FeedbackRecord, kind: str, native: Mapping[str, Any], *, is_first: bool) -> Part:
        """Build the body of one feedback row."""
        feedback_type = native.get("feedback_type", self._type(record, kind))
        carries = {kind, "user_id"}
        payload = self._payload(record, kind, feedback_type)
        if is_first:
            payload |= _rest(record)
            carries |= {"tags", "metadata"}
        level, target = self._target(record.handle)
        if level != self.level:
            payload["level"] = level
        body: dict[str, Any] = {
            "project_id": self.project_id,
            # A process that only records may know no project; what is sent is written where it is delivered.
            "weave_ref": self.project_id and weave_ref(self.project_id, REF_KINDS[self.view, level], target),
            "feedback_type": feedback_type,
            "payload": {**payload, "recorded_at": iso_utc(record.time_unix_nano)},
            "id": part_id(record.id, kind),
        }
        if record.user_id is not None:
            body["creator"] = record.user_id
        if feedback_type == AGENT_FEEDBACK:
            body |= self._scorer_fields(record)
        if feedback_type == self._annotation_type(record.name):
            body["annotation_ref"] = self.annotations[record.name]
        body = {**body, **native, "payload": {**body["payload"], **native.get("payload", {})}}
        broken = next(broken_rules(body), None)
        if broken is not None:
            raise InvalidFeedbackError(f"native[{self.name!r}]: {broken}", field=f"native.{self.name}")
        _check_size(body, kind)
        return Part(record=record, kind=kind, body=body, carries=frozenset(carries) & frozenset(record.said))

    def _target(self, handle: FeedbackHandle) -> tuple[Level, str]:
        """Say what a judgement is put on; where no conversation is known, on the trace."""
        conversation = handle.attributes.get(CONVERSATION_ID, "")
        if self.level == "conversation" and conversation.strip():
            return "conversation", conversation
        if self.level == "span":
            return "span", handle.span_id
        return "trace", handle.root_span_id if self.view == "traces" else handle.trace_id

    def _annotation_type(self, name: str) -> str | None:
        """Name the type of an annotation, which has to end as its spec is called."""
        return ANNOTATION + _ref_name(self.annotations[name]) if name in self.annotations else None

    def _type(self, record: FeedbackRecord, kind: str) -> str:
        """Choose the feedback type of a part."""
        if kind == "comment":
            return NOTE if len(record.comment or "") <= MAX_NOTE_CHARS else kind
        if kind == "correction":
            return kind
        if self.view == "agents":
            return AGENT_FEEDBACK
        annotation = self._annotation_type(record.name)
        if annotation is not None and record.value is not None:
            return annotation
        return REACTION if self._is_thumb(record) else record.name

    def _payload(self, record: FeedbackRecord, kind: str, feedback_type: str) -> dict[str, Any]:
        """Write what a part says, in the words of its type."""
        said = getattr(record, kind)
        if said is None:
            return {}
        if feedback_type == NOTE:
            return {"note": said}
        if kind == "value" and self._is_thumb(record) and feedback_type in (REACTION, AGENT_FEEDBACK):
            return {"emoji": _emoji(record)}
        # A runnable's payload is what it put out.
        name = "output" if feedback_type.startswith(RUNNABLE) else "value"
        payload = {name: list(said) if isinstance(said, tuple) else said}
        if kind == "value" and record.scale is not None:
            payload["scale"] = list(record.scale)
        return payload

    def _is_thumb(self, record: FeedbackRecord) -> bool:
        """Tell whether a value is a thumb up or down."""
        return record.is_thumb_under(self.thumbs)

    def _scorer_fields(self, record: FeedbackRecord) -> dict[str, Any]:
        """Write a value for the Agents view, where tags must not be empty."""
        value = record.value
        if self._is_thumb(record):
            tags = [_emoji(record)]
        elif isinstance(value, bool):
            tags = [record.name if value else f"not {record.name}"]
        elif isinstance(value, (int, float)):
            tags = [record.name]
        else:
            tags = [value] if isinstance(value, str) else list(value or ())
        fields: dict[str, Any] = {"scorer_tags": list(dict.fromkeys([*tags, *record.tags]))}
        if not isinstance(value, bool) and record.fraction is not None:
            fields["scorer_ratings"] = {record.name: record.fraction}
        return fields

    def _deliver(self, part: Part) -> Exchange[Result]:
        """Create, replace or purge one row."""
        if part.action == "retract":
            response = yield self.request("POST", PURGE, purge_body(self.project_id, part.id))
            if response.status_code == 404 and _is_of_the_row(response):
                return Success(reason_of(response, "it was not there"))
            return self._judge(response, part)
        if part.action == "replace":
            response = yield self.request("POST", REPLACE, {**part.body, "feedback_id": part.id})
            if response.status_code != 404:
                return self._judge(response, part)
            # An older server, which has nothing to replace with: the same in two steps, so that one row is left.
            response = yield self.request("POST", PURGE, purge_body(self.project_id, part.id))
            purged = self._judge(response, part)
            if response.status_code != 404 and not isinstance(purged, Success):
                return purged
        response = yield self.request("POST", CREATE, part.body)
        return self._judge(response, part)

    def _judge(self, response: httpx.Response, part: Part) -> Result:
        """Read an answer, of an error Weave's own `reason`."""
        return self.result(response, message=self.message(response, "reason", part))


# --- references --------------------------------------------------------------------------------------------------


def weave_ref(project_id: str, kind: RefKind, target: str) -> str:
    """Build a reference to what a judgement is about, the one place where that is done: the server checks none.

    Args:
        project_id: `entity/project`, raw.

        kind: what is referred to.

        target: its id: 16 lower-case hex digits of a span, 32 of a trace, or a conversation's as it is; only that is
            quoted.

    Raises:
        InvalidFeedbackError: when one of them can join nothing.
    """
    if not (_PROJECT_ID.fullmatch(project_id) and kind in _IDS and _IDS[kind].fullmatch(target)):
        raise InvalidFeedbackError(
            f"no {kind} in Weave can have this id: a span has 16 lower-case hex digits, a trace 32, and a project is "
            "entity/project",
            field="target",
            value=(project_id, kind, target),
        )
    # Weave's own rule for what it quotes (its extra_value_quoter).
    return f"weave:///{project_id}/{kind}/{quote(target, safe='')}"


def check_annotations(given: object, *, view: View, project_id: str) -> Mapping[str, str]:
    """Check the names whose values are annotations, and the references to their specs.

    Raises:
        ConfigurationError: when a reference is not to an object of the project, by name and digest.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            "annotations must be a mapping of names to references, as in "
            "annotations={'tone': 'weave:///entity/project/object/tone:digest'}",
            setting="annotations",
        )
    if given and view != "traces":
        raise ConfigurationError("annotations are of the Traces view: leave out view='agents'", setting="annotations")
    for name, reference in given.items():
        check_text(name, "annotations")
        found = _REF.fullmatch(reference) if isinstance(reference, str) else None
        if found is None or found["kind"] != "object" or project_id not in ("", found["project"]):
            raise ConfigurationError(
                f"the annotation {name!r} needs the reference to its spec in this exporter's project: "
                "weave:///entity/project/object/<name>:<digest>",
                setting="annotations",
            )
    return MappingProxyType(dict(given))


def _ref_name(reference: str) -> str:
    """Read the name of the object or op in a reference that has been checked."""
    return reference.rpartition("/")[2].partition(":")[0]


def _is_ref(reference: object, kinds: Sequence[str], project_id: str = "", name: str = "") -> bool:
    """Tell whether a text refers to one of these kinds, and to this project and name where they are given."""
    found = _REF.fullmatch(reference) if isinstance(reference, str) else None
    return (
        found is not None
        and (found["kind"] or found["call"]) in kinds
        and project_id in ("", found["project"])
        and name in ("", found["name"])
    )


# --- what Weave refuses ------------------------------------------------------------------------------------------


def broken_rules(body: Mapping[str, Any]) -> Iterator[str]:
    """Say which rules of Weave's about types a body breaks, in words; only `native` can lead to it.

    They are those of the trace server's `validate_feedback_create_req`, which answers 400 to each.
    """
    kind, payload = body["feedback_type"], body["payload"]
    name = kind.removeprefix(RESERVED).partition(".")[2]
    is_annotation, is_runnable = kind.startswith(ANNOTATION), kind.startswith(RUNNABLE)
    # On an annotation the server does not mind them.
    allowed = {
        "annotation_ref": is_annotation,
        **dict.fromkeys(RUN_REFS, is_annotation or is_runnable or kind == AGENT_MONITOR),
    }
    note = payload.get("note")
    rules = {
        f"a type that begins with {RESERVED} is one of W&B's own": (
            not kind.startswith(RESERVED) or _OWN_TYPE.fullmatch(kind)
        ),
        "scorer_* fields belong to wandb.agent_user_feedback, wandb.agent_monitor and wandb.runnable.<name>": (
            kind.startswith(SCORED_TYPES) or not any(field.startswith("scorer_") for field in body)
        ),
        f"{AGENT_FEEDBACK} needs scorer_tags": kind != AGENT_FEEDBACK or body.get("scorer_tags"),
        f"{ANNOTATION}<name> needs annotation_ref, to the object <name> of this project, and payload.value": (
            not is_annotation
            or ("value" in payload and _is_ref(body.get("annotation_ref"), ["object"], body["project_id"], name))
        ),
        f"{RUNNABLE}<name> needs runnable_ref, to the op or object <name>, call_ref for an op, and payload.output": (
            not is_runnable
            or (
                "output" in payload
                and (
                    _is_ref(body.get("runnable_ref"), ["object"], name=name)
                    or (_is_ref(body.get("runnable_ref"), ["op"], name=name) and "call_ref" in body)
                )
            )
        ),
        f"{AGENT_MONITOR} needs {', '.join(RUN_REFS)}": kind != AGENT_MONITOR or body.keys() >= RUN_REFS.keys(),
        f"{REACTION} needs payload.emoji, one emoji": kind != REACTION or is_one_emoji(payload.get("emoji")),
        f"{NOTE} needs payload.note, 1 to {MAX_NOTE_CHARS} characters": (
            kind != NOTE or (isinstance(note, str) and 1 <= len(note) <= MAX_NOTE_CHARS)
        ),
        **{f"{field} does not go with the type {kind}": field not in body or may for field, may in allowed.items()},
        **{
            f"{field} is a reference, weave:///entity/project/…, to {' or '.join(kinds)}": (
                field not in body or _is_ref(body[field], kinds)
            )
            for field, kinds in RUN_REFS.items()
        },
    }
    yield from (rule for rule, is_kept in rules.items() if not is_kept)


def _check_size(body: Mapping[str, Any], kind: str) -> None:
    """Refuse a payload that is too large for Weave, measured as the server does, naming what is most of it."""
    payload = body["payload"]
    limit = MAX_PAYLOAD_CHARS - (REACTION_ROOM_CHARS if body["feedback_type"] == REACTION else 0)
    if len(json.dumps(payload)) <= limit:
        return
    largest = max(payload, key=lambda name: len(json.dumps(payload[name])))
    field = kind if largest in ("value", "note", "output") else largest
    raise InvalidFeedbackError(
        f"Weave takes payloads of up to {limit} characters of JSON; make {field} shorter",
        field=field,
        value=payload[largest],
    )


# --- requests ----------------------------------------------------------------------------------------------------


def _batches(parts: Iterable[Part], limit: int) -> Iterator[list[Part]]:
    """Cut parts into batches of so many at the most, no larger than a body may be, in order, no id twice in one."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        length = len(pydantic_core.to_json(part.body)) + len(",")
        is_full = len(batch) == limit or size + length > MAX_BODY_BYTES
        if batch and (is_full or any(part.id == other.id for other in batch)):
            yield batch
            batch = []
        size = length + (size if batch else len('{"batch":[]}'))
        batch.append(part)
    yield batch


def _smaller(batch: list[Part], status: int, result: Result) -> list[list[Part]]:
    """Answer what to send instead of a batch: nothing, the halves of a refused one, or each by itself."""
    if status in NO_BATCHES:
        return [[part] for part in batch]
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]] if isinstance(result, PermanentFailure) else []


def _stops(result: Result) -> bool:
    """Tell whether nothing more is sent after this: the destination asks for a pause."""
    return isinstance(result, PauseDestination) or getattr(result, "retry_after_millis", None) is not None


def _is_of_the_row(response: httpx.Response) -> bool:
    """Tell whether a 404 is about a row; a page, or FastAPI's own words, say that the address is wrong."""
    answer = json_of(response)
    return isinstance(answer, dict) and answer.get("detail") != "Not Found"


def purge_body(project_id: str, feedback_id: str) -> dict[str, Any]:
    """Build the request that removes one row by its id, in Weave's query language."""
    is_it = {"$eq": [{"$getField": "id"}, {"$literal": feedback_id}]}
    return {"project_id": project_id, "query": {"$expr": is_it}}


def check_project_id(project_id: str) -> str:
    """Check a project id; an empty one is none.

    Raises:
        ConfigurationError: when it is not `entity/project`, raw.
    """
    stripped = project_id.strip()
    if stripped and not _PROJECT_ID.fullmatch(stripped):
        raise ConfigurationError(
            "a Weave project is entity/project: two non-empty parts, not URL-encoded; set WANDB_ENTITY and "
            "WANDB_PROJECT, or give project_id=",
            setting=env.WANDB_PROJECT,
        )
    return stripped


def _rest(record: FeedbackRecord) -> dict[str, Any]:
    """Write what has no field of its own, as far as there is any."""
    rest = {
        "name": record.name,
        "source": record.source,
        "metadata": dict(record.metadata),
        "tags": list(record.tags),
    }
    return {name: value for name, value in rest.items() if value}


def is_one_emoji(text: object) -> bool:
    """Tell whether a text is one emoji and nothing else, as Unicode forms them (UTS 51, section 1.4.9).

    Weave counts by the table of the package `emoji`; which of the joined sequences and flags exist, only that knows.
    """
    return isinstance(text, str) and _EMOJI.fullmatch(text) is not None


def _emoji(record: FeedbackRecord) -> str:
    """Choose the one emoji of a thumb."""
    return THUMB_UP if record.value else THUMB_DOWN


def _project_id() -> str:
    """Put the project together from the environment."""
    entity, project = env.read(env.WANDB_ENTITY), env.read(env.WANDB_PROJECT)
    return project if "/" in project or not entity or not project else f"{entity}/{project}"


def _base_url() -> str:
    """Find the trace server from the environment, by Weave's own rule."""
    if url := env.read(env.WF_TRACE_SERVER_URL):
        return url
    url = env.read(env.WANDB_BASE_URL).rstrip("/")
    return "https://trace.wandb.ai" if url == env.VARIABLES[env.WANDB_BASE_URL].default else f"{url}/traces"
