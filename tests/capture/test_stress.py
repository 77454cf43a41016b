"""Many calls at once, each with its own key: tasks and threads that stream, cancel, throw, close and walk away."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from capture_world import BrokenError, Lines, eventually, here
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

import otel_feedback as of
from otel_feedback import _correlate

if TYPE_CHECKING:
    from opentelemetry.context import Context

TASKS, THREADS = 200, 50
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m"}


class Count(SpanProcessor):
    """Counts how often each span starts and ends."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.started.append(span.get_span_context().span_id)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        assert context is not None
        self.ended.append(context.span_id)

    def unended(self) -> Counter[int]:
        """What has started and not ended, and what has ended too often."""
        difference = Counter(self.started)
        difference.subtract(self.ended)
        return Counter({span: count for span, count in difference.items() if count})


@dataclass(slots=True)
class Storm:
    """What many calls did, and what they saw."""

    tracer: trace.Tracer
    # Of each key: the handles that its body saw; of each response id: the span that had it.
    seen: dict[str, set[str | None]] = field(default_factory=dict)
    responses: dict[str, str] = field(default_factory=dict)
    # Keys of the calls after whose steps the caller was elsewhere than before.
    leaks: list[str] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, key: str) -> None:
        """Look from inside of a body at what call it is in."""
        handle = of.current_handle()
        self.seen.setdefault(key, set()).add(None if handle is None else handle.span_id)

    def chat(self, key: str, name: str) -> Any:
        """A span as instrumentations open it."""
        answer = f"{key}/{name}"
        span = self.tracer.start_span("chat", attributes={**CHAT, "gen_ai.response.id": answer})
        self.responses[answer] = trace.format_span_id(span.get_span_context().span_id)
        return trace.use_span(span, end_on_exit=True)

    def suffer(self, fate: str) -> None:
        """Count what became of a call."""
        with self.lock:
            self.fates[fate] += 1

    def stay(self, key: str, place: tuple[int, str | None]) -> None:
        """Check that a caller is where it was."""
        if here() != place:
            self.leaks.append(key)


# --- the calls ---------------------------------------------------------------------------------------------------


@of.capture(key="key", name="answer")
def stream(storm: Storm, key: str) -> Iterator[int]:
    try:
        storm.look(key)
        with storm.chat(key, "first"):
            storm.look(key)
        yield 1
        storm.look(key)
        with storm.chat(key, "held"), storm.tracer.start_as_current_span("inside"):
            storm.look(key)
            yield 2
            storm.look(key)
            yield 3
        storm.look(key)
    finally:
        storm.look(key)


@of.capture(key="key", name="answer")
async def astream(storm: Storm, key: str, reached: asyncio.Event | None = None) -> AsyncIterator[int]:
    try:
        storm.look(key)
        with storm.chat(key, "first"):
            await asyncio.sleep(0)
            storm.look(key)
        yield 1
        storm.look(key)
        with storm.chat(key, "held"), storm.tracer.start_as_current_span("inside"):
            storm.look(key)
            yield 2
            await asyncio.sleep(0)
            storm.look(key)
            if reached is not None:
                reached.set()
                await asyncio.Event().wait()
            yield 3
        storm.look(key)
    finally:
        storm.look(key)


@of.capture(key="key", name="answer")
async def answer(storm: Storm, key: str, reached: asyncio.Event | None = None) -> int:
    storm.look(key)
    with storm.chat(key, "only"):
        await asyncio.sleep(0)
        storm.look(key)
        if reached is not None:
            reached.set()
            await asyncio.Event().wait()
    storm.look(key)
    return 1


# --- what becomes of them ----------------------------------------------------------------------------------------


def exhaust(storm: Storm, key: str) -> None:
    place = here()
    for _ in stream(storm, key):
        storm.stay(key, place)


def close(storm: Storm, key: str) -> None:
    place, items = here(), stream(storm, key)
    next(items)
    storm.stay(key, place)
    items.close()  # type: ignore[attr-defined]  # a generator


def throw(storm: Storm, key: str) -> None:
    place, items = here(), stream(storm, key)
    next(items)
    next(items)
    storm.stay(key, place)
    with suppress(BrokenError):
        items.throw(BrokenError("thrown"))  # type: ignore[attr-defined]  # a generator


def abandon(storm: Storm, key: str) -> None:
    place, items = here(), stream(storm, key)
    next(items)
    next(items)
    storm.stay(key, place)


def abandon_in_a_cycle(storm: Storm, key: str) -> None:
    items = stream(storm, key)
    next(items)
    cycle: list[Any] = [items]
    cycle.append(cycle)


def pass_on(storm: Storm, key: str) -> None:
    """Let another thread take the next step."""
    items = stream(storm, key)
    next(items)
    thread = threading.Thread(target=list, args=(items,))
    thread.start()
    thread.join()


async def aexhaust(storm: Storm, key: str) -> None:
    place = here()
    async for _ in astream(storm, key):
        storm.stay(key, place)


async def aexhaust_in_tasks(storm: Storm, key: str) -> None:
    place, items = here(), astream(storm, key)
    while await asyncio.create_task(anext(items, None)):  # type: ignore[arg-type]  # an awaitable that is a coroutine
        storm.stay(key, place)


