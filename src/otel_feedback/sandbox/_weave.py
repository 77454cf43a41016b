"""W&B Weave: what it answers, what it stores, and how it joins. Everything about its own rules lives here.

It joins by reference: `weave:///entity/project/call/<span id>` in the Traces view, and three kinds of
reference in the Agents view. The server never checks one (VENDORS, Weave, weave_ref). Functions are pure.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ._body import read_json
from ._contracts import Violation, body_violations, document
from ._flags import span_id_flags, trace_id_flags
from ._fold import Entries, Reading, Said
from ._model import (
    Answer,
    Flag,
    Item,
    Outcome,
    Span,
    Submission,
    Target,
    Verdict,
    canonical,
    flags_of,
    json_answer,
)
from ._otlp import ReceivedSpan, export_answer, read_spans, stored
from ._query import QueryError, ids_compared, select

if TYPE_CHECKING:
    from ._call import Call
    from ._ledger import Ledger
    from ._switches import Switches

CREATE = "/feedback/create"
BATCH = "/feedback/batch/create"
REPLACE = "/feedback/replace"
PURGE = "/feedback/purge"
QUERY = "/feedback/query"
TRACES = "/otel/v1/traces"
AGENTS = "/agents/otel/v1/traces"

NEWER_FIELDS = frozenset(
    {
        "scorer_trace_id",
        "span_agent_name",
        "span_agent_version",
        "span_conversation_id",
        "span_status_code",
        "span_trace_id",
    }
)
"""Fields that Weave's own client has had since the page was published (weave 0.54, FeedbackCreateParams)."""

SCORER_FIELDS = (
    "scorer_tags",
    "scorer_tag_reasons",
    "scorer_tag_confidences",
    "scorer_ratings",
    "scorer_rating_reasons",
    "scorer_rating_confidences",
)
REACTION = "wandb.reaction.1"
NOTE = "wandb.note.1"
AGENT_USER = "wandb.agent_user_feedback"
AGENT_MONITOR = "wandb.agent_monitor"
ANNOTATION = "wandb.annotation."
RUNNABLE = "wandb.runnable."

MAX_NOTE_CHARACTERS = 1024
"""VENDORS, Weave, types."""

USER = "sandbox-user"
"""The account behind the key: what the server puts into `wb_user_id`."""


# --- answers -------------------------------------------------------------------------------------


def create(call: Call) -> Outcome:
    """Add one feedback: `POST /feedback/create`."""
    item, refusal = read_body(call, CREATE)
    if refusal is not None:
        return refusal
    return _refusal_of(item, call.switches) or _created(call, [item], lambda rows: rows[0])


def create_batch(call: Call) -> Outcome:
    """Add several feedbacks, or none of them."""
    if not call.switches.weave_batch:
        # No flag: clients can only find out by asking (VENDORS, Weave, call).
        return Outcome(_detail(404, "Not Found"))
    body, refusal = read_body(call, BATCH)
    if refusal is not None:
        return refusal
    refusals = (_refusal_of(item, call.switches) for item in body["batch"])
    refused = next((each for each in refusals if each is not None), None)
    return refused or _created(call, body["batch"], lambda rows: {"res": rows})


def replace_feedback(call: Call) -> Outcome:
    """Put one feedback in another's place."""
    body, refusal = read_body(call, REPLACE)
    if refusal is not None:
        return refusal
    item = {name: value for name, value in body.items() if name != "feedback_id"}
    refused = _refusal_of(item, call.switches) or _missing(
        call.ledger, body["project_id"], {body["feedback_id"]}, call.switches
    )
    if refused is not None:
        return refused
    outcome = _created(call, [item], lambda rows: rows[0])
    purge = _submission(call, "purge", {"project_id": body["project_id"], "ids": [body["feedback_id"]]})
    return replace(outcome, submissions=(purge, *outcome.submissions))


