import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_bench import AUTH, CHILD, ROOT, TRACE, Bench, otlp, span, weave_item

from otel_feedback.sandbox._braintrust import project_id
from otel_feedback.sandbox._core import HANDLERS, Incoming
from otel_feedback.sandbox._page import render

PARAMETERS = {
    "trace_id": TRACE,
    "span_id": CHILD,
    "project_id": project_id("sandbox"),
    "experiment_id": project_id("experiment"),
    "entity": "acme",
    "project": "chat",
}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from([ROOT, CHILD, TRACE, "👍", "wandb.note.1", "wandb.reaction.1", "rating", "otel", "acme/chat"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)

STEMS = (
    {"property": "rating", "value": ["good"], "trace_id": TRACE, "product": "otel", "id": "x"},
    {"annotations": [{"key": "a", "value": 1}], "metadata": {"identity_id": "u"}},
    {"keys": ["a"]},
    {"feedback": [{"id": ROOT, "scores": {"a": 1}, "comment": "c", "tags": ["t"], "expected": 1, "metadata": {}}]},
    {"events": [{"id": "r", "span_parents": [ROOT], "scores": {"a": None}, "_is_merge": True}]},
    {"name": "chat", "query": "id = 'x'", "variables": {"name": "x"}},
    weave_item(),
    weave_item(feedback_id="a", id="a"),
    {"batch": [weave_item()]},
    {"batch": [{"req": {"start": {"id": "a", "project_id": "a/b", "op_name": "f", "started_at": "2026-01-01"}}}]},
    {"end": {"id": "a", "ended_at": "2026-01-01"}},
    {"project_id": "acme/chat", "query": {"$expr": {"$eq": [{"$getField": "id"}, {"$literal": "a"}]}}, "limit": 1},
)


@st.composite
def bodies(draw):
    """Draw a body that is nearly right: a good one, with some of its values exchanged."""
    stem = draw(st.sampled_from(STEMS))
    return draw(exchanged(stem))


@st.composite
def exchanged(draw, value):
    if draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    if isinstance(value, dict):
        return {name: draw(exchanged(each)) for name, each in value.items()}
    if isinstance(value, list):
        return [draw(exchanged(each)) for each in value]
    return value


def ask(bench, vendor, method, template, body):
    path = template.format(**PARAMETERS)
    names = {name: value for name, value in PARAMETERS.items() if f"{{{name}}}" in template}
    incoming = Incoming(
        vendor=vendor,
        template=template,
        method=method,
        whole_path=f"/{vendor}{path}",
        path=path,
        path_params=names,
        query={},
        query_text="",
        headers=AUTH[vendor],
        raw_body=body,
        body=body,
    )
    return bench.core.receive(incoming).answer


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {
            "weave_bad_payload": "accept",
            "weave_undeclared_fields": "ignore",
            "braintrust_early_feedback": "overwrite",
            "orq_repeated_id": "ignore",
        },
    ],
)
@settings(max_examples=40, deadline=None)
@given(asked=st.lists(st.tuples(st.sampled_from(sorted(HANDLERS)), bodies()), min_size=1, max_size=8))
def test_no_body_breaks_it(switches, asked):
    """
    Whatever JSON comes to whatever address, it is answered, and state and page can be read afterwards.
    """
    bench = Bench(**switches)
    bench.export("weave", span(), span(CHILD, ROOT))
    bench.export("braintrust", span(), span(CHILD, ROOT))
    for address, body in asked:
        assert ask(bench, *address, json.dumps(body).encode()).status < 500
    state = bench.state()

    assert json.loads(json.dumps(state, allow_nan=False))["requests"] == len(asked) + 2
    assert render(state, refresh="off").startswith("<!doctype html>")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_no_bytes_break_an_export(noise, cut):
    """
    Bytes in place of an export, or in the middle of one, are taken or refused.
    """
    good = otlp(span(gen_ai__operation__name="chat"))
    bench = Bench()
    for vendor, template in (
        ("orq", "/v2/otel/v1/traces"),
        ("braintrust", "/otel/v1/traces"),
        ("weave", "/otel/v1/traces"),
    ):
        for body in (noise, good[:cut] + noise + good[cut:]):
            assert ask(bench, vendor, "POST", template, body).status in {200, 400}
    state = bench.state()

    assert render(state, refresh="off").startswith("<!doctype html>")
