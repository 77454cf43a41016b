"""Braintrust: what it answers, what it stores, and how it joins. Everything about its own rules lives here.

A row is found by its id alone; a span that came by OTLP is the row whose id is the 16-hex span id. A miss
answers 200 and makes a stray row (VENDORS, Braintrust, id). Functions here are pure.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ._body import read_json
from ._contracts import body_violations, is_uuid
from ._flags import span_id_flags
from ._fold import Entries, Reading, Said
from ._model import (
    Answer,
    BraintrustEffective,
    Flag,
    Item,
    Outcome,
    RowState,
    Span,
    Submission,
    Verdict,
    canonical,
    flags_of,
    json_answer,
    text_answer,
)
from ._otlp import ReceivedSpan, export_answer, read_spans, stored

if TYPE_CHECKING:
    from ._call import Call
    from ._ledger import Ledger
    from ._switches import Switches

_NAMESPACE = uuid.UUID("6f0d3b1e-5d0c-4c0e-9d0f-0b7a5a1f3c11")
"""Project ids are derived from names, so that a name has the same id in every sandbox."""

ORG_ID = str(uuid.uuid5(_NAMESPACE, "organisation"))

EXPERIMENT_FEEDBACK = "/v1/experiment/{experiment_id}/feedback"
PROJECT_FEEDBACK = "/v1/project_logs/{project_id}/feedback"
EXPERIMENT_INSERT = "/v1/experiment/{experiment_id}/insert"
PROJECT_INSERT = "/v1/project_logs/{project_id}/insert"
EXPERIMENT_FETCH = "/v1/experiment/{experiment_id}/fetch"
PROJECT_FETCH = "/v1/project_logs/{project_id}/fetch"
PROJECTS = "/v1/project"
PROJECT = "/v1/project/{project_id}"
BTQL = "/btql"

_FEEDBACK = {"experiment_id": EXPERIMENT_FEEDBACK, "project_id": PROJECT_FEEDBACK}
_INSERT = {"experiment_id": EXPERIMENT_INSERT, "project_id": PROJECT_INSERT}

MINUTE_NANOS = 60_000_000_000

ADDRESS = "person@example.invalid"
"""Braintrust names the key's owner when it refuses (VENDORS, Braintrust, answers); nobody may log it."""


# --- answers -------------------------------------------------------------------------------------


def feedback(call: Call) -> Outcome:
    """Add feedback to rows of an experiment or of a project's logs."""
    where = _place(call)
    if isinstance(where, Outcome):
        return where
    body, refusal = _read(call, _FEEDBACK[_parameter(call)])
    if refusal is not None:
        return refusal
    items = body["feedback"]
    refused = _batch_refusal(items, call.switches) or _tags_refusal(where, items, call.ledger, call.switches)
    if refused is not None:
        return refused
    submissions = tuple(_submission(call, "feedback", where, item) for item in _kept(items, call.switches))
    return Outcome(json_answer(200, {"status": "success"}), submissions=submissions, flags=_batch_flags(items))


def insert(call: Call) -> Outcome:
    """Write rows: how a child row carries one rater's scores."""
    where = _place(call)
    if isinstance(where, Outcome):
        return where
    body, refusal = _read(call, _INSERT[_parameter(call)])
    if refusal is not None:
        return refusal
    events = [{**event, "id": event.get("id") or _row_id(call, index)} for index, event in enumerate(body["events"])]
    submissions = tuple(_submission(call, "insert", where, event) for event in events)
    return Outcome(json_answer(200, {"row_ids": [event["id"] for event in events]}), submissions=submissions)


def fetch(call: Call) -> Outcome:
    """Read an object's rows."""
    where = _place(call)
    if isinstance(where, Outcome):
        return where
    rows = [
        _event(row_id, row) for (project, row_id), row in _rows(call.ledger, call.switches).items() if project == where
    ]
    return Outcome(json_answer(200, {"events": rows, "cursor": None}))


def list_projects(call: Call) -> Outcome:
    """List the projects, or find one by its name."""
    wanted = call.query.get("project_name")
    names = [name for name in _names(call.ledger, call.switches).values() if wanted in {None, name}]
    return Outcome(json_answer(200, {"objects": [_project(name) for name in names]}))


