"""One run of one call: what an application can observe of it, and what tracing can.

The same drive is run twice, once with the bare function and once with the captured one. What the application observes
must be the same; what tracing observes is compared with the book that this module keeps by hand.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import inspect
import logging
import sys
import threading
import time
import types
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

import otel_feedback as of

if TYPE_CHECKING:
    from opentelemetry.context import Context

CALL = "the captured call"
# What the bodies yield.
ITEMS = (1, 2, 3, 4, "ignored")
# What a span is given a moment after its stream was collected; a finaliser may only put it in a queue.
SOON_SECONDS = 5.0

# A variable of the application's own, which body and caller both set.
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("capture_world")

TYPES: tuple[type, ...] = (
    types.GeneratorType,
    types.AsyncGeneratorType,
    types.CoroutineType,
    asyncio.Future,
    AbstractContextManager,
    *(getattr(collections.abc, name) for name in collections.abc.__all__),
)
ATTRIBUTES = (
    *("__iter__", "__next__", "send", "throw", "close", "__aiter__", "__anext__", "asend", "athrow", "aclose"),
    *("__await__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__len__", "__getitem__", "__call__"),
    *("gi_frame", "gi_running", "gi_yieldfrom", "ag_frame", "ag_await", "cr_frame", "cr_await", "add_done_callback"),
)
PREDICATES: tuple[Callable[[Any], bool], ...] = (
    inspect.isgenerator,
    inspect.isasyncgen,
    inspect.iscoroutine,
    inspect.isawaitable,
    asyncio.iscoroutine,
    asyncio.isfuture,
    callable,
    bool,
)
FUNCTION_PREDICATES: tuple[Callable[[Any], bool], ...] = (
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
    inspect.iscoroutinefunction,
    inspect.isfunction,
    inspect.ismethod,
    callable,
)


class BrokenError(Exception):
    """What a body raises, and what is thrown into it and comes out."""


class IgnoredError(Exception):
    """What is thrown into a body that goes on all the same."""


# --- tracing -----------------------------------------------------------------------------------------------------


class Ledger:
    """What has started and what has ended."""

    def __init__(self) -> None:
        self.started: list[Span] = []
        self.ended: list[ReadableSpan] = []

    def calls(self) -> list[Span]:
        """The spans of captured calls."""
        return [span for span in self.started if span.name == CALL]

    def ends(self) -> list[ReadableSpan]:
        """The ends of captured calls."""
        return [span for span in self.ended if span.name == CALL]


class Ledgers(SpanProcessor):
    """Writes the newest ledger."""

    def __init__(self) -> None:
        self._ledger = Ledger()

    def begin(self) -> Ledger:
        """Begin a new ledger."""
        self._ledger = Ledger()
        return self._ledger

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._ledger.started.append(span)

    def on_end(self, span: ReadableSpan) -> None:
        self._ledger.ended.append(span)


class Lines(logging.Handler):
    """Keeps what OpenTelemetry and this library have to complain about."""

    LOGGERS = ("opentelemetry", "otel_feedback")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.lines.append(f"{record.name}: {record.getMessage()} {error!r}")

    @contextmanager
    def listening(self) -> Iterator[Lines]:
        for name in self.LOGGERS:
            logging.getLogger(name).addHandler(self)
        try:
            yield self
        finally:
            for name in self.LOGGERS:
                logging.getLogger(name).removeHandler(self)


def here() -> tuple[int, str | None]:
    """Where one is: the current span, and the captured call that one is inside of."""
    handle = of.current_handle()
    return trace.get_current_span().get_span_context().span_id, None if handle is None else handle.span_id


# --- one run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What a body saw at one place: the name of the span that it should be in and of the one it was in; the call."""

    expected: str
    span: str | None
    handle: str | None


