"""What hostile programs do to streams, compared with what the same programs do to bare ones."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from capture_world import PLACES, eventually
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of
from otel_feedback import _correlate

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("test_hostile")
Decorator = Callable[[Any], Any]


def attempt(function: Callable[..., Any], *args: Any) -> object:
    """Answer what comes out of a call, an exception too."""
    try:
        return function(*args)
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is compared)
        return type(error), str(error), type(error.__context__), type(error.__cause__)


# --- programs ----------------------------------------------------------------------------------------------------


def step_from_inside(decorate: Decorator) -> object:
    @decorate
    def stream() -> Iterator[object]:
        yield attempt(next, own[0])
        yield attempt(own[0].close)  # type: ignore[attr-defined]  # a generator

    own: list[Iterator[object]] = []
    own.append(stream())
    seen = list(own[0])
    own.clear()
    return seen


def step_from_two_threads(decorate: Decorator) -> object:
    inside, go_on = threading.Event(), threading.Event()

    @decorate
    def stream() -> Iterator[int]:
        inside.set()
        go_on.wait()
        yield 1
        yield 2

    items: Any = stream()
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(next(items)))
    thread.start()
    inside.wait()
    seen += [attempt(next, items), attempt(items.close), attempt(items.throw, KeyError("k"))]
    go_on.set()
    thread.join()
    return [*seen, *items]


def step_from_two_tasks(decorate: Decorator) -> object:
    @decorate
    async def stream() -> Any:
        await asyncio.sleep(0.001)
        yield 1
        yield 2

    async def main() -> object:
        items = stream()
        found = await asyncio.gather(anext(items), anext(items), items.aclose(), return_exceptions=True)
        return [repr(each) for each in found], [item async for item in items]

    return asyncio.run(main())


def swallow_exit(decorate: Decorator) -> object:
    @decorate
    def stream() -> Iterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2
        yield 3

    items: Any = stream()
    return next(items), attempt(items.close), list(items), attempt(items.close)


def let_stop_iteration_out(decorate: Decorator) -> object:
    @decorate
    def stream() -> Iterator[int]:
        yield 1
        next(iter(()))

    items = stream()
    return next(items), attempt(next, items), attempt(next, items)


def recurse(decorate: Decorator) -> object:
    @decorate
    def stream(depth: int) -> Iterator[int]:
        yield depth
        if depth:
            yield from stream(depth - 1)

    return list(stream(100))


def close_from_the_owners_finaliser(decorate: Decorator) -> object:
    seen: list[str] = []

    @decorate
    def stream() -> Iterator[int]:
        try:
            yield 1
        finally:
            seen.append("closed")

    class Owner:
        def __init__(self, items: Any) -> None:
            self.items, self.itself = items, self

        def __del__(self) -> None:
            seen.append(str(attempt(self.items.close)))

    owner = Owner(stream())
    next(owner.items)
    del owner
    gc.collect()
    return sorted(seen)


def reset_a_variable_in_the_body(decorate: Decorator) -> object:
    @decorate
    def stream() -> Iterator[str]:
        token = VARIABLE.set("body")
        yield VARIABLE.get("unset")
        VARIABLE.reset(token)
        yield VARIABLE.get("unset")

    return [(item, VARIABLE.get("unset")) for item in stream()], VARIABLE.get("unset")


def reset_a_variable_in_the_consumer(decorate: Decorator) -> object:
    @decorate
    def stream() -> Iterator[str]:
        while True:
            yield VARIABLE.get("unset")

    items = stream()
    token = VARIABLE.set("consumer")
    seen = [next(items)]
    VARIABLE.reset(token)
    return [*seen, next(items), VARIABLE.get("unset")]


def outlive_a_thread(decorate: Decorator) -> object:
    seen: list[str] = []

    @decorate
    def stream() -> Iterator[int]:
        try:
            yield 1
        finally:
            seen.append("closed")

    local = threading.local()

    def keep() -> None:
        local.items = stream()
        next(local.items)

    PLACES["in a new thread each"](keep)
    gc.collect()
    return seen


PROGRAMS = [
    step_from_inside,
    step_from_two_threads,
    step_from_two_tasks,
    swallow_exit,
    let_stop_iteration_out,
    recurse,
    close_from_the_owners_finaliser,
    reset_a_variable_in_the_body,
    reset_a_variable_in_the_consumer,
    outlive_a_thread,
]


@pytest.fixture
def provider() -> of.FeedbackProvider:
    """The current pipeline, in memory."""
    tracer_provider, settings = TracerProvider(shutdown_on_exit=False), of.Settings(key_wait_millis=0)
    return of.configure(exporters=[], store="memory:", tracer_provider=tracer_provider, settings=settings)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_hostile_program_sees_what_it_sees_of_a_bare_stream(
    program: Callable[[Decorator], object], provider: of.FeedbackProvider
) -> None:
    """
    What comes out of each step, exceptions and variables included, is as with the undecorated function.
    """
    plain = contextvars.copy_context().run(program, lambda function: function)
    captured = contextvars.copy_context().run(program, of.capture)
    gc.collect()

    assert plain == captured
    assert eventually(lambda: not _correlate.LIVE, provider)


# --- the end of a process, and its children ----------------------------------------------------------------------

SUSPENDED = """
import asyncio, sys
import otel_feedback as of
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