def create_project(call: Call) -> Outcome:
    """Make a project; one that is there is answered as it is."""
    body, refusal = _read(call, PROJECTS)
    if refusal is not None:
        return refusal
    made = Submission("braintrust", "project", _object_of_name(body["name"]), body, call.received_at_unix_nano)
    return Outcome(json_answer(200, _project(body["name"])), submissions=(made,))


def read_project(call: Call) -> Outcome:
    """Answer one project."""
    name = _names(call.ledger, call.switches).get(f"project_id:{call.path_params['project_id']}")
    if name is None:
        return Outcome(_unknown_object(), flags=flags_of("braintrust", [("unknown_project", call.path)]))
    return Outcome(json_answer(200, _project(name)))


def btql(call: Call) -> Outcome:
    """Find rows by the ids that a query compares with: as much of BTQL as a join's check needs."""
    body, refusal = _read(call, BTQL)
    if refusal is not None:
        return refusal
    asked = _submission(call, "btql", "", {"id": "", "query": body["query"]})
    if _asked_lately(call) >= (call.switches.braintrust_btql_per_minute or math.inf):
        answer = replace(text_answer(429, "Too many queries"), headers={"retry-after": "60"})
        return Outcome(answer, flags=flags_of("braintrust", [("too_many_queries", call.path)]))
    conditions = btql_conditions(body["query"])
    spans = {(span.project, span.span_id): span for span in call.ledger.spans("braintrust")}
    found = [
        _event(row_id, row, spans.get((project, row_id)))
        for (project, row_id), row in _rows(call.ledger, call.switches).items()
    ]
    data = [row for row in found if _meets(row, conditions)]
    return Outcome(json_answer(200, {"data": data}), submissions=(asked,))


def _asked_lately(call: Call) -> int:
    """Count the look-ups of the last minute."""
    since = call.received_at_unix_nano - MINUTE_NANOS
    asked = (each for each in call.ledger.submissions("braintrust") if each.operation == "btql")
    return sum(each.received_at_unix_nano > since for each in asked)


def export(call: Call) -> Outcome:
    """Take spans by OTLP; each goes where its own attribute or else the header says."""
    try:
        received = read_spans(call.body)
    except ValueError as error:
        return Outcome(text_answer(400, str(error)), flags=flags_of("braintrust", [("unreadable_body", str(error))]))
    placed = [(span, parent_of(span, call.headers)) for span in received]
    dropped = [span for span, parent in placed if parent is None]
    if dropped and len(dropped) == len(received):
        refusal = text_answer(400, "x-bt-parent is missing")
        return Outcome(refusal, flags=_dropped_flags(dropped))
    spans = tuple(stored(span, "braintrust", parent) for span, parent in placed if parent is not None)
    projects = tuple(_named_projects(received, call))
    return Outcome(export_answer(len(dropped), "no parent"), spans, projects, _dropped_flags(dropped))


def refuse(status: int, message: str) -> Answer:
    """Write a refusal as Braintrust writes it."""
    return text_answer(status, message)