@dataclass(slots=True)
class World:
    """One run: its book."""

    tracer: trace.Tracer
    ledger: Ledger
    provider: of.FeedbackProvider
    is_captured: bool
    key: str
    # Whether the call begins with the first step, and has the parent that is current then.
    starts_late: bool
    # What the application can observe, in order.
    observed: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    # Steps after which their caller was elsewhere than before.
    leaks: list[tuple[Any, Any]] = field(default_factory=list)
    # How many spans of the call were open after each step that was not the last.
    open_between: list[int] = field(default_factory=list)
    handles_before: list[tuple[str, str, str]] = field(default_factory=list)
    caller: int = 0
    has_more: bool = False
    is_stepping: bool = False
    lines: list[str] = field(default_factory=list)
    # How often the call had ended when its drive was over, before anything was waited for.
    ends_when_over: int = 0
    # Set by a body that waits for ever.
    waiting: asyncio.Event | None = None

    # -- what a body does

    def see(self, expected: str = CALL) -> None:
        """Look around inside of the body, and exchange the application's variable with the caller."""
        handle = of.current_handle()
        name = getattr(trace.get_current_span(), "name", None)
        self.seen.append(Seen(expected, name, None if handle is None else handle.span_id))
        # Who collects a stream or closes its loop is elsewhere, and has no variables for it.
        if self.is_stepping:
            self.note("body has", VARIABLE.get(None))
        VARIABLE.set(f"body {len(self.seen)}")

    def inner(self) -> AbstractContextManager[trace.Span]:
        """A span of the application's own, held across yields."""
        return self.tracer.start_as_current_span("inner")

    def chat(self) -> AbstractContextManager[trace.Span]:
        """A span as instrumentations of models open it."""
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
        return self.tracer.start_as_current_span("chat", attributes=attributes)

    # -- what a caller does

    def note(self, *event: Any) -> None:
        """Write down what the application observes."""
        self.observed.append(event)

    def call(self, function: Callable[..., Any], *, is_stream: bool = True, **options: Any) -> Any:
        """Call the function under a span of the caller's; look at what came back before its first item."""
        self.note("function is", [predicate(function) for predicate in FUNCTION_PREDICATES])
        VARIABLE.set("caller")
        before = here()
        result = function(self, message_id=self.key, **options)
        self._settle(before)
        self.note("after the call", VARIABLE.get(None))
        self.look_at(result)
        if is_stream:
            self.ask(result)
        return result

    def look_at(self, result: Any) -> None:
        """Note what a result looks like."""
        self.note("is a", [kind.__name__ for kind in TYPES if isinstance(result, kind)])
        self.note("has", [name for name in ATTRIBUTES if hasattr(result, name)])
        self.note("answers", [predicate(result) for predicate in PREDICATES])
        self.note("iter is itself", hasattr(result, "__iter__") and iter(result) is result)
        self.note("aiter is itself", hasattr(result, "__aiter__") and result.__aiter__() is result)

    def ask(self, stream: Any) -> None:
        """Ask for the handle and for the key, before the first item."""
        if self.is_captured:
            handle, (span,) = of.handle_of(stream), self.ledger.calls()
            named = self.provider.handle_for_key(self.key)
            own = trace.format_span_id(span.get_span_context().span_id)
            self.handles_before.append((own, "none" if handle is None else handle.span_id, named.span_id))

    def step(self, function: Callable[..., Any], *args: Any) -> bool:
        """Take one step; say whether it gave something, and so whether there may be more."""
        before = self._set_out()
        try:
            self._got(function(*args))
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is compared)
            self._raised(error)
        self._settle(before)
        return self.has_more

    async def astep(self, function: Callable[..., Awaitable[Any]], *args: Any) -> bool:
        """Take one step of something asynchronous."""
        before = self._set_out()
        try:
            self._got(await function(*args))
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is compared)
            self._raised(error)
        self._settle(before)
        return self.has_more

    def _set_out(self) -> tuple[int, str | None]:
        self.is_stepping = True
        VARIABLE.set(f"caller {len(self.observed)}")
        if self.starts_late and not self.ledger.calls():
            self.caller = here()[0]
        return here()

    def _got(self, item: Any) -> None:
        self.has_more = True
        self.note("got", item)
        if item in ITEMS:
            self.open_between.append(len(self.ledger.calls()) - len(self.ledger.ends()))

    def _raised(self, error: BaseException) -> None:
        self.has_more = False
        value = getattr(error, "value", None)
        self.note("raised", type(error), [str(each) for each in error.args], value, type(error.__cause__))

    def _settle(self, before: tuple[int, str | None]) -> None:
        self.is_stepping = False
        if before != (after := here()):
            self.leaks.append((before, after))
        self.note("variable", VARIABLE.get(None))


# --- the places where a step can be taken ------------------------------------------------------------------------


def in_place(do: Callable[[], Any]) -> None:
    do()


def in_new_thread(do: Callable[[], Any]) -> None:
    thread = threading.Thread(target=do)
    thread.start()
    thread.join()


def in_empty_context(do: Callable[[], Any]) -> None:
    contextvars.Context().run(do)


def in_copied_context(do: Callable[[], Any]) -> None:
    contextvars.copy_context().run(do)