provider = TracerProvider()
of.configure(exporters=[of.ConsoleFeedbackExporter()], store="memory:", tracer_provider=provider)

@of.capture
def stream():
    with provider.get_tracer("app").start_as_current_span("inside"):
        yield 1
        yield 2

@of.capture
async def astream():
    with provider.get_tracer("app").start_as_current_span("inside"):
        yield 1
        yield 2

async def begin():
    sys.kept.append(astream())
    await anext(sys.kept[-1])

sys.kept = [stream(), stream()]
next(sys.kept[0])
sys.kept.append(sys.kept)
asyncio.run(begin())
loop = asyncio.new_event_loop()
loop.run_until_complete(begin())
"""


def run_program(program: str) -> tuple[int, str, str]:
    """Run a program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_process_ends_quietly_with_streams_suspended() -> None:
    """
    Streams that are left in modules, in cycles and in loops, closed or not, say nothing when the interpreter goes.
    """
    assert (0, "", "") == run_program(SUSPENDED + "loop.close()\n")


FORKED = (
    SUSPENDED
    + """
import os, warnings
# From 3.12 on Python warns of any fork with threads, as of the one that writes the keys.
warnings.simplefilter("ignore", DeprecationWarning)
loop.close()
child = os.fork()
print(next(sys.kept[0]), list(sys.kept[0]), flush=True)
if child:
    os.waitpid(child, 0)
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_suspended_stream_goes_on_in_a_forked_child() -> None:
    """
    After a fork both processes have the stream where it was, and each ends it for itself.
    """
    assert (0, "2 []\n2 []\n", "") == run_program(FORKED)


# --- memory ------------------------------------------------------------------------------------------------------

ROUND = 1_000


def test_streams_leave_nothing_in_memory(provider: of.FeedbackProvider) -> None:
    """
    Of three thousand more streams, exhausted, closed and abandoned, less than a hundred bytes each are left.
    """

    @of.capture
    def stream() -> Iterator[int]:
        yield 1
        yield 2

    def run_round() -> int:
        for number in range(ROUND):
            items: Any = stream()
            next(items)
            if number % 3:
                items.close() if number % 3 == 1 else list(items)
        del items
        eventually(lambda: not _correlate.LIVE, provider)
        # It has a bound of its own: what a flush of the tracer provider is known to release.
        _correlate.ENDED.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        run_round()
        before = run_round()
        after = max(run_round() for _ in range(3))
    finally:
        tracemalloc.stop()

    assert after - before < 3 * ROUND * 100