def purge_feedback(call: Call) -> Outcome:
    """Remove feedback by id."""
    body, refusal = read_body(call, PURGE)
    if refusal is not None:
        return refusal
    ids = ids_compared(body["query"]["$expr"])
    if ids is None:
        message = "Can only purge feedback by specifying one or more feedback ids"
        return Outcome(_reason(400, message), flags=flags_of("weave", [("contract", message)]))
    refused = _missing(call.ledger, body["project_id"], ids, call.switches)
    if refused is not None:
        return refused
    purge = _submission(call, "purge", {"project_id": body["project_id"], "ids": sorted(ids)})
    return Outcome(json_answer(200, {}), submissions=(purge,))


def query(call: Call) -> Outcome:
    """Read feedback."""
    body, refusal = read_body(call, QUERY)
    if refusal is not None:
        return refusal
    rows = _rows(call.ledger.submissions("weave"), call.switches, call.received_at_unix_nano)
    try:
        result, total = select([row for row in rows if row["project_id"] == body["project_id"]], body)
    except QueryError as error:
        return Outcome(_reason(400, str(error)), flags=flags_of("weave", [("contract", str(error))]))
    return Outcome(json_answer(200, {"result": result, "total_count": total}))


def export_traces(call: Call) -> Outcome:
    """Take spans for the Traces view."""
    return _export(call, "traces")


def export_agents(call: Call) -> Outcome:
    """Take spans for the Agents view."""
    return _export(call, "agents")


def refuse(status: int, message: str) -> Answer:
    """Write a refusal as Weave writes it."""
    return _detail(status, message)


def is_authorized(headers: Mapping[str, str], switches: Switches) -> bool:
    """Check HTTP Basic with the user `api`; OTLP may also carry the key in a header of its own."""
    return _key(headers) not in {"", switches.refused_api_key}


def _key(headers: Mapping[str, str]) -> str:
    if "wandb-api-key" in headers:
        return headers["wandb-api-key"].strip()
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        user, _, key = b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:  # binascii.Error and UnicodeDecodeError are both
        return ""
    return key if user == "api" else ""


def _reason(status: int, reason: str) -> Answer:
    return json_answer(status, {"reason": reason})


def _detail(status: int, message: str) -> Answer:
    return json_answer(status, {"detail": message})


def read_body(call: Call, template: str) -> tuple[Item, Outcome | None]:
    """Answer the body, or the refusal that it earns."""
    try:
        body = read_json(call.body)
    except ValueError:
        flags = flags_of("weave", [("unreadable_body", call.path)])
        return {}, Outcome(_unprocessable([Violation((), "JSON decode error", "json_invalid")]), flags=flags)
    violations = body_violations("weave", "post", template, body)
    if violations:
        found = [("contract", str(each)) for each in violations]
        return {}, Outcome(_unprocessable(violations), flags=flags_of("weave", found))
    items = body["batch"] if template == BATCH else [body] if template in {CREATE, REPLACE} else []
    unknown = _unknown_fields(items, call.switches)
    if unknown:
        flags = flags_of("weave", [("undeclared_field", str(each.path[-1])) for each in unknown])
        return {}, Outcome(_unprocessable(unknown), flags=flags)
    return body, _unknown_project(body if template != BATCH else {}, call.switches)


def _unprocessable(violations: Sequence[Violation]) -> Answer:
    detail = [{"loc": ["body", *each.path], "msg": each.message, "type": each.rule} for each in violations]
    return json_answer(422, {"detail": detail})


def _unknown_fields(items: Sequence[Item], switches: Switches) -> list[Violation]:
    """Find the fields that this server does not know."""
    schema = document("weave")["components"]["schemas"]["FeedbackReplaceRequest"]
    known = {*schema["properties"], *NEWER_FIELDS}
    refused = set(switches.weave_refused_fields)
    return [
        Violation((name,), "Extra inputs are not permitted", "extra_forbidden")
        for item in items
        for name in item
        if name in refused or (name not in known and switches.weave_undeclared_fields == "refuse")
    ]


def _unknown_project(body: Item, switches: Switches) -> Outcome | None:
    name = body.get("project_id")
    if name is None or switches.weave_projects is None or name in switches.weave_projects:
        return None
    return Outcome(_reason(404, "Project not found"), flags=flags_of("weave", [("unknown_project", name)]))