def in_copied_context_of_a_thread(do: Callable[[], Any]) -> None:
    """As `asyncio.to_thread` and the thread pools of web frameworks do."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(contextvars.copy_context().run, do).result()


PLACES: dict[str, Callable[[Callable[[], Any]], None]] = {
    "in one place": in_place,
    "in a new thread each": in_new_thread,
    "in an empty context each": in_empty_context,
    "in a copied context each": in_copied_context,
    "in a thread with a copied context each": in_copied_context_of_a_thread,
}


def by_hand(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing, as an event loop would, without one."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value


Awaiting = Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]


async def in_one_task(do: Callable[[], Awaitable[Any]]) -> None:
    await do()


async def in_new_task(do: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.ensure_future(do())


async def in_gather(do: Callable[[], Awaitable[Any]]) -> None:
    """In a task, beside another one that has a span of its own."""

    async def beside() -> None:
        with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False))):
            await asyncio.sleep(0)

    await asyncio.gather(beside(), do(), beside())


def awaiting_by_hand(place: Callable[[Callable[[], Any]], None]) -> Awaiting:
    async def wait(do: Callable[[], Awaitable[Any]]) -> None:
        place(lambda: by_hand(do()))

    return wait


AWAITING_PLACES: dict[str, Awaiting] = {
    "in one task": in_one_task,
    "in a new task each": in_new_task,
    "in a task among others each": in_gather,
    **{f"by hand {name}": awaiting_by_hand(place) for name, place in PLACES.items()},
}


# --- a run of a drive, and its judgement -------------------------------------------------------------------------


@contextmanager
def watching(world: World) -> Iterator[None]:
    """Write down the warnings, the exceptions that nobody could raise, and the log of a run."""
    lines = Lines()
    hook = sys.unraisablehook
    # Not the exceptions themselves: they would keep alive what the test lets go of.
    sys.unraisablehook = lambda args: world.note("unraisable", args.exc_type, str(args.exc_value))
    try:
        with warnings.catch_warnings(), lines.listening():
            warnings.simplefilter("always")
            # Not a record of them: it would keep alive what they are about.
            warnings.showwarning = lambda message, category, *_, **__: world.note("warning", category, str(message))
            yield
    finally:
        sys.unraisablehook = hook
    world.lines = lines.lines


def eventually(is_so: Callable[[], bool], provider: of.FeedbackProvider) -> bool:
    """Poll until something is so."""
    deadline = time.monotonic() + SOON_SECONDS
    while not is_so() and time.monotonic() < deadline:
        provider.force_flush()
        time.sleep(0.001)
    return is_so()


def compare(plain: World, captured: World, *, fails: bool, ends_at_once: bool) -> dict[str, Any]:
    """Compare two runs of one drive; answer what is wrong, nothing if nothing is."""
    calls, ends = captured.ledger.calls(), captured.ledger.ends()
    own = trace.format_span_id(calls[0].get_span_context().span_id) if calls else "none"
    children = [span for span in captured.ledger.started if span.name == "inner"]
    facts: dict[str, tuple[Any, Any]] = {
        "what the application observes": (plain.observed, captured.observed),
        "calls": (1, len(calls)),
        "ends of the call": (1, len(ends)),
        "ends of the call when the drive was over": (1, captured.ends_when_over if ends_at_once else 1),
        "open calls after each item": ([1] * len(captured.open_between), captured.open_between),
        "failed": ([fails], [not span.status.is_unset for span in ends]),
        "spans inside that ended": (endings(plain), endings(captured)),
        "parent of the call": (
            [captured.caller] * len(calls),
            [span.parent.span_id if span.parent else 0 for span in calls],
        ),
        "parents of the spans inside": (
            {own} if children else set(),
            {trace.format_span_id(span.parent.span_id) if span.parent else "none" for span in children},
        ),
        "where the body was": (
            [(each.expected, own) for each in captured.seen],
            [(each.span, each.handle) for each in captured.seen],
        ),
        "handle and key before the first item": (
            [(own, own, own)] * len(captured.handles_before),
            captured.handles_before,
        ),
        "key afterwards": (own, captured.provider.handle_for_key(captured.key).span_id),
        "places that leaked": ([], captured.leaks),
        "log": ([], captured.lines),
    }
    return {name: first_difference(*pair) for name, pair in facts.items() if pair[0] != pair[1]}


def first_difference(expected: Any, actual: Any) -> tuple[Any, Any]:
    """Answer where two sequences part; of anything else, both."""
    if isinstance(expected, list):
        return next(pair for pair in zip_longest(expected, actual) if pair[0] != pair[1])
    return expected, actual


def endings(world: World) -> Counter[str]:
    """Count the application's own spans that have ended, by name."""
    return Counter(span.name for span in world.ledger.ended if span.name != CALL)
