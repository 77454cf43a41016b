"""An app with Langfuse's own `openai`, which wraps the client at its import: prints what was collected."""

from __future__ import annotations

import json
import sys

from langfuse import Langfuse
from langfuse.openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_feedback as of

collector_url, model_url, model, streams = sys.argv[1:]

spans = InMemorySpanExporter()
tracer_provider = TracerProvider()
tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
of.configure(exporters=[], store="memory:", tracer_provider=tracer_provider)
langfuse = Langfuse(public_key="pk", secret_key="sk", base_url=collector_url, tracer_provider=tracer_provider)  # noqa: S106 (of nobody)
with OpenAI(base_url=model_url, api_key="x") as client, of.collect_handles() as collected:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "capital?"}], stream=streams == "stream"
    )
    if streams == "stream":
        list(answer)
langfuse.shutdown()
print(
    json.dumps(
        {
            "spans": [f"{span.context.span_id:016x}" for span in spans.get_finished_spans()],
            "collected": [[handle.span_id, dict(handle.attributes)] for handle in collected],
        }
    )
)
