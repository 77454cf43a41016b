"""orq: what it answers, what it stores, and how it joins. Everything about orq's own rules lives here.

It joins by trace: a feedback with product `otel` is on the OTLP trace of that id (VENDORS, orq, level). The
newer annotations are on a span. Functions here are pure; `_core.py` keeps what they decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ._body import read_json
from ._contracts import ULID, Violation, body_violations, document
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
from ._otlp import export_answer, read_spans, stored

if TYPE_CHECKING:
    from ._call import Call
    from ._ledger import Ledger
    from ._switches import Switches

PROJECT = "workspace"
"""orq sorts OTLP traces by the key's workspace; the sandbox has one."""

CHOICES: Mapping[str, frozenset[str]] = {
    "rating": frozenset({"good", "bad"}),
    "defects": frozenset(
        {
            "grammatical",
            "spelling",
            "hallucination",
            "repetition",
            "inappropriate",
            "off_topic",
            "incompleteness",
            "ambiguity",
        }
    ),
    "interactions": frozenset({"saved", "selected", "deleted", "shared", "copied", "reported"}),
}
"""What orq's own multiple-choice properties offer (VENDORS, orq, properties)."""

OWN_PROPERTIES = frozenset({*CHOICES, "correction"})

NEWER_PRODUCTS = ("mcp_gateway",)
"""Known to orq since its page was published (VENDORS, orq, product)."""

FEEDBACK = "/v2/feedback"
REMOVE = "/v2/feedback/remove"
ANNOTATION = "/v2/traces/{trace_id}/spans/{span_id}/annotation"

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


# --- answers -------------------------------------------------------------------------------------


def create(call: Call) -> Outcome:
    """Take one feedback about a trace: `POST /v2/feedback`."""
    item, refusal = _read(call, "post", FEEDBACK)
    if refusal is not None:
        return refusal
    item = {"id": ulid(call.received_at_unix_nano, call.sequence), "product": "deployments", **item}
    found = [*item_flags(item, call.switches)]
    refused = _refusal_of(item, call.ledger, call.switches)
    if refused is not None:
        status, message = refused
        return Outcome(_message(status, message), flags=flags_of("orq", found or [("contract", message)]))
    return Outcome(json_answer(200, item), submissions=(_submission(call, "create", item),))


def remove(call: Call) -> Outcome:
    """Take a feedback back: `POST /v2/feedback/remove`."""
    item, refusal = _read(call, "post", REMOVE)
    if refusal is not None:
        return refusal
    found = [each.operation for each in call.ledger.submissions("orq") if _is_removed_by(each.item, item)]
    # A removal that is repeated is a retry, and not remarked upon.
    flags = flags_of("orq", [] if "create" in found else [("removed_nothing", str(item["id"]))])
    if found[-1:] != ["create"] and call.switches.orq_remove_unknown == "refuse":
        return Outcome(_message(404, "Feedback is not found"), flags=flags)
    return Outcome(json_answer(200, item), submissions=(_submission(call, "remove", item),), flags=flags)


def annotate(call: Call) -> Outcome:
    """Attach annotations to a span: the newer API."""
    item, refusal = _read_annotation(call, "post")
    if refusal is not None:
        return refusal
    return Outcome(Answer(200), submissions=(_submission(call, "annotate", item),))


def unannotate(call: Call) -> Outcome:
    """Take annotations off a span: the newer API."""
    item, refusal = _read_annotation(call, "delete")
    if refusal is not None:
        return refusal
    return Outcome(Answer(200), submissions=(_submission(call, "unannotate", item),))


def export(call: Call) -> Outcome:
    """Take spans by OTLP."""
    try:
        received = read_spans(call.body)
    except ValueError as error:
        return Outcome(_message(400, str(error)), flags=flags_of("orq", [("unreadable_body", str(error))]))
    return Outcome(export_answer(), spans=tuple(stored(span, "orq", PROJECT) for span in received))


def refuse(status: int, message: str) -> Answer:
    """Write a refusal as orq writes it."""
    return _message(status, message)


