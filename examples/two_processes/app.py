"""The app: answers questions, traced with OpenTelemetry, and captures each answer under its message id.

Everything is configured by the environment; see the README beside this file.
"""

import os
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_feedback as of

provider = TracerProvider()
provider.add_span_processor(
    BatchSpanProcessor(
        OTLPSpanExporter(
            endpoint=f"{os.environ['BRAINTRUST_API_URL']}/otel/v1/traces",
            headers={
                "authorization": f"Bearer {os.environ['BRAINTRUST_API_KEY']}",
                "x-bt-parent": os.environ["BRAINTRUST_PARENT"],
            },
        )
    )
)
trace.set_tracer_provider(provider)


@of.capture(key="message_id")
def answer(question: str, *, message_id: str) -> str:
    return f"You asked: {question}"


for number, question in enumerate(sys.argv[1:], start=1):
    print(f"msg-{number}", answer(question, message_id=f"msg-{number}"))
