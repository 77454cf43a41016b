"""Capture: what it does to a call (nothing), and what it knows of it (its span, its handle, its key)."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import gc
import inspect
import logging
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from types import FrameType, GeneratorType
from typing import Any, Literal
from unittest.mock import AsyncMock, MagicMock

import pytest
from opentelemetry import context, trace
from opentelemetry.context import contextvars_context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from typing_extensions import Self

import otel_feedback as of
from otel_feedback import _active, _capture, _correlate
from otel_feedback.provider import start_from_environment
from otel_feedback.stores._sqlite_file import BUSY_TIMEOUT_MILLIS

SETTINGS = of.Settings(key_wait_millis=0)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The spans that have ended."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer_provider(spans: InMemorySpanExporter) -> TracerProvider:
    """The application's tracing."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


@pytest.fixture
def provider(tracer_provider: TracerProvider) -> of.FeedbackProvider:
    """The current pipeline, in memory."""
    return configure(tracer_provider)


def configure(tracer_provider: object, **settings: Any) -> of.FeedbackProvider:
    return of.configure(
        exporters=[],
        store="memory:",
        tracer_provider=tracer_provider,
        settings=of.Settings(key_wait_millis=0, **settings),
    )


def is_known(provider: of.FeedbackProvider, key: str) -> bool:
    try:
        provider.handle_for_key(key)
    except of.UnknownTargetError:
        return False
    return True


def span_id(span: ReadableSpan | trace.Span) -> str:
    found = span.get_span_context()
    assert found is not None
    return trace.format_span_id(found.span_id)


# --- kinds of callables ------------------------------------------------------------------------------------------


def plain(question: str, *, message_id: str) -> str:
    """Answer a question."""
    return f"{question}:{message_id}:{of.current_handle() is not None}"


async def coroutine(question: str, *, message_id: str) -> str:
    """Answer a question, later."""
    await asyncio.sleep(0)
    return plain(question, message_id=message_id)


class Agent:
    """Every kind of method, decorated in both orders."""

    @of.capture(key="message_id")
    def method(self, question: str, *, message_id: str) -> str:
        assert isinstance(self, Agent)
        return plain(question, message_id=message_id)

    @of.capture(key="message_id")
    async def async_method(self, question: str, *, message_id: str) -> str:
        assert isinstance(self, Agent)
        return await coroutine(question, message_id=message_id)

    @of.capture(key="message_id")
    @classmethod
    def class_outside(cls, question: str, *, message_id: str) -> str:
        assert cls is Agent
        return plain(question, message_id=message_id)

    @classmethod
    @of.capture(key="message_id")
    def class_inside(cls, question: str, *, message_id: str) -> str:
        assert cls is Agent
        return plain(question, message_id=message_id)

    @of.capture(key="message_id")
    @staticmethod
    def static_outside(question: str, *, message_id: str) -> str:
        return plain(question, message_id=message_id)

    @staticmethod
    @of.capture(key="message_id")
    async def static_inside(question: str, *, message_id: str) -> str:
        return await coroutine(question, message_id=message_id)

    def bare(self, question: str, *, message_id: str) -> str:
        return plain(question, message_id=message_id)

    async def bare_async(self, question: str, *, message_id: str) -> str:
        return await coroutine(question, message_id=message_id)

    def __call__(self, question: str, *, message_id: str) -> str:
        return plain(question, message_id=message_id)


class AsyncAgent:
    """An object that is called like a coroutine function."""

    async def __call__(self, question: str, *, message_id: str) -> str:
        return await coroutine(question, message_id=message_id)


CALLABLES: dict[str, Callable[..., Any]] = {
    "plain": of.capture(key="message_id")(plain),
    "coroutine": of.capture(key="message_id")(coroutine),
    "Agent.method": Agent().method,
    "Agent.async_method": Agent().async_method,
    "Agent.class_outside": Agent.class_outside,
    "Agent.class_inside": Agent().class_inside,
    "Agent.static_outside": Agent.static_outside,
    "Agent.static_inside": Agent().static_inside,
    "Agent.bare": of.capture(key="message_id")(Agent().bare),
    "Agent": of.capture(key="message_id")(Agent()),
    "AsyncAgent": of.capture(key="message_id")(AsyncAgent()),
}
PARTIALS: dict[str, Callable[..., Any]] = {
    "plain": of.capture(key="message_id")(functools.partial(plain, "why")),
    "coroutine": of.capture(key="message_id")(functools.partial(coroutine, question="why")),
    "Agent.method": functools.partial(Agent().method, "why"),
    "Agent": of.capture(key="message_id")(functools.partial(Agent(), "why")),
}


async def _run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