def is_authorized(headers: Mapping[str, str], switches: Switches) -> bool:
    """Check the bearer key."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and key.strip() not in {"", switches.refused_api_key}


def _read(call: Call, template: str) -> tuple[Item, Outcome | None]:
    """Answer the body, or the refusal that it earns."""
    limit = call.switches.braintrust_body_limit_bytes
    if limit is not None and len(call.body) > limit:
        flags = flags_of("braintrust", [("body_too_large", f"{len(call.body)} bytes")])
        return {}, Outcome(text_answer(413, "Payload too large"), flags=flags)
    try:
        body = read_json(call.body)
    except ValueError:
        flags = flags_of("braintrust", [("unreadable_body", call.path)])
        return {}, Outcome(text_answer(400, "The body is no JSON"), flags=flags)
    violations = body_violations("braintrust", "post", template, body)
    if violations:
        found = [("contract", str(each)) for each in violations]
        refusal = text_answer(400, f"Invalid request: {violations[0]} (user {ADDRESS})")
        return {}, Outcome(refusal, flags=flags_of("braintrust", [*found, *score_flags_in(body)]))
    return body, None


def _place(call: Call) -> str | Outcome:
    """Answer the object that a path names, or the refusal that it earns."""
    parameter = _parameter(call)
    object_id = call.path_params[parameter]
    if not is_uuid(object_id):
        flags = flags_of("braintrust", [("contract", f"{parameter}: {object_id} is no uuid")])
        return Outcome(text_answer(400, f"{parameter} must be a uuid (user {ADDRESS})"), flags=flags)
    where = f"{parameter}:{object_id.lower()}"
    if call.switches.braintrust_unknown_object == "refuse" and where not in _objects(call.ledger, call.switches):
        return Outcome(_unknown_object(), flags=flags_of("braintrust", [("unknown_project", where)]))
    return where


def _parameter(call: Call) -> str:
    return next(iter(call.path_params))


def _unknown_object() -> Answer:
    return text_answer(400, f"Object not found, or user {ADDRESS} lacks the permission to read it")


def _batch_refusal(items: Sequence[Item], switches: Switches) -> Outcome | None:
    """Refuse a batch for its size, or for naming a row twice."""
    limit = switches.braintrust_batch_limit
    if limit is not None and len(items) > limit:
        flags = flags_of("braintrust", [("batch_too_large", f"{len(items)} items")])
        return Outcome(text_answer(switches.braintrust_batch_limit_status, "Too many items"), flags=flags)
    if switches.braintrust_row_twice == "refuse" and _rows_twice(items):
        return Outcome(text_answer(400, "The same row twice"), flags=_batch_flags(items))
    return None


def _tags_refusal(where: str, items: Sequence[Item], ledger: Ledger, switches: Switches) -> Outcome | None:
    """Refuse tags on rows that are no root, as older data planes do."""
    if switches.braintrust_child_tags == "accept":
        return None
    children = {s.span_id for s in ledger.spans("braintrust") if s.project == where and s.parent_span_id}
    found = [("child_tags", item["id"]) for item in items if item.get("tags") and item["id"] in children]
    if not found:
        return None
    return Outcome(text_answer(400, "Tags may only be set on root spans"), flags=flags_of("braintrust", found))


def _kept(items: Sequence[Item], switches: Switches) -> list[Item]:
    """Answer the items that count where a row comes twice."""
    if switches.braintrust_row_twice != "last":
        return list(items)
    return list({item["id"]: item for item in items}.values())


def _batch_flags(items: Sequence[Item]) -> tuple[Flag, ...]:
    """Remark upon what no entry could tell: a row twice in a request, an item that says nothing."""
    found = [("row_twice", row_id) for row_id in _rows_twice(items)]
    found += [("empty_item", item["id"]) for item in items if not _says(item, None)]
    return flags_of("braintrust", found)


def _rows_twice(items: Sequence[Item]) -> list[str]:
    return [row_id for row_id, count in Counter(item["id"] for item in items).items() if count > 1]


def _submission(call: Call, operation: str, where: str, item: Item) -> Submission:
    size = len(canonical(item))
    return Submission("braintrust", operation, where, item, call.received_at_unix_nano, size_bytes=size)


def _row_id(call: Call, index: int) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"row {call.received_at_unix_nano} {call.sequence} {index}"))


# --- projects ------------------------------------------------------------------------------------


def project_id(name: str) -> str:
    """Answer the id of the project of that name."""
    return str(uuid.uuid5(_NAMESPACE, f"project {name}"))


def parent_of(span: ReceivedSpan, headers: Mapping[str, str]) -> str | None:
    """Answer the object that a span belongs to: its attribute wins over the header."""
    said = _said_parent(span, headers)
    kind, _, value = said.partition(":")
    if kind == "project_name" and value:
        return _object_of_name(value)
    return f"{kind}:{value.lower()}" if kind in {"project_id", "experiment_id"} and value else None


def _said_parent(span: ReceivedSpan, headers: Mapping[str, str]) -> str:
    return str(span.attributes.get("braintrust.parent") or headers.get("x-bt-parent", ""))


def _object_of_name(name: str) -> str:
    return f"project_id:{project_id(name)}"


def _named_projects(received: Iterable[ReceivedSpan], call: Call) -> list[Submission]:
    """Name the projects that spans bring into being."""
    said = dict.fromkeys(_said_parent(span, call.headers) for span in received)
    names = [text.removeprefix("project_name:") for text in said if text.startswith("project_name:")]
    return [
        Submission("braintrust", "project", _object_of_name(name), {"name": name}, call.received_at_unix_nano)
        for name in names
        if name
    ]


def _names(ledger: Ledger, switches: Switches) -> dict[str, str]:
    """Answer the names of the known projects by object."""
    return names_of(ledger.submissions("braintrust"), switches)


def names_of(submissions: Iterable[Submission], switches: Switches) -> dict[str, str]:
    """Answer the names of the projects that exist from the start or came up since, by object."""
    made = [each.item["name"] for each in submissions if each.operation == "project"]
    return {_object_of_name(name): name for name in (*switches.braintrust_projects, *made)}


def _objects(ledger: Ledger, switches: Switches) -> set[str]:
    return {*_names(ledger, switches), *(span.project for span in ledger.spans("braintrust"))}


def label(where: str, names: Mapping[str, str]) -> str:
    """Answer a project's name where it is known."""
    return f"project_name:{names[where]}" if where in names else where


