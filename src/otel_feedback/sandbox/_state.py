"""`state()`: the three vendors' readings put together. Pure; computed whenever it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _braintrust, _orq, _weave
from ._braintrust import label, names_of
from ._otlp import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._ledger import Ledger
    from ._model import FeedbackState, Flag, FlagState, Span, SpanState, State
    from ._switches import Switches


def state_of(
    ledger: Ledger, switches: Switches, now_unix_nano: int, *, requests: int, faults: list[dict[str, Any]]
) -> State:
    """Put the documented state together."""
    orq = _orq.read(ledger.spans("orq"), ledger.submissions("orq"), switches)
    braintrust = _braintrust.read(ledger.spans("braintrust"), ledger.submissions("braintrust"), switches)
    weave = _weave.read(ledger.spans("weave"), ledger.submissions("weave"), switches, now_unix_nano)
    readings = (orq, braintrust, weave)
    feedback = sorted(
        (entry for reading in readings for entry in reading.feedback),
        key=lambda entry: entry["received_at_unix_nano"],
    )
    flags = (*ledger.flags(), *dict.fromkeys(flag for reading in readings for flag in reading.flags))
    return {
        "spans": [*_spans(ledger, switches)],
        "feedback": feedback,
        "flags": [_flag(flag) for flag in flags],
        "effective": {"orq": orq.effective, "braintrust": braintrust.effective, "weave": weave.effective},
        "requests": requests,
        "orphans": sum(is_orphan(entry) for entry in feedback),
        "faults": faults,
    }


def is_orphan(entry: FeedbackState) -> bool:
    """Say whether a feedback is on no span, and was not taken back either."""
    return not entry["joined"] and not entry["removed"]


def mistargeted(state: State, expected: Mapping[str, str]) -> list[FeedbackState]:
    """Find the feedback that is about another span than was meant.

    Args:
        state: What `state()` answered.

        expected: Span ids by what the feedback says: its id, its name, or its value where that is text.

    Returns:
        The entries among those said whose target is another span. Where a vendor knows only traces, the
        trace of the expected span decides.

    """
    traces = {span["span_id"]: span["trace_id"] for span in state["spans"]}
    return [
        entry
        for entry in state["feedback"]
        for span_id in _expectations(entry, expected)
        if not _is_about(entry, span_id, traces)
    ]


def _expectations(entry: FeedbackState, expected: Mapping[str, str]) -> Sequence[str]:
    """Answer the expectation for one entry: its id's, else its value's, else its name's."""
    said = (entry["id"], entry["value"], entry["name"])
    found = [expected[text] for text in said if isinstance(text, str) and text in expected]
    return found[:1]


def _is_about(entry: FeedbackState, span_id: str, traces: Mapping[str, str]) -> bool:
    target = entry["target"]
    if target["span_id"] is None:
        return target["trace_id"] == traces.get(span_id)
    return target["span_id"] == span_id


def _spans(ledger: Ledger, switches: Switches) -> list[SpanState]:
    names = names_of(ledger.submissions("braintrust"), switches)
    return [
        *(_span(span, span.project) for span in ledger.spans("orq")),
        *(_span(span, label(span.project, names)) for span in ledger.spans("braintrust")),
        *(_span(span, span.project) for span in ledger.spans("weave")),
    ]


def _span(span: Span, project: str) -> SpanState:
    operation = span.attributes.get("gen_ai.operation.name")
    return {
        "vendor": span.vendor,
        "project": project,
        "view": span.view,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "kind": span.kind,
        "operation": str(operation) if operation is not None else None,
        "attributes": shown(span.attributes),
        "start_time_unix_nano": span.start_time_unix_nano,
        "end_time_unix_nano": span.end_time_unix_nano,
    }


def _flag(flag: Flag) -> FlagState:
    return {"vendor": flag.vendor, "flag": flag.flag, "detail": flag.detail}
