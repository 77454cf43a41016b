"""Several people judge one call at Braintrust: side by side, or the last one, as the exporter is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_feedback as of
from otel_feedback.sandbox import Fault, Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The vendors."""
    with Sandbox(port=0) as running:
        yield running


@pytest.fixture
def handle(sandbox: Sandbox) -> of.FeedbackHandle:
    """A call whose span is at Braintrust."""
    (endpoint,) = (each for each in sandbox.otlp_endpoints() if each.vendor == "braintrust")
    provider = TracerProvider()
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint=endpoint.url, headers=dict(endpoint.headers)))
    )
    with provider.get_tracer("app").start_as_current_span("answer") as span:
        pass
    provider.shutdown()
    return of.FeedbackHandle.from_span(span)


def provider_at(
    sandbox: Sandbox, *, per_rater: Literal["span", "child"] = "child", check_rows: bool = False
) -> of.FeedbackProvider:
    """Make a pipeline to Braintrust alone."""
    said = sandbox.environment()
    exporter = of.BraintrustExporter(
        said["BRAINTRUST_PARENT"],
        api_key=said["BRAINTRUST_API_KEY"],
        base_url=said["BRAINTRUST_API_URL"],
        hold_millis=0,
        per_rater=per_rater,
        check_rows=check_rows,
    )
    retry = of.RetryPolicy(base_millis=1, longest_millis=5)
    return of.FeedbackProvider(exporters=[exporter], store="memory:", retry=retry)


def rows(sandbox: Sandbox) -> Mapping[str, Any]:
    """The rows at Braintrust."""
    found: Mapping[str, Any] = sandbox.state()["effective"]["braintrust"]["rows"]
    return found


@pytest.mark.parametrize(("per_rater", "expected"), [("child", [0, 1]), ("span", [0])])
def test_two_people_stand_side_by_side_on_rows_of_their_own(
    sandbox: Sandbox, handle: of.FeedbackHandle, per_rater: Literal["span", "child"], expected: list[float]
):
    """
    With `child` both scores are there and joined to the span; else the last one is all that there is.
    """
    with provider_at(sandbox, per_rater=per_rater) as provider:
        for user, value in (("u-1", True), ("u-2", False)):
            provider.record(handle, "rating", value, user_id=user, comment=f"of {user}")
        assert provider.force_flush(10_000)

    found = rows(sandbox)
    assert expected == sorted(row["scores"]["rating"] for row in found.values() if row["scores"])
    assert ["of u-1", "of u-2"] == sorted(found[handle.span_id]["comments"])
    state = sandbox.state()
    assert (0, []) == (state["orphans"], state["flags"])


def test_a_changed_mind_is_the_same_row_and_what_is_taken_back_is_none(sandbox: Sandbox, handle: of.FeedbackHandle):
    """
    One person's second word replaces the first; taken back, nobody else's is touched.
    """
    with provider_at(sandbox) as provider:
        mine = provider.record(handle, "rating", True, user_id="u-1")
        theirs = provider.record(handle, "rating", False, user_id="u-2")
        assert provider.force_flush(10_000)
        provider.record(handle, "rating", False, user_id="u-1")
        assert provider.force_flush(10_000)
        changed = {row_id: row["scores"] for row_id, row in rows(sandbox).items() if row["scores"]}
        provider.retract(mine.id)
        assert provider.force_flush(10_000)

    assert {mine.id: {"rating": 0}, theirs.id: {"rating": 0}} == changed
    assert {theirs.id: {"rating": 0}} == {key: row["scores"] for key, row in rows(sandbox).items() if row["scores"]}


def test_an_answer_that_was_lost_is_no_second_row(sandbox: Sandbox, handle: of.FeedbackHandle):
    """
    A row that may have arrived is written again under the same id.
    """
    sandbox.inject(Fault(vendor="braintrust", kind="reset_after", path="*insert"))
    with provider_at(sandbox) as provider:
        receipt = provider.record(handle, "rating", True)
        assert provider.force_flush(10_000)

    assert {receipt.id: {"rating": 1}} == {key: row["scores"] for key, row in rows(sandbox).items() if row["scores"]}


def test_feedback_waits_for_a_row_that_is_not_there(sandbox: Sandbox, handle: of.FeedbackHandle):
    """
    With `check_rows` a span that Braintrust never got has no stray row: its feedback waits.
    """
    nowhere = of.FeedbackHandle.from_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    with provider_at(sandbox, per_rater="span", check_rows=True) as provider:
        there = provider.record(handle, "rating", True)
        assert provider.force_flush(10_000)
        missing = provider.record(nowhere, "rating", True)
        assert not provider.force_flush(4_000)
        status = provider.status(missing.id).deliveries["braintrust"]
        assert "delivered" == provider.status(there.id).deliveries["braintrust"].state

    assert status.state in ("pending", "leased")
    assert {handle.span_id} == rows(sandbox).keys()
