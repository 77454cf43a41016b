"""A chat that streams its answer: what is to be judged is known before the first chunk.

The model is a stand-in of a few lines; with a real client, whether an instrumentation traces it or not, nothing here
changes. A browser should get your own message id (`@of.capture(key=…)`), as ids that come back from it prove nothing.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of

trace.set_tracer_provider(TracerProvider())  # your app has one already

feedback = of.configure(exporters=[of.ConsoleFeedbackExporter()], store="memory:")


async def model(question: str) -> AsyncIterator[str]:
    for word in ("Paris", " is", " the", " capital", "."):
        await asyncio.sleep(0)
        yield word


@of.capture
async def answer(question: str) -> AsyncIterator[str]:
    # The span is current in here, at every step, and nowhere else.
    async for chunk in model(question):
        yield chunk


async def serve() -> of.FeedbackHandle | None:
    stream = answer("What is the capital of France?")
    handle = of.handle_of(stream)  # there before the first chunk
    if handle is not None:
        print("judge:", handle.to_traceparent())
    async for chunk in stream:
        print("data:", chunk)
    return handle


handle = asyncio.run(serve())
if handle is None:
    sys.exit("no OpenTelemetry SDK is set up")

# Later, wherever you kept the id:
kept = of.FeedbackHandle.from_traceparent(handle.to_traceparent())
receipt = of.record_feedback(kept, "rating", value=True, user_id="u-42")
feedback.force_flush()

print(receipt.durability, feedback.status(receipt.id).deliveries["console"].state)
