"""The smallest complete use: a call is captured, and judged later by the app's own message id."""

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of

trace.set_tracer_provider(TracerProvider())  # your app has one already

feedback = of.configure(exporters=[of.ConsoleFeedbackExporter()], store="memory:")


@of.capture(key="message_id")
def answer(question: str, *, message_id: str) -> str:
    return "Paris." if "France" in question else "I do not know."


answer("What is the capital of France?", message_id="msg-17")

# Seconds or weeks later, in any process that shares the store:
receipt = of.record_feedback(key="msg-17", name="rating", value=True, comment="Spot on", user_id="u-42")
feedback.force_flush()

print(receipt.durability, feedback.status(receipt.id).deliveries["console"].state)