@pytest.mark.parametrize("name", CALLABLES)
def test_every_kind_of_callable_is_captured(
    name: str, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    The result is the function's own, the span has its name, is current inside, and the key means it.
    """
    result = asyncio.run(_run(CALLABLES[name], "why", message_id="m-1"))

    assert "why:m-1:True" == result
    assert [name] == [span.name for span in spans.get_finished_spans()]
    assert provider.handle_for_key("m-1").span_id == span_id(spans.get_finished_spans()[0])


@pytest.mark.parametrize("name", PARTIALS)
def test_partials_are_captured_under_the_name_of_their_function(
    name: str, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A partial of a function, a coroutine function, a method or an object is captured like what it is a partial of.
    """
    result = asyncio.run(_run(PARTIALS[name], message_id="m-1"))

    assert "why:m-1:True" == result
    assert [name] == [span.name for span in spans.get_finished_spans()]
    assert is_known(provider, "m-1")


def test_a_method_called_on_its_class_finds_its_key(provider: of.FeedbackProvider) -> None:
    """
    `Agent.method(agent, …)` is the same call as `agent.method(…)`, whichever comes first.
    """

    class Local:
        @of.capture(key="message_id")
        def method(self, message_id: str) -> str:
            return message_id

    Local.method(Local(), "m-1")
    Local().method("m-2")
    Local.method(Local(), message_id="m-3")

    assert [True] * 3 == [is_known(provider, key) for key in ("m-1", "m-2", "m-3")]


def test_bare_and_with_arguments(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    `@capture` works without parentheses, with empty ones, and with a name; a nested function keeps its short name.
    """

    @of.capture
    def bare() -> None: ...

    @of.capture()
    def empty() -> None: ...

    @of.capture(name="chosen")
    def named() -> None: ...

    for function in (bare, empty, named):
        function()

    assert ["bare", "empty", "chosen"] == [span.name for span in spans.get_finished_spans()]


@pytest.mark.parametrize(
    ("function", "is_coroutine_function"),
    [
        (plain, False),
        (coroutine, True),
        (functools.partial(coroutine, "why"), True),
        (Agent().bare, False),
        (Agent().bare_async, True),
        (AsyncAgent(), False),
    ],
)
def test_introspection_survives(function: Any, is_coroutine_function: bool) -> None:
    """
    Signature, documentation, name and the kind of function are those of what was decorated.
    """
    captured = of.capture(function)

    assert inspect.signature(function) == inspect.signature(captured)
    assert function.__doc__ == captured.__doc__
    assert getattr(function, "__name__", None) == getattr(captured, "__name__", None)
    assert is_coroutine_function == inspect.iscoroutinefunction(captured)


@of.capture
def picklable(question: str, *, message_id: str) -> str:
    return plain(question, message_id=message_id)


captured_plain = of.capture(key="message_id", name="chosen", target="root")(plain)
captured_partial = of.capture(key="message_id")(functools.partial(plain, message_id="m-1"))
captured_object = of.capture(key="message_id", name="chosen", span=False)(Agent())
captured_bound = of.capture(key="message_id", target="llm")(Agent().bare)


@pytest.mark.parametrize(
    ("captured", "name"),
    [
        (captured_plain, "chosen"),
        (captured_partial, "plain"),
        (captured_object, None),
        (captured_bound, "Agent.bare"),
    ],
)
def test_what_has_no_name_of_its_own_is_captured_again_where_it_arrives(
    captured: Any, name: str | None, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A function captured under another name, a partial, an object and a bound method pickle, with their arguments.
    """
    sent = pickle.loads(pickle.dumps(captured))  # noqa: S301 (our own)
    result = sent("q", message_id="m-1")

    assert captured is not sent
    assert f"q:m-1:{name is not None}" == result
    assert [name] * (name is not None) == [span.name for span in spans.get_finished_spans()]
    assert (name is not None) == is_known(provider, "m-1")


def test_a_function_without_a_place_does_not_pickle() -> None:
    """
    What pickle cannot find, captured or not, is its own error.
    """

    @of.capture
    def local() -> None: ...

    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(local)


@pytest.mark.parametrize("captured", [picklable, Agent.static_outside, Agent.class_outside, Agent().method], ids=str)
def test_a_captured_function_goes_where_a_function_goes(captured: Any) -> None:
    """
    Pools of processes pickle what they call, and configurations are copied: both work as with the bare function.
    """
    sent = pickle.loads(pickle.dumps(captured))  # noqa: S301 (our own)
    for each in (sent, copy.copy(captured), copy.deepcopy(captured)):
        assert captured.__qualname__ == each.__qualname__
        assert "q:m:False" == each("q", message_id="m")


def test_a_copied_method_belongs_to_the_copied_object() -> None:
    """
    A deep copy of a bound method is bound to a deep copy of its object.
    """
    agent = Agent()
    copied = copy.deepcopy({"agent": agent, "call": agent.method})

    assert copied["call"].__self__ is copied["agent"]  # type: ignore[attr-defined]  # a bound method
    assert copied["agent"] is not agent


@pytest.mark.parametrize(
    ("arguments", "function", "message"),
    [
        ({}, 3, "takes a function, not 3"),
        ({}, classmethod(3), "takes a function, not 3"),  # type: ignore[arg-type]  # that is the point
        ({"key": 3}, plain, r"key=….* not 3"),
        ({"target": "zz"}, plain, "is one of call, llm, root, not 'zz'"),
        ({"target": []}, plain, r"is one of call, llm, root, not \[\]"),
        ({"key": "key"}, min, r"key='key'.*: min does not tell its parameters"),
    ],
)
def test_what_cannot_be_captured_is_refused_at_decoration(
    arguments: dict[str, Any], function: Any, message: str
) -> None:
    """
    A wrong argument, or nothing to call, is a TypeError that says what was given, before any call.
    """
    with pytest.raises(TypeError, match=message):
        of.capture(**arguments)(function)


# --- what the caller sees ----------------------------------------------------------------------------------------


class UnprintableError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS = [ValueError("broken"), asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3), UnprintableError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("is_async", [False, True])
def test_exceptions_pass_through_untouched(
    error: BaseException, is_async: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    The caller gets the same object with the place it was raised at; the span tells it, as an error if it is one.
    """

    @of.capture(key="message_id")
    def fails(message_id: str) -> None:
        raise error

    @of.capture(key="message_id")
    async def fails_async(message_id: str) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        drive(fails_async("m-1")) if is_async else fails("m-1")

    assert error is caught.value
    assert error.__context__ is None
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name in ("fails", "fails_async")
    (span,) = spans.get_finished_spans()
    assert is_known(provider, "m-1")
    assert of.current_handle() is None
    if not isinstance(error, UnprintableError):
        status = trace.StatusCode.ERROR if isinstance(error, Exception) else trace.StatusCode.UNSET
        assert status is span.status.status_code
        assert ["exception"] == [event.name for event in span.events]


def drive(coroutine: Any) -> Any:
    """Run a coroutine that never waits; an event loop would turn some exceptions into others."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def test_a_cancelled_call_is_cancelled_and_recorded(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    Cancelling a task inside a captured call cancels it, its span tells it without being an error, and the key is bound.
    """
    started = asyncio.Event()

    @of.capture(key="message_id")
    async def answer(message_id: str) -> None:
        started.set()
        await asyncio.Event().wait()

    async def main() -> bool:
        task = asyncio.create_task(answer("m-1"))
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert asyncio.run(main())
    (span,) = spans.get_finished_spans()
    assert (trace.StatusCode.UNSET, ["exception"]) == (span.status.status_code, [each.name for each in span.events])
    assert is_known(provider, "m-1")


def test_a_coroutine_that_is_never_awaited_captures_nothing(
    spans: InMemorySpanExporter, provider: of.FeedbackProvider
) -> None:
    """
    Calling a coroutine function runs nothing, and captures nothing, before it is awaited.
    """

    @of.capture(key="message_id")
    async def answer(message_id: str) -> None: ...

    answer("m-1").close()

    assert () == spans.get_finished_spans()
    assert not is_known(provider, "m-1")


# --- the key as a parameter --------------------------------------------------------------------------------------


@of.capture(key="message_id")
def flexible(question: str, message_id: str | None = "by-default", *rest: str) -> str:
    return question


@of.capture(key="message_id")
def through_kwargs(**kwargs: str) -> None: ...


@of.capture(key="message_id")
def keyword_only(*, message_id: str = "by-default") -> None: ...


@of.capture(key="message_id")
def positional_only(message_id: str, /, **kwargs: str) -> None: ...


@of.capture(key="kwargs")
def named_like_kwargs(*args: str, **kwargs: str) -> None: ...


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: flexible("q", "positional"), "positional"),
        (lambda: flexible("q", message_id="keyword"), "keyword"),
        (lambda: flexible("q", "positional", "and", "more"), "positional"),
        (lambda: flexible(message_id="reordered", question="q"), "reordered"),
        (lambda: flexible("q"), "by-default"),
        (lambda: through_kwargs(message_id="kwargs"), "kwargs"),
        (lambda: keyword_only(message_id="keyword"), "keyword"),
        (keyword_only, "by-default"),
        (lambda: positional_only("own", message_id="theirs"), "own"),
        (lambda: named_like_kwargs("wrong", kwargs="right"), "right"),
        (lambda: of.capture(key="message_id")(functools.partial(flexible, message_id="bound"))("q"), "bound"),
        (lambda: of.capture(key="number")(lambda number: number)(17), "17"),
    ],
)
def test_the_key_is_found_however_it_is_given(call: Callable[[], Any], key: str, provider: of.FeedbackProvider) -> None:
    """
    A parameter holds the key given by position, by keyword, by default or through **kwargs; numbers become text.
    """
    call()

    assert is_known(provider, key)


@pytest.mark.parametrize("call", [lambda: flexible("q", None), lambda: through_kwargs(other="x")])
def test_nothing_is_no_key(call: Callable[[], Any], provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    A call whose id is `None` or not given is captured without a key.
    """
    call()

    assert 1 == len(spans.get_finished_spans())
    assert not is_known(provider, "None")


@pytest.mark.parametrize("key", ["massage_id", "args", "self"])
def test_an_unknown_parameter_is_refused_at_decoration(key: str) -> None:
    """
    A misspelt key is a TypeError where it is written, not at the first call; `*args` is no parameter of one value.
    """

    def answer(question: str, *args: str) -> None: ...

    with pytest.raises(TypeError, match=f"answer has no parameter '{key}'"):
        of.capture(key=key)(answer)


@pytest.mark.parametrize("wrap", [classmethod, staticmethod])
def test_an_unknown_parameter_of_a_wrapped_method_is_refused(wrap: Any) -> None:
    """
    The check looks inside of class methods and static methods.
    """
    with pytest.raises(TypeError, match="has no parameter 'nope'"):
        of.capture(key="nope")(wrap(plain))


def test_the_key_is_bound_before_the_body_runs(provider: of.FeedbackProvider) -> None:
    """
    While the call runs, another thread can already record feedback by its key.
    """
    receipts: list[of.Receipt] = []

    @of.capture(key="message_id")
    def answer(message_id: str) -> None:
        judge = threading.Thread(
            target=lambda: receipts.append(of.record_feedback(key="m-1", name="rating", value=True))
        )
        judge.start()
        judge.join()

    answer("m-1")

    assert 1 == len(receipts)


def test_two_hundred_concurrent_calls_keep_their_own_keys(provider: of.FeedbackProvider) -> None:
    """
    Of calls that run at the same time each key means its own call, and each call sees its own handle throughout.
    """

    @of.capture(key="message_id")
    async def answer(message_id: str) -> tuple[str, str, str]:
        before = of.current_handle()
        await asyncio.sleep(0)
        after = of.current_handle()
        assert before is not None
        assert after is not None
        return message_id, before.span_id, after.span_id

    async def main() -> list[tuple[str, str, str]]:
        return await asyncio.gather(*(answer(f"m-{number}") for number in range(200)))

    answered = asyncio.run(main())

    assert 200 == len({own for _, own, _ in answered})
    assert [(key, provider.handle_for_key(key).span_id) for key, _, _ in answered] == [
        (key, before) for key, before, _ in answered
    ]
    assert [after for _, _, after in answered] == [before for _, before, _ in answered]


# --- the key from the result -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_the_key_may_come_from_the_result(
    is_async: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A function of the result, awaited where it must be, answers the key; `None` is none.
    """

    @of.capture(key=lambda result: result["id"])
    def answer(given: str | None) -> dict[str, str | None]:
        return {"id": given}

    @of.capture(key=lambda result: result["id"])
    async def answer_async(given: str | None) -> dict[str, str | None]:
        return {"id": given}

    for given in ("r-1", None):
        drive(answer_async(given)) if is_async else answer(given)

    assert span_id(spans.get_finished_spans()[0]) == provider.handle_for_key("r-1").span_id
    assert not is_known(provider, "None")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failing_key_function_is_counted_and_never_raised(
    is_async: bool, provider: of.FeedbackProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The caller gets the result; the failure is one line in the log, without the text of the exception.
    """

    known: dict[str, str] = {}

    @of.capture(key=known.__getitem__)
    def answer() -> str:
        return "an answer"

    @of.capture(key=known.__getitem__)
    async def answer_async() -> str:
        return "an answer"

    results = [drive(answer_async()) if is_async else answer() for _ in range(3)]

    assert ["an answer"] * 3 == results
    assert 3 == provider._capture_errors
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "KeyError" in line.getMessage()
    assert "an answer" not in caplog.text


def test_a_call_that_fails_has_no_result_and_no_key(provider: of.FeedbackProvider) -> None:
    """
    A function of the result is not asked when there is no result.
    """
    asked: list[object] = []

    @of.capture(key=asked.append)
    def answer() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        answer()

    assert [] == asked


# --- nested calls ------------------------------------------------------------------------------------------------


def test_a_nested_call_never_takes_the_key_of_the_call_around_it(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    Of two nested calls with the same key the outer one is what the key means, during both and afterwards.
    """
    during: list[str] = []

    @of.capture(key="message_id")
    def inner(message_id: str) -> None:
        during.append(provider.handle_for_key(message_id).span_id)

    @of.capture(key="message_id")
    def outer(message_id: str) -> None:
        inner(message_id)
        during.append(provider.handle_for_key(message_id).span_id)

    outer("m-1")

    outer_span = spans.get_finished_spans()[-1]
    assert [span_id(outer_span)] * 3 == [*during, provider.handle_for_key("m-1").span_id]


def test_recursion_keeps_the_first_call(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    A function that calls itself with the same key is found by its outermost call.
    """

    @of.capture(key="message_id")
    def answer(depth: int, message_id: str) -> int:
        return answer(depth - 1, message_id) if depth else 0

    answer(3, "m-1")

    assert 4 == len(spans.get_finished_spans())
    assert span_id(spans.get_finished_spans()[-1]) == provider.handle_for_key("m-1").span_id


@pytest.mark.parametrize("inner_key", ["message_id", lambda result: result])
def test_a_result_that_passes_through_belongs_to_the_outer_call(
    inner_key: Any, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    Where an outer call learns at its end the key that an inner one has bound, the key means the outer one.
    """

    @of.capture(key=inner_key)
    def inner(message_id: str) -> str:
        return message_id

    @of.capture(key=lambda result: result)
    def outer() -> str:
        return inner("m-1")

    outer()

    assert span_id(spans.get_finished_spans()[-1]) == provider.handle_for_key("m-1").span_id


@pytest.mark.parametrize("nested_key", ["message_id", lambda result: result])
def test_a_nested_call_never_takes_a_key_that_was_bound_by_hand(
    nested_key: Any, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A key that was bound to a block inside of it means the block, whatever the calls within are called.
    """

    @of.capture(key=nested_key)
    def nested(message_id: str) -> str:
        return message_id

    with of.capture_span("block") as handle:
        of.bind_key(handle, "m-1")
        with of.capture_span("between"):
            nested("m-1")
        nested("m-2")

    assert handle.span_id == provider.handle_for_key("m-1").span_id
    assert span_id(spans.get_finished_spans()[-2]) == provider.handle_for_key("m-2").span_id


def test_a_key_is_noted_on_the_running_call_of_its_span() -> None:
    """
    Neither another call around, nor one that has ended, nor a span of the same number in another trace has the key.
    """
    handle, other, namesake = (
        of.FeedbackHandle(trace.SpanContext(trace_id, span_id, is_remote=False))
        for trace_id, span_id in ((1, 1), (1, 2), (2, 1))
    )
    outer = _correlate.Call(handle)
    ended = _correlate.Call(handle, parent=outer, has_ended=True)
    foreign = _correlate.Call(namesake, parent=ended)
    inner = _correlate.Call(other, parent=foreign)

    _correlate.note_key(handle, "outside")
    token = context.attach(_correlate.with_call(inner, context.Context()))
    _correlate.note_key(handle, "m-1")
    context.detach(token)

    assert [{"m-1"}, set(), set(), set()] == [call.keys for call in (outer, ended, foreign, inner)]


def test_a_call_without_a_handle_does_not_keep_its_key_from_the_calls_inside(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    `span=False` outside of any span captures nothing: the key means the call within that has a span.
    """

    @of.capture(key="message_id")
    def inner(message_id: str) -> None: ...

    @of.capture(key="message_id", span=False)
    def outer(message_id: str) -> None:
        inner(message_id)

    outer("m-1")

    assert span_id(spans.get_finished_spans()[0]) == provider.handle_for_key("m-1").span_id


def test_calls_with_other_keys_inside_have_their_own(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A nested call with a key of its own is found by it.
    """

    @of.capture(key="message_id")
    def inner(message_id: str) -> None: ...

    @of.capture(key="message_id")
    def outer(message_id: str) -> None:
        inner("inner")

    outer("outer")

    assert [span_id(span) for span in spans.get_finished_spans()] == [
        provider.handle_for_key(key).span_id for key in ("inner", "outer")
    ]


@pytest.mark.parametrize("target", ["call", "llm", "root"])
def test_the_newest_call_keeps_the_key_though_an_older_one_ends_later(
    target: Literal["call", "llm", "root"], provider: of.FeedbackProvider, tracer_provider: TracerProvider
) -> None:
    """
    An answer that is asked for again gets the key, and the first call does not take it back when it ends.
    """
    tracer = tracer_provider.get_tracer("app")
    handles: dict[str, of.FeedbackHandle | None] = {}

    @of.capture(key="message_id", target=target)
    def answer(name: str, message_id: str, then: Callable[[], None]) -> None:
        handles[name] = of.current_handle()
        then()
        with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
            pass

    def ask_again() -> None:
        contextvars.Context().run(answer, "newer", "m-1", lambda: None)

    answer("older", "m-1", ask_again)

    newer = handles["newer"]
    assert newer is not None
    assert newer.trace_id == provider.handle_for_key("m-1").trace_id


# --- what the key means at the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["call", "llm", "root"])
def test_the_target_moves_the_key_at_the_end(
    target: Literal["call", "llm", "root"],
    provider: of.FeedbackProvider,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
) -> None:
    """
    A key means the call while it runs, then the call, the last LLM span that ended inside of it, or the local root.
    """
    tracer = tracer_provider.get_tracer("app")
    during: list[str] = []

    def answer(message_id: str) -> None:
        during.append(provider.handle_for_key(message_id).span_id)
        for name in ("chat 1", "chat 2"):
            with tracer.start_as_current_span(name, attributes={"gen_ai.operation.name": "chat"}):
                pass
        with tracer.start_as_current_span("tool"):
            pass

    with tracer.start_as_current_span("server"):
        of.capture(key="message_id", target=target)(answer)("m-1")

    ids = {span.name: span_id(span) for span in spans.get_finished_spans()}
    meant = {"call": ids["answer"], "llm": ids["chat 2"], "root": ids["server"]}
    assert [ids["answer"]] == during
    assert meant[target] == provider.handle_for_key("m-1").span_id


def test_without_an_llm_span_the_target_is_the_call(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    `target="llm"` of a call in which no model was asked is the call itself.
    """

    @of.capture(key="message_id", target="llm")
    def answer(message_id: str) -> None: ...

    answer("m-1")

    assert span_id(spans.get_finished_spans()[0]) == provider.handle_for_key("m-1").span_id


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_local_root_is_never_in_another_process(
    is_nested: bool, provider: of.FeedbackProvider, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """
    A server's span whose parent came with the request is the local root; without one the call is its own.
    """
    remote = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1)))

    @of.capture(key="message_id", target="root")
    def answer(message_id: str) -> of.FeedbackHandle | None:
        return of.current_handle()

    def serve() -> of.FeedbackHandle | None:
        if not is_nested:
            return answer("m-1")
        with tracer_provider.get_tracer("server").start_as_current_span("POST /chat"):
            return answer("m-1")

    token = context.attach(trace.set_span_in_context(remote))
    try:
        handle = serve()
    finally:
        context.detach(token)

    root = spans.get_finished_spans()[-1]
    assert handle is not None
    assert (span_id(root), span_id(root)) == (handle.root_span_id, provider.handle_for_key("m-1").span_id)
    assert f"{0xABC:032x}" == provider.handle_for_key("m-1").trace_id


def test_the_current_span_is_used_where_none_is_opened(
    provider: of.FeedbackProvider, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """
    `span=False` captures the span that is current, and opens and ends none.
    """

    @of.capture(key="message_id", span=False)
    def answer(message_id: str) -> None:
        assert trace.get_current_span().is_recording()

    with tracer_provider.get_tracer("app").start_as_current_span("theirs", attributes={"user.id": "u-1"}) as theirs:
        answer("m-1")
        assert theirs.is_recording()

    assert ["theirs"] == [span.name for span in spans.get_finished_spans()]
    assert span_id(theirs) == provider.handle_for_key("m-1").span_id
    assert {"user.id": "u-1"} == provider.handle_for_key("m-1").attributes


def test_without_a_current_span_there_is_nothing_to_use(provider: of.FeedbackProvider) -> None:
    """
    `span=False` outside of any span captures nothing, and the call works.
    """

    @of.capture(key="message_id", span=False)
    def answer(message_id: str) -> of.FeedbackHandle | None:
        return of.current_handle()

    assert answer("m-1") is None
    assert not is_known(provider, "m-1")


def test_the_handle_knows_the_end_and_the_attributes_of_its_span(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    After the call the key's handle has the span's start and end, and what the body wrote on the span.
    """

    @of.capture(key="message_id")
    def answer(message_id: str) -> None:
        trace.get_current_span().set_attribute("gen_ai.conversation.id", "c-1")

    answer("m-1")

    (span,) = spans.get_finished_spans()
    handle = provider.handle_for_key("m-1")
    assert (span.start_time, span.end_time, "c-1") == (
        handle.started_at,
        handle.ended_at,
        handle.attributes["gen_ai.conversation.id"],
    )


# --- unsampled, no SDK, disabled, broken -------------------------------------------------------------------------


class FirstOnly(Sampler):
    """Samples the first trace and no other."""

    def __init__(self) -> None:
        self.seen = 0

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        self.seen += 1
        return SamplingResult(Decision.RECORD_AND_SAMPLE if self.seen == 1 else Decision.DROP)

    def get_description(self) -> str:
        return "FirstOnly"


def test_an_unsampled_call_is_known_and_says_that_it_is_unsampled() -> None:
    """
    A call that was not sampled has ids, a key and a start; only no vendor will ever see it.
    """
    provider = configure(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))

    @of.capture(key="message_id", target="root")
    def answer(message_id: str) -> None: ...

    answer("m-1")

    handle = provider.handle_for_key("m-1")
    assert (True, False) == (handle.is_valid, handle.is_sampled)
    assert handle.started_at is not None


def test_an_unsampled_call_is_newer_than_a_sampled_one_before() -> None:
    """
    A key bound again means the newest call, also where that one was not sampled and its span knows no start.
    """
    provider = configure(TracerProvider(sampler=FirstOnly(), shutdown_on_exit=False))

    @of.capture(key="message_id")
    def answer(message_id: str) -> None: ...

    answer("m-1")
    answer("m-1")

    assert not provider.handle_for_key("m-1").is_sampled


class Passing(trace.TracerProvider):
    """Somebody's tracer provider that traces nothing."""

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return trace.NoOpTracer()


@pytest.mark.parametrize("tracer_provider", [trace.NoOpTracerProvider(), Passing()], ids=["none", "somebody's"])
@pytest.mark.parametrize("has_parent", [False, True])
def test_without_an_sdk_the_call_works_and_nothing_is_bound(
    has_parent: bool, tracer_provider: trace.TracerProvider
) -> None:
    """
    A tracer that records nothing passes the caller's span on: no key is bound, least of all to that span.
    """
    provider = configure(tracer_provider)
    remote = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1)))

    @of.capture(key="message_id")
    def answer(message_id: str) -> of.FeedbackHandle | None:
        return of.current_handle()

    token = context.attach(trace.set_span_in_context(remote) if has_parent else context.Context())
    try:
        handle = answer("m-1")
        with of.capture_span() as spanned, of.collect_handles() as collected:
            answer("m-2")
    finally:
        context.detach(token)

    assert (None, False, 0) == (handle, spanned.is_valid, len(collected))
    assert not is_known(provider, "m-1")


def test_disabled_capture_calls_straight_through(
    tmp_path: Path, spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """
    Where feedback is disabled nothing is opened, bound or stored; results and exceptions are the function's own.
    """
    configure(tracer_provider, disabled=True)

    with of.capture_span() as handle:
        assert "why:m-1:False" == CALLABLES["plain"]("why", message_id="m-1")
    with pytest.raises(TypeError):
        CALLABLES["plain"]()

    assert not handle.is_valid
    assert () == spans.get_finished_spans()
    assert [] == list(tmp_path.iterdir())


class BrokenTracerProvider(trace.TracerProvider):
    """Its tracer raises."""

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        raise RuntimeError("no tracer")


class BrokenEnd(SpanProcessor):
    """Raises when a span ends, as an exporter's bug does."""

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("no export")


def test_a_broken_tracer_never_reaches_the_application(caplog: pytest.LogCaptureFixture) -> None:
    """
    Where no span can be opened the calls go on without, each failure is counted, and one line says so.
    """
    provider = configure(BrokenTracerProvider())

    assert "why:m-1:False" == CALLABLES["plain"]("why", message_id="m-1")
    assert "why:m-1:False" == asyncio.run(_run(CALLABLES["coroutine"], "why", message_id="m-1"))
    with of.capture_span() as handle:
        assert of.current_handle() is None
    assert not handle.is_valid
    assert 3 == provider._capture_errors
    assert 1 == sum("capture failed" in record.getMessage() for record in caplog.records)
    assert of.current_handle() is None


def test_a_broken_exporter_of_spans_costs_no_key(tracer_provider: TracerProvider) -> None:
    """
    Where ending the span fails, the call's result and its key are there all the same.
    """
    tracer_provider.add_span_processor(BrokenEnd())
    provider = configure(tracer_provider)

    @of.capture(key=lambda result: result)
    def answer() -> str:
        return "r-1"

    with of.capture_span():
        assert "r-1" == answer()

    assert is_known(provider, "r-1")
    assert 2 == provider._capture_errors
    assert of.current_handle() is None


class Stubborn:
    """An id that has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("message_id", [Stubborn(), "", "\ud800"], ids=["stubborn", "empty", "surrogate"])
def test_a_key_that_cannot_be_bound_leaves_nothing_behind(
    message_id: Any, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    What is no key costs the key only: the call is captured, ends, and is not current afterwards.
    """

    @of.capture(key="message_id")
    def answer(message_id: Any) -> bool:
        return of.current_handle() is not None

    assert answer(message_id)
    assert of.current_handle() is None
    assert 1 == len(spans.get_finished_spans())
    assert provider._capture_errors > 0


class Interrupting:
    """An id whose text is asked for when Ctrl-C is pressed."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize("is_async", [False, True])
def test_an_interrupt_before_the_body_passes_and_leaves_nothing_behind(
    is_async: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A Ctrl-C while the key is read reaches the caller, and the call has ended: nothing of it is current.
    """

    @of.capture(key="message_id")
    def answer(message_id: Any) -> None: ...

    @of.capture(key="message_id")
    async def answer_async(message_id: Any) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        drive(answer_async(Interrupting())) if is_async else answer(Interrupting())

    assert of.current_handle() is None
    assert not trace.get_current_span().get_span_context().is_valid
    assert [["exception"]] == [[each.name for each in span.events] for span in spans.get_finished_spans()]
    assert 0 == provider._capture_errors


def test_an_interrupt_while_the_key_of_the_result_is_read_ends_the_call_once(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A Ctrl-C after the body reaches the caller; the call has ended as the success that it was.
    """

    @of.capture(key=str)
    def answer() -> Interrupting:
        return Interrupting()

    with pytest.raises(KeyboardInterrupt):
        answer()

    assert of.current_handle() is None
    assert [trace.StatusCode.UNSET] == [span.status.status_code for span in spans.get_finished_spans()]
    assert [] == [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")]


CAPTURING = {_capture.__file__, contextvars_context.__file__}


class CtrlC:
    """Raises KeyboardInterrupt at the n-th call of capture or of the context, where Python looks for signals."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename in CAPTURING and event in ("call", "c_call", "c_return"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def __enter__(self) -> None:
        sys.setprofile(self)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@of.capture(key="message_id")
def stop_interrupting(message_id: str) -> None:
    sys.setprofile(None)


def enter_block() -> None:
    with of.capture_span():
        sys.setprofile(None)


@pytest.mark.parametrize("enter", [lambda: stop_interrupting("m-1"), enter_block], ids=["capture", "capture_span"])
def test_an_interrupt_at_any_moment_before_the_body_leaves_nothing_behind(
    enter: Callable[[], None], tracer_provider: TracerProvider
) -> None:
    """
    Wherever in capture a Ctrl-C strikes before the body runs, no call and no span stay current, and no span stays open.
    """
    configure(tracer_provider)

    assert 5 < sum(1 for _ in takewhile(bool, (is_interrupted(enter, moment) for moment in count(1))))


def is_interrupted(enter: Callable[[], None], moment: int) -> bool:
    """Interrupt at a moment, if it comes before the body, and look at what is left."""
    try:
        with CtrlC(moment):
            enter()
    except KeyboardInterrupt:
        assert of.current_handle() is None
        assert not trace.get_current_span().get_span_context().is_valid
        assert {} == _correlate.LIVE
        return True
    return False


def test_capture_says_again_after_a_thousand_failures(
    provider: of.FeedbackProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The first failure is logged, then every thousandth, so that a hot loop does not fill the log.
    """
    for _ in range(1_001):
        provider.capture_failed(ValueError("broken"))

    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert ["(1 so far)", "(1001 so far)"] == [line[line.index("(") : line.index(")") + 1] for line in lines]


# --- streams, and what else is still to come ---------------------------------------------------------------------


def inside() -> str | None:
    """Answer which call this is in."""
    handle = of.current_handle()
    return None if handle is None else handle.span_id


def generator(message_id: str) -> Iterator[str | None]:
    yield inside()
    yield inside()


async def async_generator(message_id: str) -> AsyncIterator[str | None]:
    yield inside()
    yield inside()


def of_generator(message_id: str) -> Iterator[str | None]:
    return generator(message_id)


class Items:
    """An iterator of two items that is no generator."""

    left = 2

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str | None:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return inside()


def of_iterator(message_id: str) -> Iterator[str | None]:
    return Items()


def of_async_generator(message_id: str) -> AsyncIterator[str | None]:
    return async_generator(message_id)


async def coroutine_of_generator(message_id: str) -> Iterator[str | None]:
    return generator(message_id)


async def coroutine_of_async_generator(message_id: str) -> AsyncIterator[str | None]:
    return async_generator(message_id)


@contextmanager
def manager(message_id: str) -> Iterator[Iterator[str | None]]:
    yield generator(message_id)


STREAMS: dict[str, Callable[..., Any]] = {
    function.__name__: of.capture(key="message_id")(function)
    for function in (
        generator,
        async_generator,
        of_generator,
        of_iterator,
        of_async_generator,
        coroutine_of_generator,
        coroutine_of_async_generator,
        manager,
    )
}


async def consume(stream: Any) -> list[Any]:
    """Take all items of whatever is a stream."""
    if hasattr(stream, "__enter__"):
        with stream as entered:
            return list(entered)
    return [item async for item in stream] if hasattr(stream, "__anext__") else list(stream)


def eventually(is_so: Callable[[], bool], provider: of.FeedbackProvider) -> bool:
    """Tell whether something comes about that a finaliser has only asked for."""
    deadline = time.monotonic() + 10
    while not is_so() and time.monotonic() < deadline:
        provider.force_flush()
    return is_so()


def throw_into(stream: Any) -> None:
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError("k"))


def statuses(spans: InMemorySpanExporter) -> list[tuple[str, str | None]]:
    return [(span.status.status_code.name, span.status.description) for span in spans.get_finished_spans()]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_one_call_until_its_end(
    name: str, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    Its handle and its key are there before the first item, each step is inside, the time between is not, and it ends.
    """

    async def main() -> tuple[of.FeedbackHandle | None, str, int, list[str | None], str | None]:
        called = STREAMS[name]("m-1")
        stream = await called if inspect.iscoroutine(called) else called
        before = len(spans.get_finished_spans())
        handle = of.handle_of(stream)
        return handle, provider.handle_for_key("m-1").span_id, before, await consume(stream), inside()

    handle, of_key, before, items, after = asyncio.run(main())

    assert handle is not None
    assert (handle.span_id, 0, [handle.span_id] * 2, None) == (of_key, before, items, after)
    assert [(name, handle.span_id)] == [(span.name, span_id(span)) for span in spans.get_finished_spans()]
    assert [("UNSET", None)] == statuses(spans)


def test_between_its_steps_a_stream_is_not_current(provider: of.FeedbackProvider) -> None:
    """
    Whoever consumes a stream is in the call that it was in before.
    """
    stream = STREAMS["generator"]("m-1")
    with of.capture_span() as consumer:
        seen = [(next(stream), inside()) for _ in range(2)]
    handle = of.handle_of(stream)
    stream.close()

    assert handle is not None
    assert [(handle.span_id, consumer.span_id)] * 2 == seen


def test_what_is_no_captured_stream_has_no_handle(provider: of.FeedbackProvider) -> None:
    """
    A bare stream, a result, a future and nothing at all are nobody's.
    """
    answer = of.capture(lambda given: given)
    bare = generator("m-1")

    assert [None] * 5 == [of.handle_of(each) for each in (bare, 1, None, answer("text"), answer(Future()))]


ENDINGS: dict[str, tuple[Callable[[Any], object], tuple[str, str | None]]] = {
    "exhausted": (list, ("UNSET", None)),
    "closed": (lambda stream: (next(stream), stream.close()), ("UNSET", None)),
    "closed before it began": (lambda stream: stream.close(), ("UNSET", None)),
    "thrown into": (throw_into, ("ERROR", "KeyError: 'k'")),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stream_ends_once(ending: str, provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    However it ends, also twice, there is one span, with an error only where one came out.
    """
    end, status = ENDINGS[ending]
    stream = STREAMS["generator"]("m-1")
    end(stream)
    stream.close()
    del stream
    gc.collect()
    provider.force_flush()

    assert [status] == statuses(spans)


def test_the_error_of_a_stream_passes_untouched(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    The consumer gets the very error of the body, and the span has it.
    """
    error = ValueError("broken")

    @of.capture
    def answer() -> Iterator[int]:
        yield 1
        raise error

    stream = answer()
    next(stream)
    with pytest.raises(ValueError, match="broken") as caught:
        next(stream)

    assert error is caught.value
    assert error.__context__ is None
    assert [("ERROR", "ValueError: broken")] == statuses(spans)


@pytest.mark.parametrize("name", ["generator", "of_iterator", "manager", "async_generator"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_stream_that_nobody_wants_ends_soon(
    name: str, is_begun: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    The span of a stream that was collected half-way, or before it began, is ended by a thread, and without an error.
    """
    stream = STREAMS[name]("m-1")
    handle = of.handle_of(stream)
    if is_begun:
        drive(anext(stream)) if name == "async_generator" else next(
            iter([stream.__enter__() if name == "manager" else next(stream)])
        )
    del stream
    gc.collect()

    assert handle is not None
    assert eventually(lambda: len(spans.get_finished_spans()) == 1, provider)
    assert ([handle.span_id], [("UNSET", None)]) == (
        [span_id(span) for span in spans.get_finished_spans()],
        statuses(spans),
    )
    assert provider.handle_for_key("m-1").ended_at is not None


def test_a_stream_in_a_cycle_is_closed_in_its_place(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    The `finally` of a generator that the collector of cycles finds runs inside of its call, and the span ends.
    """
    seen: list[str | None] = []

    @of.capture
    def answer() -> Iterator[object]:
        own = yield None
        try:
            yield own
        finally:
            seen.append(inside())

    stream: Any = answer()
    handle = of.handle_of(stream)
    next(stream)
    stream.send(stream)
    del stream
    gc.collect()

    assert handle is not None
    assert [handle.span_id] == seen
    assert eventually(lambda: len(spans.get_finished_spans()) == 1, provider)


@pytest.mark.parametrize("is_closed", [False, True], ids=["running", "closed"])
def test_an_asynchronous_stream_that_its_loop_has_to_close(
    is_closed: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Collected half-way, it is closed by its loop inside of its call; where the loop is gone its span ends all the same.
    """
    tracer = trace.get_tracer("app", tracer_provider=provider._tracer_provider)
    seen: list[str | None] = []

    @of.capture(key="message_id")
    async def answer(message_id: str) -> AsyncIterator[int]:
        with tracer.start_as_current_span("inner"):
            try:
                yield 1
            finally:
                seen.append(inside())

    loop = asyncio.new_event_loop()
    streams: list[Any] = [answer("m-1")]
    handle = of.handle_of(streams[0])
    loop.run_until_complete(_next(streams[0]))
    if is_closed:
        loop.close()
    streams.clear()
    gc.collect()
    if not is_closed:
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    assert handle is not None
    assert eventually(lambda: len(spans.get_finished_spans()) == 2, provider)
    assert [handle.span_id] * (not is_closed) == seen
    assert {"inner", "answer"} == {span.name for span in spans.get_finished_spans()}
    assert ["UNSET", "UNSET"] == [status for status, _ in statuses(spans)]
    assert [] == [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")]
    assert inside() is None


class Lossy:
    """An asynchronous stream whose second step waits for ever."""

    def __init__(self) -> None:
        self.step = 0

    def __aiter__(self) -> Lossy:
        return self

    async def __anext__(self) -> str | None:
        self.step += 1
        if self.step == 2:
            await asyncio.Event().wait()
        return inside()


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "is left"])
def test_a_stream_whose_step_was_cancelled_goes_on_until_it_is_left(
    goes_on: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    An item may follow on a cancelled step; a stream that is left ends when it is collected.
    """

    @of.capture
    def answer() -> Lossy:
        return Lossy()

    async def main() -> None:
        stream = answer()
        await anext(stream)
        task = asyncio.ensure_future(_next(stream))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert () == spans.get_finished_spans()
        if goes_on:
            handle = of.handle_of(stream)
            assert handle is not None
            assert handle.span_id == await anext(stream)

    asyncio.run(main())
    gc.collect()

    assert eventually(lambda: len(spans.get_finished_spans()) == 1, provider)
    assert [("UNSET", None)] == statuses(spans)


async def _next(stream: Any) -> Any:
    return await anext(stream)


def test_the_key_may_come_from_an_item(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    Each item is asked until one answers, and none after that.
    """
    asked: list[dict[str, str]] = []

    def read(item: dict[str, str]) -> str | None:
        asked.append(item)
        return item.get("id")

    @of.capture(key=read)
    def answer() -> Iterator[dict[str, str]]:
        yield {"delta": "a"}
        yield {"id": "r-1"}
        assert is_known(provider, "r-1")
        yield {"id": "r-2"}

    list(answer())

    assert [{"delta": "a"}, {"id": "r-1"}] == asked
    assert span_id(spans.get_finished_spans()[0]) == provider.handle_for_key("r-1").span_id
    assert not is_known(provider, "r-2")


def test_a_failing_key_function_of_items_is_counted(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    The consumer gets its items; each failure is counted, and the next item is asked.
    """
    known = {2: "r-1"}

    @of.capture(key=known.__getitem__)
    def answer() -> Iterator[int]:
        yield from (1, 2)

    assert [1, 2] == list(answer())
    assert 1 == provider._capture_errors
    assert is_known(provider, "r-1")


def test_items_after_the_end_are_not_asked(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    An iterator that is closed and goes on all the same has no call any more, and gives its items.
    """

    class Endless:
        def __iter__(self) -> Endless:
            return self

        def __next__(self) -> str:
            return "r-1"

        def close(self) -> None: ...

    @of.capture(key=str)
    def answer() -> Endless:
        return Endless()

    stream = answer()
    stream.close()

    assert "r-1" == next(stream)
    assert not is_known(provider, "r-1")


@pytest.mark.parametrize("target", ["call", "llm", "root"])
def test_the_target_of_a_stream_moves_the_key_at_its_end(
    target: Literal["call", "llm", "root"],
    provider: of.FeedbackProvider,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
) -> None:
    """
    What the body opens in any of its steps is inside of the call, for the key's meaning as well.
    """
    tracer = tracer_provider.get_tracer("app")

    @of.capture(key="message_id", target=target)
    def answer(message_id: str) -> Iterator[int]:
        with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
            yield 1
        yield 2

    with tracer.start_as_current_span("server"):
        stream = answer("m-1")
    during = provider.handle_for_key("m-1").span_id
    list(stream)

    ids = {span.name: span_id(span) for span in spans.get_finished_spans()}
    assert ids["answer"] == during
    assert {"call": ids["answer"], "llm": ids["chat"], "root": ids["server"]}[target] == provider.handle_for_key(
        "m-1"
    ).span_id


def test_a_coroutine_that_a_function_returns_is_the_call(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    What is awaited later is inside, its result has the key, and its handle is there before.
    """

    @of.capture(key=lambda result: result["id"])
    def answer() -> Any:
        return answering()

    async def answering() -> dict[str, str | None]:
        await asyncio.sleep(0)
        return {"id": "r-1", "inside": inside()}

    called = answer()
    handle = of.handle_of(called)
    result = asyncio.run(called)

    assert handle is not None
    assert {"id": "r-1", "inside": handle.span_id} == result
    assert handle.span_id == provider.handle_for_key("r-1").span_id
    assert [("UNSET", None)] == statuses(spans)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_coroutine_that_is_closed_half_way_has_ended(
    elsewhere: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    Closing is no error, wherever it happens, and nothing of the call stays current.
    """

    @of.capture
    async def answer() -> None:
        await asyncio.sleep(0)

    called = answer()
    called.send(None)
    contextvars.Context().run(called.close) if elsewhere else called.close()
    after = inside()

    assert eventually(lambda: len(spans.get_finished_spans()) == 1, provider)
    assert [("UNSET", None)] == statuses(spans)
    assert elsewhere or after is None


def test_a_coroutine_that_is_closed_while_capture_is_off_is_closed(tracer_provider: TracerProvider) -> None:
    """
    Where there is no call there is none to end.
    """
    configure(tracer_provider, disabled=True)

    @of.capture
    async def answer() -> None:
        await asyncio.sleep(0)

    called = answer()
    called.send(None)
    called.close()

    assert inspect.CORO_CLOSED == inspect.getcoroutinestate(called)


def test_a_key_function_that_closes_what_calls_it_ends_the_call_once(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A GeneratorExit after the end of the call is the application's own affair.
    """

    def leave(result: object) -> None:
        raise GeneratorExit

    @of.capture(key=leave)
    async def answer() -> None: ...

    with pytest.raises(GeneratorExit):
        drive(answer())
    provider.force_flush()

    assert [("UNSET", None)] == statuses(spans)


# --- managers ----------------------------------------------------------------------------------------------------


def test_what_a_captured_manager_makes_current_is_current_in_its_block(
    provider: of.FeedbackProvider, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """
    A block is inside of its manager's call, and in whatever the manager brings it into; after it nothing is left.
    """
    tracer = tracer_provider.get_tracer("app")

    @of.capture
    @contextmanager
    def session() -> Iterator[trace.Span]:
        with tracer.start_as_current_span("inner") as span:
            yield span

    with session() as span:
        seen = (inside(), trace.get_current_span() is span)

    own = {each.name: each for each in spans.get_finished_spans()}
    call = own["session"]
    assert (span_id(call), True) == seen
    assert call.get_span_context() == own["inner"].parent
    assert (None, False) == (inside(), trace.get_current_span().is_recording())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_block_that_fails_fails_its_managers_call(
    is_async: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    The exception that leaves the block is the span's; entered again, the manager does what it did without us.
    """

    @of.capture
    def manage() -> Any:
        return nullcontext("entered")

    async def enter(manager: Any) -> None:
        async with manager:
            raise KeyError("question")

    def enter_now(manager: Any) -> None:
        with manager:
            raise KeyError("question")

    manager = manage()
    with pytest.raises(KeyError):
        asyncio.run(enter(manager)) if is_async else enter_now(manager)
    with manager as entered:
        again = (entered, inside())

    assert ("entered", None) == again
    assert [trace.StatusCode.ERROR] == [each.status.status_code for each in spans.get_finished_spans()]


# --- a stream that is collected where nobody has a thread for it -------------------------------------------------


@pytest.mark.parametrize("after", ["shut down", "disabled", "never used"])
def test_a_stream_that_nobody_has_a_thread_for_ends_all_the_same(
    after: str, provider: of.FeedbackProvider, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """
    Its provider shut down, or replaced by one that has no thread, a suspended stream ends when it is collected.
    """
    stream: Any = of.capture(generator)("msg-1")
    next(stream)
    if after == "shut down":
        provider.shutdown()
    elif after == "disabled":
        configure(tracer_provider, disabled=True)
    else:
        of.set_feedback_provider(of.FeedbackProvider(exporters=[], store="memory:", tracer_provider=tracer_provider))
    del stream
    gc.collect()

    assert ["generator"] == [each.name for each in spans.get_finished_spans()]


# --- futures -----------------------------------------------------------------------------------------------------


FUTURES: dict[str, tuple[Callable[[Any], object], tuple[str, str | None]]] = {
    "a result": (lambda future: future.set_result(1), ("UNSET", None)),
    "an error": (lambda future: future.set_exception(ValueError("broken")), ("ERROR", "ValueError: broken")),
    "a cancellation": (lambda future: future.cancel(), ("UNSET", None)),
}


@pytest.mark.parametrize("ending", FUTURES)
def test_a_call_ends_with_the_future_of_a_pool(
    ending: str, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    The caller gets the very future, the call goes on in no context, and ends as the future does.
    """
    end, status = FUTURES[ending]
    future: Future[int] = Future()

    @of.capture(key="message_id")
    def answer(message_id: str) -> Future[int]:
        return future

    returned = answer("m-1")
    before = (inside(), spans.get_finished_spans())
    end(future)

    assert future is returned
    assert (None, ()) == before
    assert [status] == statuses(spans)
    assert span_id(spans.get_finished_spans()[0]) == provider.handle_for_key("m-1").span_id


@pytest.mark.parametrize("ending", FUTURES)
def test_a_call_ends_with_a_future_of_asyncio(
    ending: str, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    An error that nobody has looked at stays one that nobody has looked at: asyncio tells of it.
    """
    end, status = FUTURES[ending]
    told: list[str] = []

    @of.capture
    def answer(loop: asyncio.AbstractEventLoop) -> asyncio.Future[int]:
        return loop.create_future()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, said: told.append(said["message"]))
        end(answer(loop))
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(main())

    assert [status] == statuses(spans)
    assert ["Future exception was never retrieved"] * (ending == "an error") == told


class BrokenFuture(Future[None]):
    """Somebody's future whose callbacks do not work, or whose end cannot be asked for."""

    def __init__(self, *, takes_callbacks: bool) -> None:
        super().__init__()
        self.takes_callbacks = takes_callbacks
        self.callbacks: list[Callable[[BrokenFuture], None]] = []

    def add_done_callback(self, callback: Callable[[BrokenFuture], None]) -> None:
        if not self.takes_callbacks:
            raise RuntimeError("no callbacks")
        self.callbacks.append(callback)

    def cancelled(self) -> bool:
        raise RuntimeError("no answer")


@pytest.mark.parametrize("takes_callbacks", [False, True])
def test_a_broken_future_is_handed_out_all_the_same(
    takes_callbacks: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    What cannot be waited for ends the call at once, and what cannot be asked ends it without an error; it is counted.
    """

    @of.capture
    def answer() -> BrokenFuture:
        return BrokenFuture(takes_callbacks=takes_callbacks)

    future = answer()
    for callback in future.callbacks:
        callback(future)

    assert isinstance(future, BrokenFuture)
    assert [("UNSET", None)] == statuses(spans)
    assert 1 == provider._capture_errors
    assert inside() is None


def test_what_only_takes_callbacks_is_a_result(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    An object of somebody's own that has a method of the name is given back as it is, and is never asked to call.
    """
    asked: list[object] = []

    class Signal:
        def add_done_callback(self, callback: object) -> None:
            asked.append(callback)

    signal = Signal()

    assert signal is of.capture(lambda: signal)()
    assert ([], [("UNSET", None)]) == (asked, statuses(spans))


@pytest.mark.parametrize("make", [MagicMock, AsyncMock], ids=["mock", "asynchronous mock"])
def test_a_mock_is_a_result(make: Any, provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    What a test of the application lets a captured function answer comes back as it is, whatever it can be asked for.
    """
    mock = make()

    assert mock is of.capture(lambda: mock)()
    assert [("UNSET", None)] == statuses(spans)


def test_a_key_that_would_have_to_be_awaited_is_refused() -> None:
    """
    A function of the result that is a coroutine function is a TypeError at decoration.
    """

    async def key(result: object) -> str:
        return str(result)

    with pytest.raises(TypeError, match="a function of the result, not"):
        of.capture(key=key)(plain)


def test_an_iterator_may_begin_anew_when_it_is_asked_for(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    The stream's own `__iter__` is what a loop begins with, and another iterator that it answers is a stream as well.
    """

    class Anew:
        def __iter__(self) -> Anew:
            self.left = 2
            return self

        def __next__(self) -> str | None:
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            return inside()

    class Another:
        def __iter__(self) -> Iterator[str | None]:
            yield inside()

        def __next__(self) -> str | None:
            raise StopIteration

    anew = of.capture(Anew)()
    own = of.handle_of(anew)
    another = of.capture(Another)()
    others = of.handle_of(another)

    assert own is not None
    assert others is not None
    assert [own.span_id] * 2 == list(anew)
    assert [others.span_id] == list(another)
    assert [("UNSET", None)] * 2 == statuses(spans)


def test_what_a_function_leaves_attached_is_there_at_each_step_and_nowhere_else(
    provider: of.FeedbackProvider,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    As some instrumentations do: a span that the function attaches is detached by the stream that it returns.
    """
    tracer = tracer_provider.get_tracer("app")

    @of.capture
    def answer() -> Iterator[tuple[str | None, bool]]:
        span = tracer.start_span("chat")
        token = context.attach(trace.set_span_in_context(span))

        def items() -> Iterator[tuple[str | None, bool]]:
            yield inside(), trace.get_current_span() is span
            yield inside(), trace.get_current_span() is span
            context.detach(token)
            span.end()

        return items()

    stream = answer()
    handle = of.handle_of(stream)
    seen = [(item, trace.get_current_span().is_recording()) for item in stream]

    assert handle is not None
    assert [((handle.span_id, True), False)] * 2 == seen
    assert ["chat", "answer"] == [span.name for span in spans.get_finished_spans()]
    assert [] == [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")]


def test_what_closes_a_stream_takes_what_it_takes(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    A client's own arguments of `close` arrive by their names.
    """

    class Socket:
        def __next__(self) -> int:
            return 1

        def close(self, *, code: int) -> int:
            return code

    assert 1001 == of.capture(Socket)().close(code=1001)
    assert [("UNSET", None)] == statuses(spans)


def test_calls_that_start_one_another_do_not_hold_one_another(provider: of.FeedbackProvider) -> None:
    """
    A task that starts the next one before it ends leaves nothing behind, however long that goes on.
    """

    @of.capture
    async def tick(left: int) -> None:
        lengths.append(sum(1 for _ in ancestors(_correlate.call_in())))
        if left:
            tasks.append(asyncio.get_running_loop().create_task(tick(left - 1)))
        await asyncio.sleep(0)

    def ancestors(call: Any) -> Iterator[Any]:
        while call is not None:
            yield call
            call = call.parent

    async def main() -> None:
        await tick(50)
        while tasks:
            await tasks.pop()

    lengths: list[int] = []
    tasks: list[asyncio.Task[None]] = []
    asyncio.run(main())

    assert 51 == len(lengths)
    assert max(lengths) <= 3


# --- streams, where something is missing -------------------------------------------------------------------------


@pytest.mark.parametrize("tracer_provider", [trace.NoOpTracerProvider(), Passing()], ids=["none", "somebody's"])
def test_without_an_sdk_a_stream_is_the_bare_one(tracer_provider: trace.TracerProvider) -> None:
    """
    Where nothing is captured nothing stands in for anything.
    """
    configure(tracer_provider)
    stream = STREAMS["generator"]("m-1")

    assert GeneratorType is type(stream)
    assert [None, None] == list(stream)
    assert of.handle_of(stream) is None


def test_disabled_capture_hands_out_the_bare_stream(tracer_provider: TracerProvider) -> None:
    """
    Where feedback is disabled a stream is what the function returned.
    """
    configure(tracer_provider, disabled=True)

    assert GeneratorType is type(STREAMS["generator"]("m-1"))


def test_a_stream_may_use_the_current_span(
    provider: of.FeedbackProvider, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """
    With `span=False` its steps are inside of the span that was current at the call, which it does not end.
    """

    @of.capture(key="message_id", span=False)
    def answer(message_id: str) -> Iterator[str]:
        yield span_id(trace.get_current_span())

    with tracer_provider.get_tracer("app").start_as_current_span("theirs") as theirs:
        stream = answer("m-1")
    items = contextvars.Context().run(list, stream)

    assert [span_id(theirs)] == items
    assert ["theirs"] == [span.name for span in spans.get_finished_spans()]
    assert span_id(theirs) == provider.handle_for_key("m-1").span_id


class BrokenSpan(trace.NonRecordingSpan):
    """A span that takes no error."""

    def __init__(self, context: trace.SpanContext) -> None:
        super().__init__(context)
        self.ends = 0

    def is_recording(self) -> bool:
        return self.ends == 0

    def record_exception(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no exceptions")

    def end(self, end_time: int | None = None) -> None:
        self.ends += 1


class BrokenSpans(trace.TracerProvider, trace.Tracer):
    """Opens such spans."""

    def __init__(self) -> None:
        self.opened: list[BrokenSpan] = []

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self

    def start_span(self, *_: Any, **__: Any) -> trace.Span:
        self.opened.append(BrokenSpan(trace.SpanContext(1, len(self.opened) + 1, is_remote=False)))
        return self.opened[-1]

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("nobody asks for it")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_span_that_takes_no_error_costs_the_application_none(is_stream: bool) -> None:
    """
    Where recording an exception fails the caller still gets the very exception, and the span is ended.
    """
    tracer_provider = BrokenSpans()
    provider = configure(tracer_provider)
    error = ValueError("broken")

    @of.capture
    def fails() -> None:
        raise error

    @of.capture
    def streams() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(ValueError, match="broken") as caught:
        list(streams()) if is_stream else fails()

    assert error is caught.value
    assert ([1], 1) == ([span.ends for span in tracer_provider.opened], provider._capture_errors)
    assert inside() is None


def test_a_stream_outlives_its_provider(tracer_provider: TracerProvider, spans: InMemorySpanExporter) -> None:
    """
    After `configure()` was called again a stream of before goes on, and when it is collected its span ends.
    """
    configure(tracer_provider)
    stream, other = (STREAMS["generator"](key) for key in ("m-1", "m-2"))
    next(stream)
    next(other)
    provider = configure(tracer_provider)
    rest = list(other)
    del stream
    gc.collect()

    assert 1 == len(rest)
    assert eventually(lambda: len(spans.get_finished_spans()) == 2, provider)


def test_a_stream_outlives_all_providers(tracer_provider: TracerProvider, spans: InMemorySpanExporter) -> None:
    """
    Where there is no current provider any more the stream's own one ends its span.
    """
    provider = configure(tracer_provider)
    stream = STREAMS["generator"]("m-1")
    next(stream)
    of.set_feedback_provider(None)
    del stream
    gc.collect()
    is_ended = eventually(lambda: len(spans.get_finished_spans()) == 1, provider)
    provider.shutdown()

    assert is_ended


def test_the_first_captured_call_does_not_wait_for_the_store(
    tracer_provider: TracerProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where nobody has configured anything capture does, and while another process has the store locked no call waits.
    """
    monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", f"sqlite:///{tmp_path}/feedback.db")
    default = _active._slot.make
    _active.set_default(functools.partial(start_from_environment, tracer_provider=tracer_provider))
    with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        answered = CALLABLES["plain"]("why", message_id="m-1")
        items = list(STREAMS["generator"]("m-2"))
        took_millis = (time.monotonic() - began) * 1_000
        other.execute("ROLLBACK")
    _active.set_default(default)

    assert ("why:m-1:True", 2) == (answered, len(items))
    assert took_millis < BUSY_TIMEOUT_MILLIS / 2
    assert items[0] == of.get_feedback_provider().handle_for_key("m-2").span_id


FORK = """
import gc, os, sys
from opentelemetry.sdk.trace import TracerProvider, SpanProcessor
import otel_feedback as of

class Ends(SpanProcessor):
    def on_end(self, span):
        print(os.getpid() == parent, span.name, flush=True)

parent = os.getpid()
tracer_provider = TracerProvider(shutdown_on_exit=False)
tracer_provider.add_span_processor(Ends())
provider = of.configure(exporters=[], store="memory:", tracer_provider=tracer_provider)

@of.capture
def abandoned():
    yield 1
    yield 2

@of.capture
def exhausted():
    yield 1
    yield 2

stream, other = abandoned(), exhausted()
next(stream), next(other)
child = os.fork()
if child == 0:
    del stream
    gc.collect()
    provider.force_flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("the child is gone", flush=True)
list(other)
del stream
gc.collect()
provider.force_flush()
"""


def test_a_forked_child_does_not_end_the_streams_of_its_parent() -> None:
    """
    What the child collects is the parent's still: its span ends there, once.
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert ["the child is gone", "True exhausted", "True abandoned"] == ran.stdout.splitlines()
    assert "Traceback" not in ran.stderr


OTHER_CONTEXT = '''
import threading
from opentelemetry.context.context import Context, _RuntimeContext

class ThreadContext(_RuntimeContext):
    """Keeps the current context for each thread, and gives tokens of its own."""

    def __init__(self):
        self.here = threading.local()

    def attach(self, context):
        before = self.get_current()
        self.here.context = context
        return before

    def get_current(self):
        return getattr(self.here, "context", Context())

    def detach(self, token):
        self.here.context = token
'''
IN_OTHER_CONTEXT = """
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
import otel_feedback as of

provider = of.configure(exporters=[], store="memory:", tracer_provider=TracerProvider(shutdown_on_exit=False))

@of.capture(key="message_id")
def answer(message_id):
    return of.current_handle().is_valid

print(type(context.attach(context.Context())).__name__)
print(answer("m-1"), of.current_handle(), provider.handle_for_key("m-1").is_valid)
"""


def test_capture_uses_whatever_context_opentelemetry_does(tmp_path: Path) -> None:
    """
    Where `OTEL_PYTHON_CONTEXT` names an implementation with other tokens a call is inside of it, and left again.
    """
    (tmp_path / "thread_context.py").write_text(OTHER_CONTEXT)
    (tmp_path / "thread_context-1.0.dist-info").mkdir()
    (tmp_path / "thread_context-1.0.dist-info" / "METADATA").write_text("Name: thread_context\nVersion: 1.0\n")
    (tmp_path / "thread_context-1.0.dist-info" / "entry_points.txt").write_text(
        "[opentelemetry_context]\nthreads = thread_context:ThreadContext\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "OTEL_PYTHON_CONTEXT": "threads",
    }
    ran = subprocess.run(
        [sys.executable, "-c", IN_OTHER_CONTEXT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=environment,
    )

    assert ["Context", "True None True"] == ran.stdout.splitlines()


# --- capture_span ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_block_is_captured(
    is_async: bool, provider: of.FeedbackProvider, spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """
    The block's handle is that of its span, with the name and the attributes that were given; keys are bound by hand.
    """

    async def block() -> of.FeedbackHandle:
        async with of.capture_span("answer", model="gpt") as handle:
            assert handle == of.current_handle()
            of.bind_key(handle, "m-1")
        return handle

    def sync_block() -> of.FeedbackHandle:
        with of.capture_span("answer", model="gpt") as handle:
            assert handle == of.current_handle()
            of.bind_key(handle, "m-1")
        return handle

    handle = asyncio.run(block()) if is_async else sync_block()

    (span,) = spans.get_finished_spans()
    assert ("answer", {"model": "gpt"}) == (span.name, span.attributes)
    assert [span_id(span)] * 2 == [handle.span_id, provider.handle_for_key("m-1").span_id]
    assert of.current_handle() is None


def test_a_block_may_have_an_attribute_of_any_name(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    An attribute may be called `self`, and the name may be given by keyword.
    """
    with of.capture_span(name="answer", self=1):
        pass

    assert [("answer", {"self": 1})] == [(span.name, span.attributes) for span in spans.get_finished_spans()]


def test_a_block_without_a_name_has_a_plain_one(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    A block that nobody named is named after what captured it.
    """
    with of.capture_span():
        pass

    assert ["capture_span"] == [span.name for span in spans.get_finished_spans()]


def test_a_failing_block_ends_as_an_error(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    The exception passes through the block, and its span has it.
    """
    with pytest.raises(ValueError, match="broken"), of.capture_span():
        raise ValueError("broken")

    assert [trace.StatusCode.ERROR] == [span.status.status_code for span in spans.get_finished_spans()]


def test_one_instance_may_be_nested(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    The same object entered inside of itself is two calls, one in the other.
    """
    block = of.capture_span("block")

    with block as outer:
        with block as inner:
            assert inner == of.current_handle()
        assert outer == of.current_handle()

    assert [inner.span_id, outer.span_id] == [span_id(span) for span in spans.get_finished_spans()]
    assert outer.root_span_id == inner.root_span_id


def test_one_instance_may_serve_many_tasks(provider: of.FeedbackProvider, spans: InMemorySpanExporter) -> None:
    """
    Tasks that enter the same object one after the other, and leave it in that order, each end their own call.
    """
    block = of.capture_span("block")
    ended: dict[str, str] = {}

    async def serve(entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with block as handle:
            entered.set()
            await leave.wait()
            assert handle == of.current_handle()
        assert of.current_handle() is None
        ended[handle.span_id] = span_id(spans.get_finished_spans()[-1])

    async def main() -> None:
        first, second, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        one = asyncio.create_task(serve(first, go))
        await first.wait()
        other_go = asyncio.Event()
        other = asyncio.create_task(serve(second, other_go))
        await second.wait()
        go.set()
        await one
        other_go.set()
        await other

    asyncio.run(main())

    assert 2 == len(ended)
    assert list(ended) == list(ended.values())


def test_a_block_left_in_another_context_ends_all_the_same(
    provider: of.FeedbackProvider, spans: InMemorySpanExporter
) -> None:
    """
    A web framework's dependency enters a block in one context and leaves it in another: its span ends, once.
    """
    block = of.capture_span("block")
    contextvars.copy_context().run(block.__enter__)
    contextvars.copy_context().run(block.__exit__, None, None, None)
    block.__exit__(None, None, None)

    assert ["block"] == [span.name for span in spans.get_finished_spans()]


# --- current_handle ----------------------------------------------------------------------------------------------


def test_there_is_no_current_handle_outside(provider: of.FeedbackProvider) -> None:
    """
    Before, between and after captured calls there is none, in the same thread.
    """
    seen = [of.current_handle()]
    for _ in range(2):
        CALLABLES["plain"]("q", message_id="m")
        seen.append(of.current_handle())

    assert [None] * 3 == seen


def test_a_task_that_outlives_its_call_is_outside(provider: of.FeedbackProvider) -> None:
    """
    A child task inherits the call it was started in, but not beyond that call's end: then it is in the one around.
    """
    seen: list[of.FeedbackHandle | None] = []

    async def child(started: asyncio.Event, go: asyncio.Event) -> None:
        seen.append(of.current_handle())
        started.set()
        await go.wait()
        seen.append(of.current_handle())

    @of.capture
    async def inner(started: asyncio.Event, go: asyncio.Event) -> tuple[of.FeedbackHandle | None, asyncio.Task[None]]:
        task = asyncio.create_task(child(started, go))
        await started.wait()
        return of.current_handle(), task

    async def main() -> list[of.FeedbackHandle | None]:
        started, go = asyncio.Event(), asyncio.Event()
        handle, task = await inner(started, go)
        go.set()
        await task
        async with of.capture_span("around") as around:
            started, go = asyncio.Event(), asyncio.Event()
            second, task = await inner(started, go)
            go.set()
            await task
        return [handle, None, second, around]

    assert asyncio.run(main()) == seen


def test_a_reused_thread_remembers_no_call(provider: of.FeedbackProvider) -> None:
    """
    A pool's thread that ran a captured call, and a thread that was given a finished one's context, are in none.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(CALLABLES["plain"], "q", message_id="m-1").result()
        after = pool.submit(of.current_handle).result()
        with of.capture_span("block"):
            inherited = contextvars.copy_context()
            inside = pool.submit(inherited.run, of.current_handle).result()
        late = pool.submit(inherited.run, of.current_handle).result()

    assert (None, True, None) == (after, inside is not None, late)


# --- collect_handles ---------------------------------------------------------------------------------------------


def test_everything_in_a_context_is_collected_child_tasks_included(
    provider: of.FeedbackProvider, tracer_provider: TracerProvider
) -> None:
    """
    Captured calls and LLM spans come in the order of their starts, of child tasks too, and know their ends by then.
    """
    tracer = tracer_provider.get_tracer("app")

    @of.capture
    async def answer() -> of.FeedbackHandle | None:
        with tracer.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
            await asyncio.sleep(0)
        return of.current_handle()

    async def main() -> tuple[of.FeedbackHandle | None, list[of.FeedbackHandle], of.FeedbackHandle | None]:
        with of.collect_handles() as collected:
            assert collected.last is None
            handle = await asyncio.create_task(answer())
        await answer()
        return handle, list(collected), collected.last

    handle, collected, last = asyncio.run(main())

    assert handle is not None
    assert last is not None
    assert [replace(handle, ended_at=collected[0].ended_at), last] == collected
    assert all(each.ended_at is not None for each in collected)
    assert "chat" == last.attributes["gen_ai.operation.name"]


def test_another_requests_handles_are_not_collected(provider: of.FeedbackProvider) -> None:
    """
    Of requests that are served at the same time each collects its own, and an outer collection has all inside of it.
    """

    @of.capture
    async def answer() -> str:
        await asyncio.sleep(0)
        handle = of.current_handle()
        assert handle is not None
        return handle.span_id

    async def serve() -> tuple[list[str], list[str]]:
        with of.collect_handles() as collected:
            ids = [await answer(), await answer()]
        return ids, [handle.span_id for handle in collected]

    async def main() -> tuple[list[tuple[list[str], list[str]]], int]:
        with of.collect_handles() as everything:
            served = list(await asyncio.gather(*(serve() for _ in range(5))))
        return served, len(everything)

    served, count = asyncio.run(main())

    assert [ids for ids, _ in served] == [collected for _, collected in served]
    assert 10 == count


def test_a_collection_shows_what_it_has(provider: of.FeedbackProvider) -> None:
    """
    The representation of a collection lists its handles, and it is indexed like any sequence.
    """
    with of.collect_handles() as collected, of.capture_span() as handle:
        pass

    assert f"<CollectedHandles [{collected.last!r}]>" == repr(collected)
    assert replace(handle, ended_at=collected[0].ended_at) == collected[0]


# --- Braintrust's own processor ----------------------------------------------------------------------------------


def test_captured_spans_have_what_the_destinations_want_to_see(
    tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """
    The first destination that asks for an attribute sets it, the caller's own wins, and the handle keeps it.
    """

    class Wishing(of.ConsoleFeedbackExporter):
        def __init__(self, name: str, parent: str) -> None:
            super().__init__(name=name)
            self.span_attributes = {"braintrust.parent": parent}

    of.configure(
        exporters=[Wishing("a", "project_name:a"), Wishing("b", "project_name:b")],
        store="memory:",
        tracer_provider=tracer_provider,
        settings=SETTINGS,
    )
    with of.capture_span() as handle:
        pass
    with of.capture_span(**{"braintrust.parent": "project_name:own"}) as other:
        pass

    assert ["project_name:a", "project_name:own"] == [
        (span.attributes or {})["braintrust.parent"] for span in spans.get_finished_spans()
    ]
    assert ["project_name:a", "project_name:own"] == [each.attributes["braintrust.parent"] for each in (handle, other)]


def test_what_runs_inside_of_an_ended_call_does_not_reach_it() -> None:
    """
    Of nested calls only those that still run are answered, innermost first.
    """
    handle = of.FeedbackHandle(trace.SpanContext(1, 1, is_remote=False))
    outer = _correlate.Call(handle)
    middle = _correlate.Call(handle, parent=outer, has_ended=True)
    inner = _correlate.Call(handle, parent=middle)

    assert [inner, outer] == list(inner.enclosing())
