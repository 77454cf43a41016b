"""The demo's first process: a small LLM app, traced with OpenTelemetry, that knows nothing of feedback but `@capture`.

It sends its spans to the endpoints in `OTEL_FEEDBACK_DEMO_ENDPOINTS`. A turn that runs on waits for a line on standard
input; until then the app has said `"waiting"` on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_feedback as of
from otel_feedback.cli._demo_script import TURNS, Turn

tracer = trace.get_tracer("demo")


async def stand_in_model(turn: Turn) -> str:
    """Answer as a model would, with the span that an instrumented client opens; no key, no network."""
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "stand-in",
        "gen_ai.request.model": "parrot-1",
        "gen_ai.response.id": f"chatcmpl-{turn.message_id}",
    }
    with tracer.start_as_current_span("chat parrot-1", attributes=attributes):
        if turn.runs_on:
            print('"waiting"', flush=True)  # noqa: T201 (how the demo's processes talk)
            await asyncio.to_thread(sys.stdin.readline)
        return turn.answer


@of.capture(key="message_id", name="answer")
async def answer(turn: Turn, *, message_id: str) -> str:  # noqa: ARG001 (capture reads it)
    """Answer one question of the chat."""
    return await stand_in_model(turn)


async def chat() -> None:
    """Answer all questions at once, as a server does."""
    await asyncio.gather(*(answer(turn, message_id=turn.message_id) for turn in TURNS))


def main() -> None:
    """Trace, and run the app."""
    provider = TracerProvider(resource=Resource.create({"service.name": "demo-chat"}))
    for endpoint in json.loads(os.environ["OTEL_FEEDBACK_DEMO_ENDPOINTS"]):
        exporter = OTLPSpanExporter(endpoint=endpoint["url"], headers=endpoint["headers"])
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    of.configure()
    asyncio.run(chat())


if __name__ == "__main__":
    main()
