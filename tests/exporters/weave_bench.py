"""What the tests of Weave's exporter share: every judgement it may get, every request it can build, what they must be.

The checks are the published contract, the request types of the installed `weave`, and VENDORS' rules about types.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from exporter_bench import SPEC, asked, changed, contract, handle, judgements, play, published, taken_back
from hypothesis import strategies as st

from otel_feedback import FeedbackRecord, Part, WeaveExporter
from otel_feedback.exceptions import InvalidFeedbackError

if TYPE_CHECKING:
    import httpx

CREATE, BATCH = "/feedback/create", "/feedback/batch/create"
REPLACE, PURGE = "/feedback/replace", "/feedback/purge"
REACTION, NOTE, AGENT = "wandb.reaction.1", "wandb.note.1", "wandb.agent_user_feedback"
PROJECT = "acme/chat"
OP, OBJECT, CALL = (
    "weave:///acme/chat/op/judge:d",
    "weave:///acme/chat/object/judge:d",
    "weave:///acme/chat/call/call-1",
)
ANNOTATION_SPEC = "weave:///acme/chat/object/helpfulness:9zXq"
CONVERSATION = "chat/7 é?:~"

# Every way to set up the exporter that changes what it sends.
SETUPS: Mapping[str, Mapping[str, Any]] = {
    "call": {},
    "root call": {"level": "trace"},
    "annotations": {"annotations": {"rating": ANNOTATION_SPEC, "relevance": ANNOTATION_SPEC}},
    "other thumbs": {"thumbs": ("toxic",)},
    "agent span": {"view": "agents"},
    "agent turn": {"view": "agents", "level": "trace"},
    "agent conversation": {"view": "agents", "level": "conversation"},
}


# --- what may come ---------------------------------------------------------------------------------------------

_TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)
_SHARES = st.floats(0, 1)
_SCORER_FIELDS: Mapping[str, st.SearchStrategy[Any]] = {
    "scorer_tags": st.lists(_TEXTS, min_size=1, max_size=3),
    "scorer_tag_reasons": st.dictionaries(_TEXTS, _TEXTS, max_size=2),
    "scorer_tag_confidences": st.dictionaries(_TEXTS, _SHARES, max_size=2),
    "scorer_ratings": st.dictionaries(_TEXTS, _SHARES, max_size=2),
    "scorer_rating_reasons": st.dictionaries(_TEXTS, _TEXTS, max_size=2),
    "scorer_rating_confidences": st.dictionaries(_TEXTS, _SHARES, max_size=2),
}
_ANY_TYPE_FIELDS = {
    "creator": _TEXTS,
    "queue_id": st.uuids().map(str),
    "payload": st.dictionaries(_TEXTS, _TEXTS | st.integers(-9, 9), max_size=2),
}
_TYPES: Mapping[str, Mapping[str, Any]] = {
    "custom": {"feedback_type": "custom"},
    "agent": {"feedback_type": AGENT},
    "monitor": {
        "feedback_type": "wandb.agent_monitor",
        "runnable_ref": OP,
        "call_ref": CALL,
        "trigger_ref": OBJECT,
    },
    "runnable": {"feedback_type": "wandb.runnable.judge", "runnable_ref": OBJECT, "payload": {"output": 1}},
    "op": {
        "feedback_type": "wandb.runnable.judge",
        "runnable_ref": OP,
        "call_ref": CALL,
        "payload": {"output": {"score": 0.5}},
    },
    "annotation": {
        "feedback_type": "wandb.annotation.helpfulness",
        "annotation_ref": ANNOTATION_SPEC,
        "payload": {"value": 3},
    },
}


@st.composite
def natives(draw: st.DrawFn) -> dict[str, Any]:
    """Make native fields of right types, in combinations that Weave may take or not."""
    kind = draw(st.sampled_from([None, *_TYPES]))
    chosen = {**_TYPES.get(kind or "", {})}
    scored = _SCORER_FIELDS if kind in ("agent", "monitor", "runnable", "op") else {}
    if kind == "agent":
        chosen["scorer_tags"] = draw(_SCORER_FIELDS["scorer_tags"])
    found = draw(st.fixed_dictionaries({}, optional={**_ANY_TYPE_FIELDS, **scored}))
    return {**chosen, **found, "payload": {**found.get("payload", {}), **chosen.get("payload", {})}}


@st.composite
def weave_judgements(draw: st.DrawFn) -> FeedbackRecord:
    """Make any judgement that is accepted, of a call in a conversation or in none, with native fields or without."""
    judgement = draw(judgements())
    attributes = draw(st.sampled_from([{}, {"gen_ai__conversation__id": CONVERSATION}]))
    target = replace(judgement.handle, attributes=handle(**attributes).attributes)
    native = draw(st.none() | st.none() | natives())
    return replace(judgement, handle=target, native={} if native is None else {"weave": native})


# --- what is sent ----------------------------------------------------------------------------------------------


def requests_of(exporter: WeaveExporter, judgement: FeedbackRecord) -> list[httpx.Request]:
    """Answer each kind of request that a judgement can lead to: to create, as a batch, to replace, to take back."""
    try:
        parts = exporter.parts(judgement)
    except InvalidFeedbackError:
        # Refused before it is accepted. Only what is native can lead to that.
        assert judgement.native, judgement
        return []
    # Alone, together, changed and taken back.
    tries = [*([part] for part in parts), [*parts, *_again(parts)], changed(exporter, judgement, judgement)]
    return [request for each in (*tries, taken_back(parts)) for request in play(exporter.exchange(each))[0]]


def _again(parts: list[Part]) -> list[Part]:
    """Answer the parts of the same judgement of another id, so that there are always enough for a batch."""
    return [replace(part, body={**part.body, "id": "0198f1f2-9c2b-7d3e-b5a1-0000000000ff"}) for part in parts[:1]]


# --- what it must be -------------------------------------------------------------------------------------------


def assert_valid(request: httpx.Request, *, is_mapped: bool) -> None:
    """Check a request against each contract that is at hand; what is mapped, not native, has each tag once."""
    path, body = asked(request)
    items = {BATCH: body.get("batch"), PURGE: []}.get(path, [body])
    assert [] == [error.message for error in _contract(path).iter_errors(body)]
    if SPEC.exists():
        for item in items:
            assert [] == [error.message for error in _published().iter_errors(item)]
    if path in request_types():
        request_types()[path](body)
    for item in items:
        assert_allowed(item)
        assert not is_mapped or len(set(item.get("scorer_tags", ()))) == len(item.get("scorer_tags", ()))


_contract = functools.cache(functools.partial(contract, "weave"))
_published = functools.cache(functools.partial(published, "weave", CREATE))


def published_fields() -> set[str]:
    """Name the fields of the published page."""
    return set(_published().schema["components"]["schemas"]["FeedbackCreateRequest"]["properties"])


_REF = re.compile(
    r"weave:///acme/chat/(call/[0-9a-f]{16}|agent_span/[0-9a-f]{16}|agent_turn/[0-9a-f]{32}"
    r"|agent_conversation/[A-Za-z0-9_.~%-]+)"
)


def assert_allowed(body: Mapping[str, Any]) -> None:
    """Check the rules about types and references (VENDORS, Weave) that no schema says."""
    kind, payload = body["feedback_type"], body["payload"]
    assert _REF.fullmatch(body["weave_ref"])
    assert "recorded_at" in payload
    assert (kind == REACTION) <= (payload.get("emoji") in ("👍", "👎"))
    assert (kind == NOTE) <= (1 <= len(payload.get("note", "")) <= 1024)
    assert kind in (REACTION, NOTE, AGENT, "wandb.agent_monitor") or not re.match(
        r"wandb\.(?!annotation\..|runnable\..)", kind
    )
    is_scored = kind in (AGENT, "wandb.agent_monitor") or kind.startswith("wandb.runnable.")
    assert is_scored or not any(name.startswith("scorer_") for name in body)
    assert (kind == AGENT) <= bool(body.get("scorer_tags"))
    assert all(0 <= rating <= 1 for rating in body.get("scorer_ratings", {}).values())
    assert kind.startswith("wandb.annotation.") == ("annotation_ref" in body)
    assert (kind.startswith("wandb.annotation.")) <= ("value" in payload)
    assert len(json.dumps(payload)) <= 1024 * 1024
    assert "wb_user_id" not in body


# --- the types of the installed weave --------------------------------------------------------------------------


@functools.cache
def request_types() -> Mapping[str, Callable[[Any], object]]:
    """Answer, by path, what checks a body by the request types of the installed `weave`, unknown fields refused.

    Up to 0.53 these are the pydantic models of its trace server, since 0.54 the typed dictionaries of its client.
    """
    if models := _server_models():
        return models
    return _client_types()


def _server_models() -> Mapping[str, Callable[[Any], object]]:
    """Find the trace server's models; what they do not know is refused here, since not all of them do."""
    spec = importlib.util.find_spec("weave")
    if spec is None or not (Path(str(spec.origin)).parent / "trace_server" / "trace_server_interface.py").exists():
        return {}
    tsi = importlib.import_module("weave.trace_server.trace_server_interface")

    def closed(model: Any) -> Callable[[Any], object]:
        known = {field.alias or name for name, field in model.model_fields.items()}

        def check(body: Any) -> None:
            assert body.keys() <= known
            for each in body.get("batch", ()):
                checks[CREATE](each)
            model.model_validate(body)

        return check

    checks = {
        CREATE: closed(tsi.FeedbackCreateReq),
        BATCH: closed(tsi.FeedbackCreateBatchReq),
        REPLACE: closed(tsi.FeedbackReplaceReq),
        PURGE: closed(tsi.FeedbackPurgeReq),
    }
    return checks