def _refusal_of(item: Item, switches: Switches) -> Outcome | None:
    """Refuse what keeps to the contract and still breaks a rule about types."""
    missing = _unknown_project(item, switches)
    if missing is not None:
        return missing
    found = type_flags(item, switches)
    too_large = any(flag == "payload_too_large" for flag, _ in found)
    if not found or (switches.weave_bad_payload == "accept" and not too_large):
        return None
    flag, detail = found[0]
    return Outcome(_reason(400, f"{flag.replace('_', ' ')}: {detail}"), flags=flags_of("weave", found))


def _created(call: Call, items: Sequence[Item], answer: Callable[[list[Any]], Any]) -> Outcome:
    """Store the items and answer their rows, as one or as a list."""
    complete = [
        {**item, "id": item.get("id") or row_id(call.received_at_unix_nano, call.sequence, index)}
        for index, item in enumerate(items)
    ]
    rows = [_answer_row(item, call.received_at_unix_nano) for item in complete]
    submissions = tuple(_submission(call, "create", item) for item in complete)
    return Outcome(json_answer(200, answer(rows)), submissions=submissions)


def _answer_row(item: Item, received_at_unix_nano: int) -> dict[str, Any]:
    return {
        "id": item["id"],
        "created_at": _iso(received_at_unix_nano),
        "wb_user_id": USER,
        "payload": item["payload"],
    }


def _missing(ledger: Ledger, project: str, ids: Iterable[str], switches: Switches) -> Outcome | None:
    """Refuse to remove what is not there, where the switch says so."""
    there = {
        each.item["id"]
        for each in ledger.submissions("weave")
        if each.operation == "create" and each.item["project_id"] == project
    }
    absent = sorted(set(ids) - there)
    if not absent or switches.weave_purge_unknown == "accept":
        return None
    flags = flags_of("weave", [("removed_nothing", each) for each in absent])
    return Outcome(_reason(404, "Feedback not found"), flags=flags)


def _submission(call: Call, operation: str, item: Item) -> Submission:
    size = len(canonical(item))
    return Submission("weave", operation, item["project_id"], item, call.received_at_unix_nano, size_bytes=size)


def _export(call: Call, view: str) -> Outcome:
    try:
        received = read_spans(call.body)
    except ValueError as error:
        return Outcome(_reason(400, str(error)), flags=flags_of("weave", [("unreadable_body", str(error))]))
    placed = [(span, project_of(span, call.headers)) for span in received]
    dropped = [span for span, project in placed if project is None]
    flags = flags_of("weave", [("dropped_span", f"{span.span_id} {span.name}") for span in dropped])
    spans = tuple(stored(span, "weave", project, view) for span, project in placed if project is not None)
    return Outcome(export_answer(len(dropped), "no entity and project"), spans, flags=flags)


def project_of(span: ReceivedSpan, headers: Mapping[str, str]) -> str | None:
    """Answer a span's project: its resource's wins over the header (Weave's guide to the Agents view)."""
    entity, project = span.resource.get("wandb.entity"), span.resource.get("wandb.project")
    if entity and project:
        return f"{entity}/{project}"
    return headers.get("project_id") or None


def row_id(time_unix_nano: int, sequence: int, index: int) -> str:
    """Make the id that the server gives: a UUIDv7 with a counter in place of chance."""
    millis = time_unix_nano // 1_000_000 % (1 << 48)
    text = f"{millis:012x}7{index % 4096:03x}8{sequence % (1 << 60):015x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _iso(time_unix_nano: int) -> str:
    return datetime.fromtimestamp(time_unix_nano / 1e9, tz=timezone.utc).isoformat().replace("+00:00", "Z")


# --- remarks -------------------------------------------------------------------------------------