def _project(name: str) -> dict[str, Any]:
    return {
        "id": project_id(name),
        "name": name,
        "org_id": ORG_ID,
        "created": None,
        "deleted_at": None,
        "user_id": None,
    }


# --- remarks -------------------------------------------------------------------------------------


def item_flags(item: Item) -> list[tuple[str, str]]:
    """Find what is remarkable about a feedback item, whatever has arrived besides."""
    return [("repeated_tag", tag) for tag, count in Counter(item.get("tags") or ()).items() if count > 1]


def score_flags_in(body: object) -> list[tuple[str, str]]:
    """Say what is wrong with the scores of a refused body, in more telling words than the contract's."""
    items = body.get("feedback") if isinstance(body, Mapping) else None
    scores = [
        (name, value)
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, Mapping) and isinstance(item.get("scores"), Mapping)
        for name, value in item["scores"].items()
    ]
    return [(flag, f"{name}: {value}") for name, value in scores if (flag := _score_flag(value))]


def _score_flag(value: object) -> str | None:
    if isinstance(value, bool):
        return "boolean_score"
    if isinstance(value, (int, float)) and not 0 <= value <= 1:
        return "score_out_of_range"
    return None


def _dropped_flags(spans: Iterable[ReceivedSpan]) -> tuple[Flag, ...]:
    return flags_of("braintrust", [("dropped_span", f"{span.span_id} {span.name}") for span in spans])


# --- joins ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowIndex:
    """The rows that spans and inserts made, by object and by id alone."""

    by_place: Mapping[tuple[str, str], Span]
    inserted: frozenset[tuple[str, str]]
    places: Mapping[str, tuple[str, ...]]
    trace_ids: frozenset[str]


def index_of(spans: Sequence[Span], submissions: Iterable[Submission]) -> RowIndex:
    """Arrange what has arrived for looking up."""
    inserted = frozenset((each.project, each.item["id"]) for each in submissions if each.operation == "insert")
    places: dict[str, tuple[str, ...]] = {}
    for span in spans:
        places[span.span_id] = (*places.get(span.span_id, ()), span.project)
    by_place = {(span.project, span.span_id): span for span in spans}
    return RowIndex(by_place, inserted, places, frozenset(span.trace_id for span in spans))


def judge(where: str, row_id: str, index: RowIndex, names: Mapping[str, str]) -> Verdict:
    """Say whether a feedback's row is a span, in the very project or experiment it was posted to."""
    if (where, row_id) in index.by_place or (where, row_id) in index.inserted:
        return Verdict(joined=True)
    found = [*span_id_flags(row_id), *_missing_flags(where, row_id, index, names), ("stray_row", row_id)]
    reason = f"no span is the row {row_id!r} of {label(where, names)}: a stray row"
    return Verdict(joined=False, reason=reason, flags=flags_of("braintrust", found))


def _missing_flags(where: str, row_id: str, index: RowIndex, names: Mapping[str, str]) -> list[tuple[str, str]]:
    if row_id in index.places:
        there = ", ".join(label(place, names) for place in index.places[row_id])
        return [("wrong_project", f"{row_id} is in {there}, not in {label(where, names)}")]
    return [("unknown_span", row_id)]


