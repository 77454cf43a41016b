"""An application that never heard of feedback and opens one span of a call of a model; it prints the span's id.

Its arguments are the response ids of its calls.
"""

import sys

from opentelemetry import trace

for response_id in sys.argv[1:]:
    with trace.get_tracer("app").start_as_current_span("chat") as span:
        span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": response_id})
    print(response_id, trace.format_span_id(span.get_span_context().span_id))