def type_flags(item: Item, switches: Switches) -> list[tuple[str, str]]:
    """Find what breaks a rule about the type: the server refuses these with 400."""
    kind, payload = item["feedback_type"], item["payload"]
    found = [*_scorer_flags(kind, item), *_payload_flags(kind, payload)]
    if kind.startswith(ANNOTATION) and not item.get("annotation_ref"):
        found.append(("no_annotation_ref", kind))
    size = len(json.dumps(payload))
    if size > switches.weave_payload_limit_bytes:
        found.append(("payload_too_large", f"{size} bytes"))
    return found


def item_flags(item: Item) -> list[tuple[str, str]]:
    """Find what the server swallows, whatever has arrived besides."""
    kind = item["feedback_type"]
    found = _project_flags(item["project_id"])
    if item.get("wb_user_id") is not None:
        found.append(("client_wb_user_id", item["wb_user_id"]))
    if kind.startswith("wandb.") and not _is_known_type(kind):
        found.append(("reserved_type", kind))
    return found


def _is_known_type(kind: str) -> bool:
    return kind in {REACTION, NOTE, AGENT_USER, AGENT_MONITOR} or kind.startswith((ANNOTATION, RUNNABLE))


def _scorer_flags(kind: str, item: Item) -> list[tuple[str, str]]:
    may = kind in {AGENT_USER, AGENT_MONITOR} or kind.startswith(RUNNABLE)
    if kind == AGENT_USER and not item.get("scorer_tags"):
        return [("no_scorer_tags", kind)]
    return [] if may else [("scorer_fields", f"{name} on {kind}") for name in SCORER_FIELDS if item.get(name)]


def _payload_flags(kind: str, payload: Item) -> list[tuple[str, str]]:
    if kind == REACTION and emoji_count(payload.get("emoji")) != 1:
        return [("not_one_emoji", str(payload.get("emoji")))]
    if kind == NOTE:
        note = payload.get("note")
        if not isinstance(note, str) or not 1 <= len(note) <= MAX_NOTE_CHARACTERS:
            return [("note_length", f"{len(note)} characters" if isinstance(note, str) else "no text")]
    return []


_MODIFIERS = re.compile("[\U0001f3fb-\U0001f3ff\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]")
_JOINED = re.compile("\u200d.")
_FLAG_PAIR = re.compile("[\U0001f1e6-\U0001f1ff]{2}")
_PICTURE = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u27bf\u2934-\u2b55\u3030\u303d"
    "\u3297\u3299\U0001f004-\U0001faff]"
)


def emoji_count(value: object) -> int:
    """Count the emoji of a text that is nothing else; anything else in it makes the answer 0.

    A rule of thumb for people's reactions: skin tones, joiners, flags and keycaps belong to their emoji.
    """
    if not isinstance(value, str):
        return 0
    text = _FLAG_PAIR.sub("\U0001f3f4", _JOINED.sub("", _MODIFIERS.sub("", value)))
    keycap = "\u20e3" in value and text in set("0123456789#*")
    return 1 if keycap else len(text) if all(_PICTURE.fullmatch(each) for each in text) else 0


def _project_flags(project: str) -> list[tuple[str, str]]:
    if "%" in project:
        return [("encoded_project", project)]
    parts = project.split("/")
    return [] if len(parts) == 2 and all(parts) else [("malformed_project", project)]


# --- joins ---------------------------------------------------------------------------------------

_REF = re.compile(r"weave:///([^/]+)/([^/]+)/(call|agent_span|agent_turn|agent_conversation)/(.+)")


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference, taken apart."""

    project: str
    kind: str
    id: str


def parse_ref(text: str) -> Ref | None:
    """Take a reference apart, or answer None where it has no form that can join."""
    match = _REF.fullmatch(text)
    if match is None:
        return None
    entity, project, kind, target = match.groups()
    return Ref(f"{entity}/{project}", kind, target)


def ref_flags(text: str, project: str) -> list[tuple[str, str]]:
    """Find what is remarkable about a reference, by itself and beside the feedback's project."""
    ref = parse_ref(text)
    if ref is None:
        return [("malformed_ref", text)]
    found = [] if ref.project == project else [("project_mismatch", f"{ref.project} beside {project}")]
    if "%" in ref.project:
        found.append(("encoded_project", ref.project))
    if ":" in ref.id or "#" in ref.id:
        return [*found, ("hash_in_ref", ref.id)]
    return [*found, *_ID_FLAGS[ref.kind](ref.id)]