def is_authorized(headers: Mapping[str, str], switches: Switches) -> bool:
    """Check the bearer key."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and key.strip() not in {"", switches.refused_api_key}


def _message(status: int, message: str) -> Answer:
    return json_answer(status, {"message": message})


def _read(call: Call, method: str, template: str) -> tuple[Item, Outcome | None]:
    """Answer the body, or the refusal that it earns."""
    try:
        body = read_json(call.body)
    except ValueError:
        flags = flags_of("orq", [("unreadable_body", call.path)])
        return {}, Outcome(_message(400, "The body is no JSON"), flags=flags)
    violations = _violations(method, template, body)
    if violations:
        found = [("contract", str(each)) for each in violations]
        return {}, Outcome(_message(400, str(violations[0])), flags=flags_of("orq", [*found, *_product_flags(body)]))
    return body, None


def _violations(method: str, template: str, body: object) -> list[Violation]:
    """Compare with the contract; a product published since then is none."""
    if isinstance(body, dict) and body.get("product") in NEWER_PRODUCTS:
        body = {**body, "product": "otel"}
    return body_violations("orq", method, template, body)


def _refusal_of(item: Item, ledger: Ledger, switches: Switches) -> tuple[int, str] | None:
    """Say with which status and words orq refuses a body that keeps to the contract."""
    if item["property"] not in OWN_PROPERTIES | set(switches.orq_properties):
        return 404, f"Feedback property {item['property']} is not found"
    if switches.orq_malformed_id == "refuse" and not ULID.fullmatch(item["id"]):
        return 400, "id: Invalid ulid"
    if switches.orq_missing_trace == "refuse" and item["trace_id"] not in _trace_ids(ledger.spans("orq")):
        return 404, "Trace is not found"
    if switches.orq_repeated_id == "conflict" and _has_id(ledger, item["id"]):
        return 409, "id already exists"
    return None


def _has_id(ledger: Ledger, feedback_id: str) -> bool:
    return any(each.item.get("id") == feedback_id for each in ledger.submissions("orq") if each.operation == "create")


def _read_annotation(call: Call, method: str) -> tuple[Item, Outcome | None]:
    if not call.switches.orq_annotations:
        return {}, Outcome(_message(404, "Not found"), flags=flags_of("orq", [("unknown_path", call.path)]))
    item, refusal = _read(call, method, ANNOTATION)
    if refusal is not None:
        return {}, refusal
    target = {name: call.path_params[name] for name in ("trace_id", "span_id")}
    if call.switches.orq_missing_trace == "refuse" and target["trace_id"] not in _trace_ids(call.ledger.spans("orq")):
        return {}, Outcome(
            _message(404, "Trace is not found"),
            flags=flags_of("orq", [("unknown_trace", target["trace_id"])]),
        )
    return {**target, **item}, None


def _submission(call: Call, operation: str, item: Item) -> Submission:
    return Submission("orq", operation, PROJECT, item, call.received_at_unix_nano, size_bytes=len(call.body))


def ulid(time_unix_nano: int, sequence: int) -> str:
    """Make the id that the server gives: 48 bits of milliseconds, then a counter in place of chance."""
    number = (time_unix_nano // 1_000_000 % (1 << 48)) << 80 | sequence
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


# --- remarks -------------------------------------------------------------------------------------


def item_flags(item: Item, switches: Switches) -> list[tuple[str, str]]:
    """Find what is remarkable about a feedback, whatever has arrived besides."""
    found = [
        *trace_id_flags(item["trace_id"]),
        *_product_flags(item),
        *_value_flags(item["property"], item["value"]),
    ]
    if not ULID.fullmatch(item["id"]):
        found.append(("malformed_feedback_id", item["id"]))
    if item["property"] not in OWN_PROPERTIES | set(switches.orq_properties):
        found.append(("undeclared_property", item["property"]))
    return found


def _product_flags(item: object) -> list[tuple[str, str]]:
    product = item.get("product", "deployments") if isinstance(item, Mapping) else "otel"
    if product == "otel":
        return []
    if product == "deployments":
        return [("default_product", "deployments")]
    published = document("orq")["components"]["schemas"]["Removal"]["properties"]["product"]["enum"]
    return [("foreign_product" if product in published else "unknown_product", str(product))]


def _value_flags(name: str, value: object) -> list[tuple[str, str]]:
    choices = CHOICES.get(name)
    if choices is None:
        return []
    if not isinstance(value, list):
        return [("single_choice_no_list", f"{name}: {value}")]
    return [("unknown_choice", f"{name}: {choice}") for choice in value if choice not in choices]


# --- joins ---------------------------------------------------------------------------------------


def judge(trace_id: str, product: str, trace_ids: frozenset[str]) -> Verdict:
    """Say whether a feedback is on a trace that came by OTLP."""
    if product != "otel":
        return Verdict(joined=False, reason=f"product {product!r} does not look among OTLP traces")
    if trace_id in trace_ids:
        return Verdict(joined=True)
    unknown = Flag("orq", "unknown_trace", trace_id)
    return Verdict(joined=False, reason=f"no trace {trace_id!r} has arrived", flags=(unknown,))


def judge_annotation(trace_id: str, span_id: str, spans: frozenset[tuple[str, str]]) -> Verdict:
    """Say whether an annotation is on a span."""
    if (trace_id, span_id) in spans:
        return Verdict(joined=True)
    unknown = Flag("orq", "unknown_span", span_id)
    return Verdict(joined=False, reason=f"no span {span_id!r} of trace {trace_id!r} has arrived", flags=(unknown,))


def _trace_ids(spans: Iterable[Span]) -> frozenset[str]:
    return frozenset(span.trace_id for span in spans)


# --- the state -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Fold:
    """What has come together while the submissions are read in their order."""

    traces: frozenset[str]
    spans: frozenset[tuple[str, str]]
    switches: Switches
    entries: Entries = field(default_factory=Entries)
    effective: dict[tuple[str, ...], list[dict[str, Any]]] = field(default_factory=dict)
    """The rows that stand, by what makes them the same: an id, or an annotation's span and key."""


