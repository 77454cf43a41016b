"""An application whose workers are forked off when it is loaded, as `gunicorn --preload` does.

The parent makes a call of its own before and after; each worker makes one, and leaves as gunicorn's do, by
`SystemExit`. It prints each call's response id and span.
"""

import os
import sys
import warnings

from opentelemetry import trace

WORKERS = 3

# From 3.12 on Python warns of any fork with threads, as of the one that writes the keys.
warnings.simplefilter("ignore", DeprecationWarning)


def call(response_id: str) -> None:
    """Make a call of a model."""
    with trace.get_tracer("app").start_as_current_span("chat") as span:
        span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": response_id})
    # In one piece: the processes share the pipe.
    os.write(1, f"{response_id} {trace.format_span_id(span.get_span_context().span_id)}\n".encode())


call("before")
workers = []
for number in range(WORKERS):
    pid = os.fork()
    if pid == 0:
        call(f"worker-{number}")
        sys.exit(0)
    workers.append(pid)
call("after")
print("exits", *(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers))