async def aclose(storm: Storm, key: str) -> None:
    place, items = here(), astream(storm, key)
    await anext(items)
    storm.stay(key, place)
    await items.aclose()  # type: ignore[attr-defined]  # a generator


async def aabandon(storm: Storm, key: str) -> None:
    place = here()
    async for item in astream(storm, key):
        storm.stay(key, place)
        if item == 2:
            break


async def cancel_stream(storm: Storm, key: str) -> None:
    reached = asyncio.Event()

    async def consume() -> None:
        async for _ in astream(storm, key, reached):
            pass

    await cancel(asyncio.create_task(consume()), reached)


async def wait(storm: Storm, key: str) -> None:
    await answer(storm, key)


async def cancel_answer(storm: Storm, key: str) -> None:
    reached = asyncio.Event()
    await cancel(asyncio.create_task(answer(storm, key, reached)), reached)  # type: ignore[arg-type]  # a coroutine


async def cancel(task: asyncio.Task[Any], reached: asyncio.Event) -> None:
    """Cancel a task once it has come as far as it gets."""
    await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


FATES: dict[str, Callable[[Storm, str], None]] = {
    "exhausted": exhaust,
    "closed": close,
    "thrown into": throw,
    "abandoned": abandon,
    "abandoned in a cycle": abandon_in_a_cycle,
    "passed on": pass_on,
}
ASYNC_FATES: dict[str, Any] = {
    "exhausted, async": aexhaust,
    "exhausted in tasks": aexhaust_in_tasks,
    "closed, async": aclose,
    "abandoned, async": aabandon,
    "cancelled": cancel_stream,
    "awaited": wait,
    "cancelled while awaited": cancel_answer,
}
UNFINISHED = ("abandoned", "abandoned in a cycle", "abandoned, async", "cancelled", "cancelled while awaited")


# --- the storm ---------------------------------------------------------------------------------------------------


def run_thread(storm: Storm, name: str, calls: int) -> None:
    """Serve requests in a thread, each under a span of its own."""
    chance = random.Random(name)
    for number in range(calls):
        fate, key = chance.choice(list(FATES)), f"{name}-{number}"
        with storm.tracer.start_as_current_span("request"):
            place = here()
            FATES[fate](storm, key)
            storm.stay(key, place)
        storm.suffer(fate)


async def run_task(storm: Storm, name: str, calls: int) -> None:
    """Serve requests in a task, each under a span of its own."""
    chance = random.Random(name)
    for number in range(calls):
        fate, key = chance.choice(list(ASYNC_FATES)), f"{name}-{number}"
        with storm.tracer.start_as_current_span("request"):
            place = here()
            await ASYNC_FATES[fate](storm, key)
            storm.stay(key, place)
        storm.suffer(fate)


async def run_tasks(storm: Storm, calls: int) -> None:
    """Serve in all tasks at once."""
    await asyncio.gather(*(run_task(storm, f"task-{number}", calls) for number in range(TASKS)))


def run_storm(storm: Storm, *, calls_per_task: int, calls_per_thread: int) -> None:
    """Serve in all tasks and all threads at once."""
    with ThreadPoolExecutor(THREADS + 1) as pool:
        running = [pool.submit(asyncio.run, run_tasks(storm, calls_per_task))]
        running += [pool.submit(run_thread, storm, f"thread-{number}", calls_per_thread) for number in range(THREADS)]
        for each in running:
            each.result()
    gc.collect()


@pytest.mark.parametrize(
    ("calls_per_task", "calls_per_thread"),
    [(10, 20), pytest.param(300, 800, marks=pytest.mark.chaos)],
    ids=["3,000 calls", "100,000 calls"],
)
def test_many_calls_at_once_each_have_their_own_handle(calls_per_task: int, calls_per_thread: int) -> None:
    """
    Of calls in 200 tasks and 50 threads each key means the span that its body was in, and nothing is left of any.
    """
    tracer_provider, count, lines = TracerProvider(shutdown_on_exit=False), Count(), Lines()
    tracer_provider.add_span_processor(count)
    settings = of.Settings(key_wait_millis=0)
    provider = of.configure(exporters=[], store="memory:", tracer_provider=tracer_provider, settings=settings)
    storm = Storm(tracer_provider.get_tracer("app"))
    with lines.listening():
        run_storm(storm, calls_per_task=calls_per_task, calls_per_thread=calls_per_thread)
        eventually(lambda: not count.unended(), provider)

    calls = TASKS * calls_per_task + THREADS * calls_per_thread
    assert calls == len(storm.seen) == storm.fates.total()
    assert all(storm.fates[fate] > calls / 30 for fate in (*FATES, *ASYNC_FATES))
    assert sum(storm.fates[fate] for fate in UNFINISHED) > calls / 3
    assert {} == {key: handles for key, handles in storm.seen.items() if handles != {means(provider, key)}}
    assert {} == {answer: span for answer, span in storm.responses.items() if span != means(provider, answer)}
    assert [] == storm.leaks
    assert {} == count.unended()
    assert [] == lines.lines
    assert {} == _correlate.LIVE
    assert (0, None) == here()


def means(provider: of.FeedbackProvider, key: str) -> str:
    """Answer the span that a key means."""
    try:
        return provider.handle_for_key(key).span_id
    except of.UnknownTargetError:
        return "unknown"