_ID_FLAGS: Mapping[str, Callable[[str], list[tuple[str, str]]]] = {
    "call": span_id_flags,
    "agent_span": span_id_flags,
    "agent_turn": trace_id_flags,
    "agent_conversation": lambda _: [],
}

_VIEWS = {"call": "traces", "agent_span": "agents", "agent_turn": "agents", "agent_conversation": "agents"}

Targets = Mapping[tuple[str, str], Mapping[str, tuple[str, ...]]]
"""By (view, kind of id) and id: the projects that have it."""


def targets_of(spans: Iterable[Span]) -> Targets:
    """Arrange what has arrived for looking up."""
    found: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
    for span in spans:
        for kind, target in _ids_of(span):
            places = found.setdefault((span.view, kind), {})
            places[target] = tuple(dict.fromkeys((*places.get(target, ()), span.project)))
    return found


def _ids_of(span: Span) -> list[tuple[str, str]]:
    conversation = span.attributes.get("gen_ai.conversation.id")
    named = [("conversation", str(conversation))] if conversation is not None else []
    return [("span", span.span_id), ("trace", span.trace_id), *named]


_ID_KINDS = {
    "call": "span",
    "agent_span": "span",
    "agent_turn": "trace",
    "agent_conversation": "conversation",
}


def judge(ref: Ref | None, feedback_type: str, targets: Targets) -> Verdict:
    """Say whether a reference meets a span of its view and project."""
    if ref is None:
        return Verdict(joined=False, reason="the reference has no form that joins")
    view, kind = _VIEWS[ref.kind], _ID_KINDS[ref.kind]
    target = unquote(ref.id) if kind == "conversation" else ref.id
    places = targets.get((view, kind), {}).get(target, ())
    if ref.project not in places:
        other = "agents" if view == "traces" else "traces"
        is_elsewhere = ref.project in targets.get((other, kind), {}).get(target, ())
        return _missed(ref, f"{kind} {target!r}", places, other if is_elsewhere else None)
    if view == "agents" and feedback_type != AGENT_USER:
        # The server puts every row on these references into the chat (its group_agent_feedback_by_target), and marks
        # conversations with its own types only (is_supported_feedback).
        return Verdict(joined=True, reason=f"it is in the chat; the list of conversations shows {AGENT_USER} only")
    return Verdict(joined=True)


def _missed(ref: Ref, what: str, places: Sequence[str], other_view: str | None) -> Verdict:
    """Say where the target is instead, if it is anywhere."""
    if places:
        flag, reason = "wrong_project", f"{what} is in {', '.join(places)}, not in {ref.project}"
    elif other_view is not None:
        flag, reason = "wrong_view", f"{what} is in the view {other_view!r}"
    else:
        flag, reason = f"unknown_{_ID_KINDS[ref.kind]}", f"no {what} has arrived in {ref.project}"
    return Verdict(joined=False, reason=reason, flags=(Flag("weave", flag, reason),))


# --- the state -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Fold:
    """What has come together while the submissions are read in their order."""

    targets: Targets
    trace_of: Mapping[tuple[str, str, str], str]
    switches: Switches
    entries: Entries = field(default_factory=Entries)
    contents: dict[tuple[str, str], str] = field(default_factory=dict)


def read(spans: Sequence[Span], submissions: Sequence[Submission], switches: Switches, now_unix_nano: int) -> Reading:
    """Answer every feedback with its verdict, and the rows as they stand now."""
    traces = {(span.project, span.view, span.span_id): span.trace_id for span in spans}
    fold = _Fold(targets_of(spans), traces, switches)
    for submission in submissions:
        _STEPS[submission.operation](fold, submission)
    return Reading(fold.entries.feedback, fold.entries.flags, _rows(submissions, switches, now_unix_nano))


