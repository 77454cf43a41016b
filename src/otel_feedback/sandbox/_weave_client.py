"""What Weave's own Python client asks for besides feedback, so that `weave.init()` works on loopback.

The addresses are those that weave 0.54 calls. Objects and files are acknowledged and forgotten: the sandbox
is about feedback. Calls become spans of the Traces view, whose id is the call's. Functions are pure.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import TYPE_CHECKING

from ._contracts import read_time
from ._model import Item, Outcome, Span, json_answer
from ._weave import read_body

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._call import Call

SERVER_INFO = "/server_info"
GRAPHQL = "/graphql"
UPSERT_BATCH = "/call/upsert_batch"
COMPLETE = "/v2/{entity}/{project}/calls/complete"
START = "/v2/{entity}/{project}/call/start"
END = "/v2/{entity}/{project}/call/end"
OBJECT = "/obj/create"
FILE = "/file/create"

ENTITY = "sandbox"

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def server_info(_: Call) -> Outcome:
    """Say that every client version will do."""
    versions = {"min_required_weave_python_version": "0.0.1", "trace_server_version": "1.0.0"}
    return Outcome(json_answer(200, versions))


def graphql(call: Call) -> Outcome:
    """Answer W&B's own API: who somebody is, and that each project is there.

    A GraphQL client reads the fields it asked for and passes over the others, so one answer serves all.
    """
    body, refusal = read_body(call, GRAPHQL)
    if refusal is not None:
        return refusal
    project = {"name": (body.get("variables") or {}).get("name")}
    viewer = {"username": ENTITY, "defaultEntity": {"name": ENTITY}}
    server = {"frontendHost": ""}
    data = {"viewer": viewer, "project": project, "upsertModel": {"model": project}, "serverInfo": server}
    return Outcome(json_answer(200, {"data": data}))


def acknowledge(call: Call) -> Outcome:
    """Take an object or a file, answer its digest, and forget it."""
    return Outcome(json_answer(200, {"digest": sha256(call.body).hexdigest()}))


def upsert_batch(call: Call) -> Outcome:
    """Take the starts and ends of calls."""
    body, refusal = read_body(call, UPSERT_BATCH)
    return refusal or _taken(call, [each["req"] for each in body["batch"]], {"res": []})


def complete(call: Call) -> Outcome:
    """Take whole calls."""
    body, refusal = read_body(call, COMPLETE)
    return refusal or _taken(call, [{"start": each, "end": each} for each in body["batch"]], {})


def start(call: Call) -> Outcome:
    """Take one call's start."""
    body, refusal = read_body(call, START)
    return refusal or _taken(call, [body], {})


def end(call: Call) -> Outcome:
    """Take one call's end."""
    body, refusal = read_body(call, END)
    return refusal or _taken(call, [body], {})


def _taken(call: Call, events: Sequence[Item], answer: object) -> Outcome:
    stored = {span.span_id: span for span in call.ledger.spans("weave") if span.view == "traces"}
    changed: dict[str, Span] = {}
    for event in events:
        for span in _spans(event, ChainMap(changed, stored)):
            changed[span.span_id] = span
    return Outcome(json_answer(200, answer), spans=tuple(changed.values()))


def _spans(event: Item, known: Mapping[str, Span]) -> list[Span]:
    """Answer the span that an event makes or ends; the end of a call that nobody began makes none."""
    begun, ended = event.get("start"), event.get("end")
    span = _started(begun) if begun else known.get(ended["id"]) if ended else None
    if span is None:
        return []
    return [replace(span, end_time_unix_nano=_nanos(ended["ended_at"])) if ended else span]


def _started(item: Item) -> Span:
    began = _nanos(item["started_at"])
    return Span(
        vendor="weave",
        project=item["project_id"],
        view="traces",
        trace_id=str(item.get("trace_id") or item["id"]),
        span_id=item["id"],
        parent_span_id=item.get("parent_id"),
        name=item.get("display_name") or _op_name(item["op_name"]),
        kind="call",
        attributes={},
        start_time_unix_nano=began,
        end_time_unix_nano=began,
    )


def _op_name(text: str) -> str:
    """Answer an op's name from its reference, `weave:///entity/project/op/name:digest`, or as it is."""
    return text.rpartition("/op/")[2].partition(":")[0] if text.startswith("weave:///") else text


def _nanos(text: str) -> int:
    return (read_time(text) - EPOCH) // timedelta(microseconds=1) * 1_000
