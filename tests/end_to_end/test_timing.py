"""Feedback that comes early, on spans of other libraries, or on spans that no vendor will ever see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

import otel_feedback as of
from otel_feedback.sandbox import Sandbox, Switches

EXPORTERS = "orq,braintrust,weave"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Vendors that refuse or overwrite what comes before its span."""
    with Sandbox(
        port=0, switches=Switches(orq_missing_trace="refuse", braintrust_early_feedback="overwrite")
    ) as running:
        yield running


@pytest.fixture
def tracer_provider(sandbox: Sandbox) -> Iterator[TracerProvider]:
    """An app's tracing, which sends its spans in batches."""
    provider = TracerProvider()
    for endpoint in sandbox.otlp_endpoints():
        exporter = OTLPSpanExporter(endpoint=endpoint.url, headers=dict(endpoint.headers))
        provider.add_span_processor(BatchSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def feedback(
    sandbox: Sandbox, tracer_provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> Iterator[of.FeedbackProvider]:
    """A pipeline configured by the environment, with Braintrust's hold at its default of a minute."""
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OTEL_FEEDBACK_EXPORTERS", EXPORTERS)
    monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "memory:")
    with of.configure(tracer_provider=tracer_provider) as provider:
        yield provider


def test_feedback_on_a_running_call_waits_for_its_span(sandbox: Sandbox, feedback: of.FeedbackProvider):
    """
    A thumb given while the call runs is held back from Braintrust, and released by a flush once the span has gone.
    """
    with of.capture_span("answer") as handle:
        receipt = feedback.record(handle, "rating", True)
        was_flushed_early = feedback.force_flush(300)
        early = feedback.status(receipt.id).deliveries["braintrust"].state
    was_flushed_late = feedback.force_flush(10_000)

    assert (False, "pending") == (was_flushed_early, early)
    assert was_flushed_late
    rows = sandbox.state()["effective"]["braintrust"]["rows"]
    assert {"rating": 1} == rows[handle.span_id]["scores"]
    assert 0 == sandbox.state()["orphans"]


def test_feedback_by_the_models_response_id_lands_on_the_chat_span(
    sandbox: Sandbox, feedback: of.FeedbackProvider, tracer_provider: TracerProvider
):
    """
    Without any decorator, the response id that an instrumentation wrote on its chat span finds that span.
    """
    tracer = tracer_provider.get_tracer("opentelemetry.instrumentation.openai_v2")
    with tracer.start_as_current_span("POST /chat"), tracer.start_as_current_span("chat gpt-4o") as span:
        span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": "chatcmpl-1"})
    feedback.record(key="chatcmpl-1", name="rating", value=False)

    assert feedback.force_flush(10_000)
    landed = {(each["vendor"], each["target"]["span_id"], each["joined"]) for each in sandbox.state()["feedback"]}
    span_id = f"{span.get_span_context().span_id:016x}"
    assert {("orq", None, True), ("braintrust", span_id, True), ("weave", span_id, True)} == landed


def test_feedback_on_an_unsampled_call_is_skipped_and_says_so(sandbox: Sandbox, feedback: of.FeedbackProvider):
    """
    No vendor ever gets the span, so none gets the feedback; the receipt and the account have the reason.
    """
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("app").start_as_current_span("answer") as span:
        receipt = feedback.record(of.FeedbackHandle.from_span(span), "rating", True)

    assert feedback.force_flush(10_000)
    assert {("skipped", "unsampled")} == {(each.state, each.reason) for each in receipt.deliveries.values()}
    assert [{"unsampled": 1}] * 3 == [stats.skipped for stats in feedback.stats().values()]
    assert [] == sandbox.state()["feedback"]
