"""What Weave's own Python client asks for besides feedback, so that `weave.init()` works on loopback.

The addresses are those that weave 0.54 calls. Objects and files are acknowledged and forgotten: the sandbox
is about feedback. Calls become spans of the Traces view, whose id is the call's. Functions are pure.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ._body import read_json
from ._model import Item, Outcome, Span, flags_of, json_answer

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


def server_info(_: Call) -> Outcome:
    """Say that every client version will do."""
    versions = {"min_required_weave_python_version": "0.0.1", "trace_server_version": "1.0.0"}
    return Outcome(json_answer(200, versions))


def graphql(call: Call) -> Outcome:
    """Answer W&B's own API: who somebody is, and that each project is there.

    A GraphQL client reads the fields it asked for and passes over the others, so one answer serves all.
    """
    body = _read(call)
    if body is None:
        return _unreadable(call)
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
    body = _read(call)
    if body is None:
        return _unreadable(call)
    events = [each.get("req", {}) for each in body.get("batch", ())]
    return _taken(call, events, {"res": []})


def complete(call: Call) -> Outcome:
    """Take whole calls."""
    body = _read(call)
    if body is None:
        return _unreadable(call)
    return _taken(call, [{"start": each, "end": each} for each in body.get("batch", ())], {})


def start_or_end(call: Call) -> Outcome:
    """Take one call's start or end."""
    body = _read(call)
    if body is None:
        return _unreadable(call)
    return _taken(call, [body], {})


def _taken(call: Call, events: Sequence[Item], answer: object) -> Outcome:
    known = {span.span_id: span for span in call.ledger.spans("weave") if span.view == "traces"}
    try:
        for event in events:
            for span in _spans(event, known):
                known[span.span_id] = span
    except (AttributeError, KeyError, TypeError, ValueError):
        return _unreadable(call)
    changed = {each.get("id") for event in events for each in (event.get("start"), event.get("end")) if each}
    return Outcome(json_answer(200, answer), spans=tuple(known[each] for each in changed if each in known))


def _spans(event: Item, known: Mapping[str, Span]) -> list[Span]:
    """Answer the span that an event makes or ends."""
    start, end = event.get("start"), event.get("end")
    span = _started(start) if start else known.get(end["id"] if end else "")
    if span is None:
        return []
    return [replace(span, end_time_unix_nano=_nanos(end["ended_at"])) if end else span]


def _started(start: Item) -> Span:
    began = _nanos(start["started_at"])
    return Span(
        vendor="weave",
        project=start["project_id"],
        view="traces",
        trace_id=str(start.get("trace_id") or start["id"]),
        span_id=start["id"],
        parent_span_id=start.get("parent_id"),
        name=start.get("display_name") or _op_name(start["op_name"]),
        kind="call",
        attributes={},
        start_time_unix_nano=began,
        end_time_unix_nano=began,
    )


def _op_name(text: str) -> str:
    """Answer an op's name from its reference, `weave:///entity/project/op/name:digest`, or as it is."""
    return text.rpartition("/op/")[2].partition(":")[0] if text.startswith("weave:///") else text


def _nanos(text: str) -> int:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read Z
    return int(moment.timestamp() * 1_000_000_000)


def _read(call: Call) -> dict[str, Any] | None:
    try:
        body = read_json(call.body)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _unreadable(call: Call) -> Outcome:
    answer = json_answer(422, {"detail": [{"loc": ["body"], "msg": "unreadable", "type": "value_error"}]})
    return Outcome(answer, flags=flags_of("weave", [("unreadable_body", call.path)]))
