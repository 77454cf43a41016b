"""Process A: captures fifty calls of every shape, says what each one's span is, sends its spans and exits.

It prints one JSON object: message id -> traceparent, taken from inside the call.
"""

import asyncio
import json
import os

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import otel_feedback as of

provider = TracerProvider()
for endpoint in json.loads(os.environ["TEST_ENDPOINTS"]):
    exporter = OTLPSpanExporter(endpoint=endpoint["url"], headers=endpoint["headers"])
    provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("app")

seen = {}


def note(message_id):
    """Take the span by OpenTelemetry's own means, independently of ours."""
    context = trace.get_current_span().get_span_context()
    seen[message_id] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@of.capture(key="message_id")
def answer(question, message_id):
    note(message_id)
    with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        return question


@of.capture(key="message_id")
async def answer_later(question, *, message_id):
    note(message_id)
    await asyncio.sleep(0)
    with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        await asyncio.sleep(0)
    return question


@of.capture(key="message_id")
def nested(depth, message_id):
    note(message_id)
    if depth:
        number = int(message_id.removeprefix("m")) + 1
        nested(depth - 1, f"m{number}")


async def concurrent(numbers):
    await asyncio.gather(*(answer_later("?", message_id=f"m{number}") for number in numbers))


# Ten sync calls, each a trace of its own.
for number in range(10):
    answer("?", f"m{number}")

# Ten async calls, one after the other; then ten at once.
for number in range(10, 20):
    asyncio.run(answer_later("?", message_id=f"m{number}"))
asyncio.run(concurrent(range(20, 30)))

# Ten in one trace, at once and in a row.
with tracer.start_as_current_span("conversation"):
    asyncio.run(concurrent(range(30, 35)))
    for number in range(35, 40):
        answer("?", f"m{number}")

# Five nested in each other.
nested(4, "m40")

# Five under an HTTP server span whose parent is on another machine.
remote = TraceContextTextMapPropagator().extract(
    {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
)
with tracer.start_as_current_span("POST /chat", context=remote, kind=trace.SpanKind.SERVER):
    for number in range(45, 50):
        answer("?", f"m{number}")

provider.shutdown()
print(json.dumps(seen))
