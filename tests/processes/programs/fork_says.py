"""What the forking programs share: how they say what happened, and what each process does with the pipeline.

A line is written in one piece, because all the processes share the pipe:

    captured <key> <trace id> <span id>          a call was captured under a key
    found <key> <span id> <who>                  a key was looked up
    record <id> <label> <trace id> <span id>     a judgement was accepted
    threads <label> <name>=<count> ...           the threads of the pipeline in a process
    seen <label> <yes|no>                        a key that was only captured is visible from outside
    leaving <label> <time>                       a process begins to end
    ended <label> <time> <exit code>             its parent has seen its end
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import closing

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of

# Longer than anything here takes; whoever hangs shows where, and ends.
HANG_SECONDS = 40
# A run with a seeded bug waits for much that does not come.
PATIENCE_SECONDS = float(os.environ.get("FORK_PATIENCE_SECONDS", "15"))
POLL_SECONDS = 0.01


def say(*words):
    """Write a line in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def watch():
    """Show where every thread is and end, should this process hang."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)


# The watch is a thread, which no child inherits; to stop it there would be to wait for it without end.
os.register_at_fork(before=faulthandler.cancel_dump_traceback_later, after_in_parent=watch, after_in_child=watch)


def set_up():
    """Be an application with tracing; in a forked child it is there already."""
    # From 3.12 on Python warns of any fork with threads, which are the point here.
    warnings.simplefilter("ignore", DeprecationWarning)
    watch()
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())


@of.capture(key="message_id")
def answer(message_id):
    """Be a captured call."""
    handle = of.current_handle()
    say("captured", message_id, handle.trace_id, handle.span_id)
    return handle


def acknowledge(label, handle, receipt):
    """Say that a judgement was accepted."""
    say("record", receipt.id, label, handle.trace_id, handle.span_id)


def judge(handle, label):
    """Judge a call by its handle."""
    acknowledge(label, handle, of.record_feedback(handle, "rating", True, correction=words(label, handle)))


def judge_key(key, label):
    """Judge a call by its key, as somebody who knows nothing else."""
    handle = of.get_feedback_provider().handle_for_key(key)
    say("found", key, handle.span_id, label)
    acknowledge(label, handle, of.record_feedback(key=key, name="rating", value=False, correction=words(label, handle)))


def words(label, handle):
    """Write what a judgement says of itself."""
    return f"{label} {handle.trace_id} {handle.span_id}"


def tell_threads(label):
    """Say which threads of the pipeline run in this process."""
    names = Counter(each.name for each in threading.enumerate() if each.name.startswith("otel-feedback-"))
    say("threads", label, *(f"{name}={count}" for name, count in sorted(names.items())))


def look_from_outside(key, label):
    """Say whether a key that nobody has looked up here comes to be visible to other processes."""
    path = os.environ["OTEL_FEEDBACK_STORE_URL"].removeprefix("sqlite:///")
    with closing(of.SQLiteStore(path)) as store:
        say("seen", label, "yes" if wait_for(lambda: store.find("app", key)) else "no")


def wait_for(is_so):
    """Wait until something is so, and say whether it came to be."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause = threading.Event()
    while not is_so():
        if time.monotonic() > deadline:
            return False
        pause.wait(POLL_SECONDS)
    return True


def is_delivered(record_id):
    """Tell whether a judgement has been delivered to everybody."""
    deliveries = of.get_feedback_provider().status(record_id).deliveries
    return {"delivered"} == {status.state for status in deliveries.values()}


def leave(label):
    """Say that this process begins to end."""
    say("leaving", label, time.monotonic())


def reap(pid, label):
    """Wait for a child's end, and say how it ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    say("ended", label, time.monotonic(), code)


def fork(child):
    """Fork a child that does something and then ends as any program does."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)
    return pid
