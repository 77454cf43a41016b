"""What the exporter sends, taken by the code of Weave's own server: `nox -s weave_server`.

Up to 0.53 the package `weave` has its trace server in it, with the request models and the checks that answer 400; 0.54
left it out. It is a large package, and another `weave` than the one whose client the other tests drive, so that this
has a session of its own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exporter_bench import asked, judgements
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from weave_bench import BATCH, CREATE, PROJECT, PURGE, REPLACE, SETUPS, requests_of, weave_judgements

from otel_feedback import FeedbackRecord, WeaveExporter
from otel_feedback.exporters._weave_rules import is_one_emoji

FOUND = importlib.util.find_spec("weave")
SERVER = Path(str(FOUND.origin)).parent / "trace_server" if FOUND is not None else Path("none")

if not (SERVER / "feedback.py").exists():
    pytest.skip(
        "this weave ships no trace server; `nox -s weave_server` installs one that does", allow_module_level=True
    )

import emoji  # type: ignore[import-not-found]  # noqa: E402 (what comes with the server)
from weave.trace_server import feedback as server  # type: ignore[import-not-found]  # noqa: E402
from weave.trace_server import trace_server_interface as tsi  # type: ignore[import-not-found]  # noqa: E402

MODELS = {
    CREATE: tsi.FeedbackCreateReq,
    BATCH: tsi.FeedbackCreateBatchReq,
    REPLACE: tsi.FeedbackReplaceReq,
    PURGE: tsi.FeedbackPurgeReq,
}
# How the server knows a project inside: ids of its own, which its outermost layer puts in the place of names.
INSIDE, NAMED = "weave-trace-internal:///UHJvamVjdDox/", f"weave:///{PROJECT}/"


class Store:
    """What the server reads of its database: an annotation spec that takes any value, and a queue."""

    def refs_read_batch(self, _: Any) -> Any:
        return SimpleNamespace(vals=[{"name": "helpfulness", "field_schema": {}}])

    def annotation_queue_read(self, asked_for: Any) -> Any:
        return SimpleNamespace(queue=SimpleNamespace(project_id=asked_for.project_id))


def inside(body: dict[str, Any]) -> dict[str, Any]:
    """Write a body as it reaches the server's checks, with the project's own id."""
    known = {
        name: value.replace(NAMED, INSIDE) if isinstance(value, str) and name.endswith("_ref") else value
        for name, value in body.items()
    }
    return {**known, "project_id": "UHJvamVjdDox"}


def fields_of(model: Any) -> set[str]:
    """Name the fields that a model knows."""
    return {field.alias or name for name, field in model.model_fields.items()}


def take(path: str, body: Any) -> None:
    """Let the server's code take a request, as its handlers do; it raises what it would answer 400 or 422 to."""
    assert body.keys() <= fields_of(MODELS[path]), "the server ignores what it does not know, and older ones refuse it"
    MODELS[path].model_validate(body)
    if path == PURGE:
        server.validate_feedback_purge_req(MODELS[path].model_validate(body))
        return
    for item in body["batch"] if path == BATCH else [body]:
        fields = {name: value for name, value in item.items() if name != "feedback_id"}
        assert fields.keys() <= fields_of(MODELS[CREATE])
        request = tsi.FeedbackCreateReq.model_validate(inside(fields))
        server.validate_feedback_create_req(request, Store())
        server.validate_feedback_agent_req_targets(request)
        server.process_feedback_payload(request)


def check(count: int, strategy: Any) -> int:
    """Let the server take what so many judgements lead to; answer how many requests that were."""
    exporters = [WeaveExporter(PROJECT, **options) for options in SETUPS.values()]
    taken = 0

    @seed(7)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(judgement=strategy, exporter=st.sampled_from(exporters))
    def takes(judgement: FeedbackRecord, exporter: WeaveExporter) -> None:
        nonlocal taken
        for request in requests_of(exporter, judgement):
            take(*asked(request))
            taken += 1

    takes()
    return taken


@pytest.mark.parametrize("strategy", [judgements(), weave_judgements()], ids=["mapped", "native"])
def test_the_server_takes_whatever_is_sent(strategy: Any) -> None:
    """
    In both views, at every level, mapped or native, alone and in batches, to replace and to take back.
    """
    assert check(500, strategy) >= 500


def test_every_emoji_is_one_by_our_rule_as_well() -> None:
    """
    The server counts by the table of the package `emoji`: what that has is one for us, and what is two is none.
    """
    known = [each for each in emoji.EMOJI_DATA if emoji.emoji_count(each) == 1]

    assert len(known) > 4_000
    assert [] == [each for each in known if not is_one_emoji(each)]
    assert not any(is_one_emoji(each + "👍") for each in ("👍", "👎", "a"))
