"""What the tests with the real libraries share: a stand-in of the model, an application's tracing, a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chat_completions import ChatCompletions
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from trace_collector import GrpcTraceCollector, TraceCollector

import otel_feedback as of
from otel_feedback.testing import InMemoryFeedbackExporter

SETTINGS = of.Settings(key_wait_millis=0)


@pytest.fixture(scope="session")
def model() -> Iterator[ChatCompletions]:
    """The model's endpoint."""
    with ChatCompletions() as running:
        yield running


@pytest.fixture
def collector() -> Iterator[TraceCollector]:
    """A tracing backend that nothing has reached yet."""
    with TraceCollector() as running:
        yield running


@pytest.fixture
def grpc_collector() -> Iterator[GrpcTraceCollector]:
    """Another one, which speaks gRPC."""
    with GrpcTraceCollector() as running:
        yield running


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The spans that have ended, as a tracing backend gets them."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer_provider(spans: InMemorySpanExporter) -> TracerProvider:
    """The application's tracing."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


@pytest.fixture
def judgements() -> InMemoryFeedbackExporter:
    """A vendor that keeps what it is sent."""
    return InMemoryFeedbackExporter()


@pytest.fixture
def feedback(tracer_provider: TracerProvider, judgements: InMemoryFeedbackExporter) -> of.FeedbackProvider:
    """The current pipeline, in memory; the suite's own fixture shuts it down."""
    return of.configure(exporters=[judgements], store="memory:", tracer_provider=tracer_provider, settings=SETTINGS)
