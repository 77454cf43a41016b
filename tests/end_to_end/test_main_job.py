"""The main job: a judgement given later, in another process, lands on exactly its span at all three vendors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from otel_feedback.sandbox import Sandbox, State, Switches

PROGRAMS = Path(__file__).parent / "programs"

# Both answers to what the vendors leave open.
SWITCHES = {
    "mild": Switches(),
    "harsh": Switches(
        orq_repeated_id="conflict",
        orq_missing_trace="refuse",
        orq_malformed_id="refuse",
        orq_remove_unknown="refuse",
        braintrust_null_score="ignore",
        braintrust_early_feedback="overwrite",
        braintrust_child_tags="refuse",
        braintrust_unknown_object="refuse",
        braintrust_row_twice="refuse",
        weave_batch=False,
        weave_purge_unknown="refuse",
        weave_collapse_after_millis=60_000,
    ),
}


@pytest.fixture(params=SWITCHES.values(), ids=SWITCHES.keys())
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The three vendors, under each answer."""
    with Sandbox(port=0, switches=request.param) as running:
        yield running


@pytest.fixture
def environment(sandbox: Sandbox, tmp_path: Path) -> dict[str, str]:
    """All that the two processes are told."""
    endpoints = [{"url": each.url, "headers": dict(each.headers)} for each in sandbox.otlp_endpoints()]
    return {
        **os.environ,
        **sandbox.environment(),
        "OTEL_FEEDBACK_EXPORTERS": "orq,braintrust,weave",
        "OTEL_FEEDBACK_STORE_URL": f"sqlite:///{tmp_path / 'feedback.db'}",
        "OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS": "0",
        "TEST_ENDPOINTS": json.dumps(endpoints),
    }


def run(program: str, environment: Mapping[str, str], said: str = "") -> str:
    """Run a program to its end and answer what it printed."""
    done = subprocess.run(
        [sys.executable, PROGRAMS / program],
        env=dict(environment),
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def landed(state: State, vendor: str, name: str) -> Counter[tuple[str, str | None, object]]:
    """Count what a vendor holds under a name, by trace, span and value."""
    return Counter(
        (str(each["target"]["trace_id"]), each["target"]["span_id"], each["value"])
        for each in state["feedback"]
        if (each["vendor"], each["name"]) == (vendor, name)
        for _ in range(each["times"])
    )


def test_fifty_calls_of_every_shape_are_judged_from_another_process(
    sandbox: Sandbox, environment: dict[str, str]
) -> None:
    """
    Each of fifty judgements lands on exactly its span at each vendor, none elsewhere, none twice.
    """
    traceparents = json.loads(run("fifty_calls.py", environment))
    said = json.loads(run("fifty_judgements.py", environment, json.dumps(traceparents)))

    assert said == {"is_delivered": True}
    assert len(traceparents) == 50
    state = sandbox.state()
    spans = {message: tuple(traceparent.split("-")[1:3]) for message, traceparent in traceparents.items()}
    corrections = Counter((*ids, f"correction of {message}") for message, ids in spans.items())
    assert landed(state, "braintrust", "expected") == corrections
    assert landed(state, "weave", "correction") == corrections
    assert landed(state, "orq", "correction") == Counter(
        (trace_id, None, correction) for trace_id, _, correction in corrections.elements()
    )
    comments = Counter((*ids, f"comment on {message}") for message, ids in spans.items())
    assert landed(state, "braintrust", "comment") == comments
    assert landed(state, "weave", "note") == comments
    thumbs = [(ids, number % 2 == 0) for number, ids in enumerate(spans.values())]
    assert landed(state, "braintrust", "rating") == Counter((*ids, int(up)) for ids, up in thumbs)
    assert landed(state, "weave", "reaction") == Counter((*ids, "👍" if up else "👎") for ids, up in thumbs)
    assert all(each["joined"] for each in state["feedback"])
    assert (state["orphans"], state["flags"]) == (0, [])