def _apply_create(fold: _Fold, submission: Submission) -> None:
    item = submission.item
    ref = parse_ref(item["weave_ref"])
    verdict = judge(ref, item["feedback_type"], fold.targets)
    if ref is not None and ref.project != item["project_id"]:
        verdict = replace(verdict, joined=False, reason="the reference is in another project than the feedback")
    refs = [] if verdict.joined else ref_flags(item["weave_ref"], item["project_id"])
    found = flags_of("weave", [*item_flags(item), *refs, *type_flags(item, fold.switches)])
    flags = (*found, *verdict.flags, *_repeat_flags(fold, item))
    said = _said(item, _target(fold, ref))
    fold.entries.add(canonical(item), submission, item["project_id"], said, replace(verdict, flags=flags))


def _repeat_flags(fold: _Fold, item: Item) -> tuple[Flag, ...]:
    """Remark upon an id that came with another target or type: that is no replacement."""
    key = (item["project_id"], item["id"])
    content = canonical([item["weave_ref"], item["feedback_type"]])
    differs = fold.contents.setdefault(key, content) != content
    return (Flag("weave", "repeated_id", item["id"]),) if differs else ()


def _apply_purge(fold: _Fold, submission: Submission) -> None:
    ids = submission.item["ids"]
    for each in ids:
        fold.contents.pop((submission.project, each), None)
        for entry in fold.entries.by_id.get(each, ()):
            entry["removed"] = entry["removed"] or entry["project"] == submission.project


_STEPS: Mapping[str, Callable[[_Fold, Submission], None]] = {
    "create": _apply_create,
    "purge": _apply_purge,
}


def _target(fold: _Fold, ref: Ref | None) -> Target:
    if ref is None or ref.kind == "agent_conversation":
        return {"trace_id": None, "span_id": None}
    if ref.kind == "agent_turn":
        return {"trace_id": ref.id, "span_id": None}
    return {"trace_id": fold.trace_of.get((ref.project, _VIEWS[ref.kind], ref.id)), "span_id": ref.id}


def _said(item: Item, target: Target) -> Said:
    kind, name, value = _content(item["feedback_type"], item["payload"], item)
    creator = item.get("creator")
    return Said(id=item["id"], kind=kind, name=name, value=value, user=creator, target=target, raw=item)


def _content(feedback_type: str, payload: Item, item: Item) -> tuple[str, str, Any]:
    """Answer kind, name and value as a person would put them."""
    if feedback_type == REACTION:
        return "reaction", "reaction", payload.get("emoji")
    if feedback_type == NOTE:
        return "note", "note", payload.get("note")
    if feedback_type == AGENT_USER:
        tags_and_ratings = {name: item[name] for name in ("scorer_tags", "scorer_ratings") if item.get(name)}
        return "agent_user_feedback", str(payload.get("name", AGENT_USER)), tags_and_ratings
    if feedback_type.startswith(ANNOTATION):
        return "annotation", feedback_type.removeprefix(ANNOTATION), payload.get("value")
    return "custom", feedback_type, payload.get("value", payload)


def _rows(submissions: Iterable[Submission], switches: Switches, now_unix_nano: int) -> list[dict[str, Any]]:
    """Answer the rows as a query sees them: purged ones gone, those with one identity collapsed in time."""
    settled_before = now_unix_nano - switches.weave_collapse_after_millis * 1_000_000
    groups: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for place, submission in enumerate(submissions):
        item, at = submission.item, submission.received_at_unix_nano
        if submission.operation == "purge":
            for each in item["ids"]:
                groups.pop((submission.project, each), None)
            continue
        group = groups.setdefault((submission.project, item["id"]), [])
        if at <= settled_before:
            group[:] = [(before, row) for before, row in group if _identity(row) != _identity(item)]
        group.append((place, {**item, "created_at": _iso(at), "wb_user_id": USER}))
    placed = sorted((each for group in groups.values() for each in group), key=itemgetter(0))
    return [row for _, row in placed]


def _identity(row: Item) -> tuple[str, str, str]:
    """Answer what collapses: same project, reference, user and id; behind one key there is one user."""
    return (row["project_id"], row["weave_ref"], row["id"])