# --- the state -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Fold:
    """What has come together while spans and submissions are read in their order."""

    index: RowIndex
    names: Mapping[str, str]
    switches: Switches
    entries: Entries = field(default_factory=Entries)
    rows: dict[tuple[str, str], RowState] = field(default_factory=dict)
    early: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def read(spans: Sequence[Span], submissions: Sequence[Submission], switches: Switches) -> Reading:
    """Answer every feedback with its verdict, and the rows as they stand at the end."""
    fold = _fold(spans, submissions, switches)
    effective: BraintrustEffective = {"rows": _rows_by_id(fold.rows, fold.names)}
    return Reading(fold.entries.feedback, fold.entries.flags, effective)


def _rows(ledger: Ledger, switches: Switches) -> dict[tuple[str, str], RowState]:
    return _fold(ledger.spans("braintrust"), ledger.submissions("braintrust"), switches).rows


def _fold(spans: Sequence[Span], submissions: Sequence[Submission], switches: Switches) -> _Fold:
    fold = _Fold(index_of(spans, submissions), names_of(submissions, switches), switches)
    arrivals: list[Span | Submission] = sorted([*spans, *submissions], key=lambda each: each.sequence)
    for each in arrivals:
        if isinstance(each, Span):
            _arrive(fold, each)
        else:
            _STEPS[each.operation](fold, each)
    return fold


def _arrive(fold: _Fold, span: Span) -> None:
    """Let a span make its row, or find the one that early feedback made."""
    place = (span.project, span.span_id)
    row = fold.rows.setdefault(place, _empty_row(span.project))
    row["is_span"] = True
    if fold.switches.braintrust_early_feedback == "merge":
        return
    fold.rows[place] = {**_empty_row(span.project), "is_span": True, "comments": row["comments"]}
    for key in fold.early.pop(place, ()):
        entry = fold.entries.by_key[key]
        entry["joined"], entry["reason"] = False, "its span came later and overwrote it"
        fold.entries.flag(key, (Flag("braintrust", "overwritten", span.span_id),))


def _apply_feedback(fold: _Fold, submission: Submission) -> None:
    place, item = (submission.project, submission.item["id"]), submission.item
    row = fold.rows.setdefault(place, _empty_row(submission.project))
    _change(row, item, fold.switches)
    verdict = judge(*place, fold.index, fold.names)
    found = flags_of("braintrust", item_flags(item))
    for said in _says(item, fold.index.by_place.get(place)):
        key = canonical([*place, said.kind, said.name, said.value, item.get("metadata"), item.get("source")])
        flags = (*verdict.flags, *found, *_kind_flags(fold, place, key, said))
        fold.entries.add(key, submission, label(place[0], fold.names), said, replace(verdict, flags=flags))
        if said.kind != "comment":
            fold.early.setdefault(place, []).append(key)


def _kind_flags(fold: _Fold, place: tuple[str, str], key: str, said: Said) -> tuple[Flag, ...]:
    """Remark upon what concerns only a comment, or only tags."""
    span = fold.index.by_place.get(place)
    if said.kind == "comment" and key in fold.entries.by_key:
        return flags_of("braintrust", [("repeated_comment", place[1])])
    if said.kind == "tags" and span is not None and span.parent_span_id is not None:
        return flags_of("braintrust", [("child_tags", place[1])])
    return ()


def _change(row: RowState, item: Item, switches: Switches) -> None:
    """Merge an item into its row: scores by key, tags as a set, `expected` as it is, comments one more."""
    for name, value in (item.get("scores") or {}).items():
        _change_score(row, name, value, switches)
    if "expected" in item:
        row["expected"] = item["expected"]
    row["tags"] = list(dict.fromkeys([*row["tags"], *(item.get("tags") or ())]))
    if item.get("comment") is not None:
        row["comments"] = [*row["comments"], item["comment"]]


def _change_score(row: RowState, name: str, value: float | None, switches: Switches) -> None:
    if value is not None or switches.braintrust_null_score == "keep":
        row["scores"][name] = value
    elif switches.braintrust_null_score == "delete":
        row["scores"].pop(name, None)