def _client_types() -> Mapping[str, Callable[[Any], object]]:
    """Find the client's types. Purge has none that can be checked: its query's names are aliases."""
    types = _client_sdk()
    strict = pydantic.ConfigDict(extra="forbid", strict=True)

    def adapter(of_type: Any) -> pydantic.TypeAdapter[Any]:
        closed = type(of_type)(of_type.__name__, (of_type,), {"__module__": of_type.__module__, "__annotations__": {}})
        closed.__pydantic_config__ = strict  # type: ignore[attr-defined]  # how pydantic is told
        return pydantic.TypeAdapter(closed)

    item = adapter(types.feedback_batch_create_params.Batch)

    def batch(body: Any) -> None:
        assert ["batch"] == list(body)
        for each in body["batch"]:
            item.validate_python(each)

    return {
        CREATE: adapter(types.feedback_create_params.FeedbackCreateParams).validate_python,
        BATCH: batch,
        REPLACE: adapter(types.feedback_replace_params.FeedbackReplaceParams).validate_python,
    }


def _client_sdk() -> Any:
    """Load the client's generated part by itself: the whole package takes seconds, and changes the process."""
    spec = importlib.util.find_spec("weave")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "vendor" / "weave_server_sdk"
    name = "weave_server_sdk_alone"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert found is not None
        assert found.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.types")