def read(spans: Sequence[Span], submissions: Sequence[Submission], switches: Switches) -> Reading:
    """Answer every feedback with its verdict, and what stands at the end."""
    known = frozenset((span.trace_id, span.span_id) for span in spans)
    fold = _Fold(_trace_ids(spans), known, switches)
    for submission in submissions:
        _STEPS[submission.operation](fold, submission)
    effective = [row for rows in fold.effective.values() for row in rows]
    return Reading(fold.entries.feedback, fold.entries.flags, effective)


def _apply_create(fold: _Fold, submission: Submission) -> None:
    item = submission.item
    rows = fold.effective.setdefault((item["id"],), [])
    verdict = judge(item["trace_id"], item["product"], fold.traces)
    repeated = _repeat_flags(rows, item)
    if repeated and fold.switches.orq_repeated_id == "ignore":
        verdict = Verdict(joined=False, reason="orq ignored it: its id came before")
    flags = (*flags_of("orq", item_flags(item, fold.switches)), *verdict.flags, *repeated)
    fold.entries.add(canonical(item), submission, PROJECT, _said(item), replace(verdict, flags=flags))
    _settle(rows, _row(item), fold.switches)


def _repeat_flags(rows: Sequence[Item], item: Item) -> tuple[Flag, ...]:
    """Remark upon an id that came with other content; the same content is a retry."""
    differs = any(row[name] != item[name] for row in rows for name in ("property", "value", "trace_id"))
    return (Flag("orq", "repeated_id", item["id"]),) if differs else ()


def _settle(rows: list[dict[str, Any]], row: dict[str, Any], switches: Switches) -> None:
    """Let a row stand beside, instead of, or behind the ones with the same id."""
    if not rows or switches.orq_repeated_id == "duplicate":
        rows.append(row)
    elif switches.orq_repeated_id == "upsert":
        rows[:] = [row]


def _apply_remove(fold: _Fold, submission: Submission) -> None:
    removal = submission.item
    rows = fold.effective.get((removal["id"],), [])
    rows[:] = [row for row in rows if not _is_removed_by(row, removal)]
    for entry in fold.entries.by_id.get(removal["id"], ()):
        entry["removed"] = entry["removed"] or _is_removed_by(entry["raw"], removal)


def _is_removed_by(item: Item, removal: Item) -> bool:
    return all(item.get(name) == removal[name] for name in ("id", "trace_id", "product"))


def _apply_annotate(fold: _Fold, submission: Submission) -> None:
    item = submission.item
    verdict = judge_annotation(item["trace_id"], item["span_id"], fold.spans)
    found = [*trace_id_flags(item["trace_id"]), *span_id_flags(item["span_id"])]
    verdict = replace(verdict, flags=(*flags_of("orq", found), *verdict.flags))
    for annotation in item["annotations"]:
        said = _said_by_annotation(item, annotation)
        key = canonical([item["trace_id"], item["span_id"], annotation, said.user])
        fold.entries.add(key, submission, PROJECT, said, verdict)
        _settle_annotation(fold.effective.setdefault(_place(item, said.name), []), said, fold.switches)


def _settle_annotation(rows: list[dict[str, Any]], said: Said, switches: Switches) -> None:
    row = {**said.target, "id": None, "property": said.name, "value": said.value, "product": "otel", "user": said.user}
    kept = rows if switches.orq_annotation_repeat == "append" else []
    rows[:] = [*kept, row]


def _apply_unannotate(fold: _Fold, submission: Submission) -> None:
    item = submission.item
    names = {*item.get("keys", ()), *item.get("parent_annotation_ids", ())}
    target: Target = {"trace_id": item["trace_id"], "span_id": item["span_id"]}
    for name in names:
        fold.effective.pop(_place(item, name), None)
    for entry in fold.entries.by_id.get(None, ()):  # only annotations have no id
        entry["removed"] = entry["removed"] or (entry["target"] == target and entry["name"] in names)


def _place(item: Item, name: str) -> tuple[str, str, str]:
    return (item["trace_id"], item["span_id"], name)


_STEPS: Mapping[str, Callable[[_Fold, Submission], None]] = {
    "create": _apply_create,
    "remove": _apply_remove,
    "annotate": _apply_annotate,
    "unannotate": _apply_unannotate,
}


def _row(item: Item) -> dict[str, Any]:
    """Answer a feedback as orq's page shows it."""
    return {**{name: item[name] for name in _SHOWN}, "span_id": None, "user": None}


_SHOWN = ("id", "trace_id", "property", "value", "product")


def _said(item: Item) -> Said:
    return Said(
        id=item["id"],
        kind="property",
        name=item["property"],
        value=item["value"],
        user=None,
        target={"trace_id": item["trace_id"], "span_id": None},
        raw=item,
    )


def _said_by_annotation(item: Item, annotation: Item) -> Said:
    return Said(
        id=None,
        kind="annotation",
        name=annotation.get("key") or annotation["parent_annotation_id"],
        value=annotation["value"],
        user=item.get("metadata", {}).get("identity_id"),
        target={"trace_id": item["trace_id"], "span_id": item["span_id"]},
        raw=item,
    )