def _apply_insert(fold: _Fold, submission: Submission) -> None:
    place, event = (submission.project, submission.item["id"]), submission.item
    if event.get("_object_delete") or not event.get("_is_merge"):
        fold.rows.pop(place, None)
        _remove_what_it_said(fold, event["id"])
    if event.get("_object_delete"):
        return
    row = fold.rows.setdefault(place, _empty_row(submission.project))
    row["is_span"] = True
    _change(row, event, fold.switches)
    parents = event.get("span_parents") or []
    if not parents:
        return
    verdict = judge(submission.project, parents[0], fold.index, fold.names)
    for said in _says(event, fold.index.by_place.get((submission.project, parents[0]))):
        key = canonical([*place, said.kind, said.name, said.value])
        about = Said(event["id"], said.kind, said.name, said.value, said.user, _child_target(event, said), event)
        fold.entries.add(key, submission, label(place[0], fold.names), about, verdict)


def _remove_what_it_said(fold: _Fold, row_id: str) -> None:
    """Let nothing stand of what a row said that is written anew, or deleted."""
    for entry in fold.entries.feedback:
        entry["removed"] = entry["removed"] or entry["raw"].get("id") == row_id


def _child_target(event: Item, said: Said) -> Any:
    return {
        "trace_id": event.get("root_span_id") or said.target["trace_id"],
        "span_id": event["span_parents"][0],
    }


def _pass(fold: _Fold, submission: Submission) -> None:
    """Change no row: a project was made, or a question asked."""


_STEPS: Mapping[str, Callable[[_Fold, Submission], None]] = {
    "feedback": _apply_feedback,
    "insert": _apply_insert,
    "project": _pass,
    "btql": _pass,
}


def _says(item: Item, span: Span | None) -> list[Said]:
    """Answer the single things that an item says, each of which is seen on its own."""
    metadata = item.get("metadata") or {}
    things: list[tuple[str, str, Any]] = [
        *(("score", name, value) for name, value in (item.get("scores") or {}).items()),
        *([("comment", "comment", item["comment"])] if item.get("comment") is not None else []),
        *([("expected", "expected", item["expected"])] if "expected" in item else []),
        *([("tags", "tags", item["tags"])] if item.get("tags") else []),
    ]
    if not things and metadata:
        things = [("metadata", "metadata", metadata)]  # the audit entry is then all that there is to see
    trace_id = span.trace_id if span is not None else None
    return [
        Said(
            id=_text(metadata.get("feedback_id")),
            kind=kind,
            name=name,
            value=value,
            user=_text(metadata.get("user_id")),
            target={"trace_id": trace_id, "span_id": item["id"]},
            raw=item,
        )
        for kind, name, value in things
    ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _empty_row(where: str) -> RowState:
    return {"project": where, "scores": {}, "expected": None, "tags": [], "comments": [], "is_span": False}


def _rows_by_id(rows: Mapping[tuple[str, str], RowState], names: Mapping[str, str]) -> dict[str, RowState]:
    """Key rows by id; a stray twin of a span's row, in another project, gets its project in front."""
    found: dict[str, RowState] = {}
    for (where, row_id), row in sorted(rows.items(), key=lambda pair: not pair[1]["is_span"]):
        key = row_id if row_id not in found else f"{label(where, names)}/{row_id}"
        found[key] = {**row, "project": label(where, names)}
    return found


def _event(row_id: str, row: RowState, span: Span | None = None) -> dict[str, Any]:
    """Answer a row as fetch and BTQL do."""
    kind, _, object_id = row["project"].partition(":")
    return {
        "id": row_id,
        "span_id": row_id,
        "root_span_id": span.trace_id if span is not None else row_id,
        kind: object_id,
        "scores": row["scores"],
        "expected": row["expected"],
        "tags": row["tags"],
        "comments": [{"text": text} for text in row["comments"]],
    }


_CONDITION = re.compile(r"\b(id|span_id|root_span_id)\s*=\s*(?:'([^']*)'|\"([^\"]*)\")")
_SOURCE = re.compile(r"\b(project_logs|experiment)\(\s*['\"]([^'\"]*)['\"]")


def btql_conditions(query: object) -> list[tuple[str, str]]:
    """Pick the ids that a textual query compares with; what else it asks is passed over."""
    text = query if isinstance(query, str) else json.dumps(query)
    sources = [
        ("project_id" if kind == "project_logs" else "experiment_id", value) for kind, value in _SOURCE.findall(text)
    ]
    return [*sources, *((name, single or double) for name, single, double in _CONDITION.findall(text))]


def _meets(row: Item, conditions: Sequence[tuple[str, str]]) -> bool:
    return all(row.get(name) == value for name, value in conditions)
