"""Braintrust's own span processor, which drops every span that does not look like AI."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from braintrust.otel import AISpanProcessor, BraintrustSpanProcessor
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_feedback as of

if TYPE_CHECKING:
    from trace_collector import TraceCollector

PARENT = "project_name:chat"


@pytest.fixture
def kept() -> InMemorySpanExporter:
    """What Braintrust's filter lets pass."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer_provider(kept: InMemorySpanExporter) -> TracerProvider:
    """The application's tracing, with Braintrust's filter in front."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(AISpanProcessor(SimpleSpanProcessor(kept)))
    return provider


def configure(tracer_provider: TracerProvider, *exporters: of.FeedbackExporter) -> None:
    of.configure(exporters=exporters, store="memory:", tracer_provider=tracer_provider)


def by_function(tracer_provider: TracerProvider) -> str:
    @of.capture
    def answer() -> str:
        return current_span_id()

    return answer()


def by_generator(tracer_provider: TracerProvider) -> str:
    @of.capture(name="answer")
    def words() -> Any:
        yield current_span_id()

    return "".join(words())


def by_block(tracer_provider: TracerProvider) -> str:
    with of.capture_span("answer"):
        return current_span_id()


def by_hand(tracer_provider: TracerProvider) -> str:
    with tracer_provider.get_tracer("app").start_as_current_span("answer"):
        return current_span_id()


def current_span_id() -> str:
    return trace.format_span_id(trace.get_current_span().get_span_context().span_id)


each_form = pytest.mark.parametrize("call", [by_function, by_generator, by_block])


@each_form
def test_a_captured_call_passes_the_filter_where_braintrust_is_a_destination(
    call: Callable[[TracerProvider], str], tracer_provider: TracerProvider, kept: InMemorySpanExporter
) -> None:
    """
    However plain its name, the span is kept, and says which project it belongs to.
    """
    configure(tracer_provider, of.BraintrustExporter(PARENT, api_key="x"))
    span_id = call(tracer_provider)

    assert [(span_id, PARENT)] == [
        (trace.format_span_id(span.context.span_id), span.attributes["braintrust.parent"])
        for span in kept.get_finished_spans()
    ]
    assert [True] == [span.name.endswith("answer") for span in kept.get_finished_spans()]


def test_an_unmarked_span_of_the_same_name_is_dropped(
    tracer_provider: TracerProvider, kept: InMemorySpanExporter
) -> None:
    """
    The control: it is what capture sets that keeps the span.
    """
    configure(tracer_provider, of.BraintrustExporter(PARENT, api_key="x"))
    by_hand(tracer_provider)

    assert () == kept.get_finished_spans()


def test_a_captured_call_is_not_marked_where_braintrust_is_no_destination(
    tracer_provider: TracerProvider, kept: InMemorySpanExporter
) -> None:
    """
    Nothing is written on a span for a vendor that gets no feedback.
    """
    configure(tracer_provider)
    by_function(tracer_provider)

    assert () == kept.get_finished_spans()


def test_the_handle_of_a_captured_call_knows_its_project(tracer_provider: TracerProvider) -> None:
    """
    What the span says goes along with the judgement, to whichever project that is.
    """
    configure(tracer_provider, of.BraintrustExporter(PARENT, api_key="x"))
    with of.collect_handles() as collected:
        by_function(tracer_provider)

    assert [PARENT] == [handle.attributes["braintrust.parent"] for handle in collected]


def test_the_whole_of_braintrusts_processor_sends_the_captured_call(collector: TraceCollector) -> None:
    """
    Filter, origin and exporter of the vendor together: the captured span arrives, a plain one does not.
    """
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    vendor: Any = BraintrustSpanProcessor(
        api_key="x", parent=PARENT, api_url=collector.origin, filter_ai_spans=True, SpanProcessor=SimpleSpanProcessor
    )
    tracer_provider.add_span_processor(vendor)
    configure(tracer_provider, of.BraintrustExporter(PARENT, api_key="x"))
    captured = by_function(tracer_provider)
    by_hand(tracer_provider)
    tracer_provider.shutdown()

    assert (captured,) == collector.span_ids
