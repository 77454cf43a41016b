"""An application that makes a call of a model and records what its user thought of it, without configuring anything.

It prints the call's span and the receipt, and says when it is about to end.
"""

from opentelemetry import trace

from otel_feedback import record_feedback

with trace.get_tracer("app").start_as_current_span("chat") as span:
    span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": "chatcmpl-1"})
receipt = record_feedback(key="chatcmpl-1", name="rating", value=True)
print("chatcmpl-1", trace.format_span_id(span.get_span_context().span_id))
print("receipt", receipt.id, *receipt.deliveries)
print("end", flush=True)
