"""What is measured beside what: the table, and the two sides of each row.

A side is made for a world that is open, and then called with the keys of a round. A new row is a line of the table and
whichever of its sides is not there yet; one that needs other surroundings brings its own world.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import wrapt
from benchmark_world import SILENT_SCOPE, OpenWorld, World, switched_off, traced, tracer_of, without_sdk
from opentelemetry import context, trace

import otel_feedback as of

if TYPE_CHECKING:
    from benchmark_measure import Side
    from opentelemetry.trace import Tracer

MakeSide = Callable[[World], "Side"]

RESPONSE_ID = "gen_ai.response.id"
# Twelve attributes, as an HTTP client's span has them; none says that it is an LLM call.
TWELVE = {f"app.attribute.{number}": f"value {number}" for number in range(12)}
# What the instrumentation of a client writes at the start of a chat and at its end: with the
# response id, twelve too.
CHAT_START = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.request.max_tokens": 100,
    "server.address": "api.openai.com",
    "server.port": 443,
}
CHAT_END = {
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.response.finish_reasons": ("stop",),
    "gen_ai.usage.input_tokens": 4,
    "gen_ai.usage.output_tokens": 5,
}


# --- functions that are called -----------------------------------------------------------------------------------


def called(function: Callable[..., object]) -> Side:
    """Call a function."""

    async def calls(keys: Sequence[str]) -> object:
        result: object = None
        for key in keys:
            result = function("why?", message_id=key)
        return result

    return calls


def awaited(function: Callable[..., Any]) -> Side:
    """Await a coroutine function."""

    async def calls(keys: Sequence[str]) -> object:
        result: object = None
        for key in keys:
            result = await function("why?", message_id=key)
        return result

    return calls


def consumed(function: Callable[..., Iterator[object]]) -> Side:
    """Take all items of a generator function's."""

    async def calls(keys: Sequence[str]) -> object:
        result: object = None
        for key in keys:
            for item in function("why?", message_id=key):
                result = item
        return result

    return calls


def aconsumed(function: Callable[..., AsyncIterator[object]]) -> Side:
    """Take all items of an async generator function's."""

    async def calls(keys: Sequence[str]) -> object:
        result: object = None
        for key in keys:
            async for item in function("why?", message_id=key):
                result = item
        return result

    return calls


def answer(question: str, *, message_id: str) -> str:
    """The call that does nothing."""
    return message_id


async def aanswer(question: str, *, message_id: str) -> str:
    """The coroutine that does nothing."""
    return message_id


def answers(question: str, *, message_id: str) -> Iterator[str]:
    """The generator of three items."""
    yield message_id
    yield message_id
    yield message_id


async def aanswers(question: str, *, message_id: str) -> AsyncIterator[str]:
    """The async generator of three items."""
    yield message_id
    yield message_id
    yield message_id


def captured(run: Callable[[Any], Side], function: Callable[..., Any]) -> MakeSide:
    """Ours: the function with the decorator."""
    return lambda world: run(of.capture(key="message_id")(function))


@wrapt.decorator
def through_wrapt(wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
    """The least that a decorator of wrapt's can do."""
    return wrapped(*args, **kwargs)


def only_wrapped(world: World) -> Side:
    """Plain: the call through wrapt."""
    return called(through_wrapt(answer))


# --- spans by hand -----------------------------------------------------------------------------------------------


def spanned(world: World) -> Side:
    """Plain: a span around the call."""
    tracer = tracer_of(world.bare)

    def by_hand(question: str, *, message_id: str) -> str:
        with tracer.start_as_current_span("answer"):
            return answer(question, message_id=message_id)

    return called(by_hand)


def aspanned(world: World) -> Side:
    """Plain: a span around the awaited call."""
    tracer = tracer_of(world.bare)

    async def by_hand(question: str, *, message_id: str) -> str:
        with tracer.start_as_current_span("aanswer"):
            return await aanswer(question, message_id=message_id)

    return awaited(by_hand)


def reattached(world: World) -> Side:
    """Plain: a span that is current while the generator runs, and not while its consumer does."""
    tracer = tracer_of(world.bare)

    def by_hand(question: str, *, message_id: str) -> Iterator[str]:
        span = tracer.start_span("answers")
        inside = trace.set_span_in_context(span)
        items = answers(question, message_id=message_id)
        try:
            while True:
                token = context.attach(inside)
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    context.detach(token)
                yield item
        finally:
            span.end()

    return consumed(by_hand)


def areattached(world: World) -> Side:
    """Plain: the same for an async generator."""
    tracer = tracer_of(world.bare)

    async def by_hand(question: str, *, message_id: str) -> AsyncIterator[str]:
        span = tracer.start_span("aanswers")
        inside = trace.set_span_in_context(span)
        items = aanswers(question, message_id=message_id)
        try:
            while True:
                token = context.attach(inside)
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                finally:
                    context.detach(token)
                yield item
        finally:
            span.end()

    return aconsumed(by_hand)


def held(world: World) -> Side:
    """Plain, and wrong: a span that stays current in the consumer."""
    tracer = tracer_of(world.bare)

    def by_hand(question: str, *, message_id: str) -> Iterator[str]:
        with tracer.start_as_current_span("answers"):
            yield from answers(question, message_id=message_id)

    return consumed(by_hand)


def aheld(world: World) -> Side:
    """Plain, and wrong: the same for an async generator."""
    tracer = tracer_of(world.bare)

    async def by_hand(question: str, *, message_id: str) -> AsyncIterator[str]:
        with tracer.start_as_current_span("aanswers"):
            async for item in aanswers(question, message_id=message_id):
                yield item

    return aconsumed(by_hand)


def captured_block(world: World) -> Side:
    """Ours: a captured block."""

    def in_block(question: str, *, message_id: str) -> str:
        with of.capture_span("answer"):
            return answer(question, message_id=message_id)

    return called(in_block)


# --- spans that others make --------------------------------------------------------------------------------------


def client_spans(tracer: Tracer) -> Side:
    """Spans of a client that is no LLM's."""

    async def calls(keys: Sequence[str]) -> object:
        result: object = None
        for key in keys:
            with tracer.start_as_current_span("GET", attributes=TWELVE):
                result = key
        return result

    return calls


def chat(tracer: Tracer, key: str) -> str:
    """One span of a chat client, as its instrumentation writes it."""
    with tracer.start_as_current_span("chat gpt-4o", attributes=CHAT_START) as span:
        span.set_attributes(CHAT_END)
        span.set_attribute(RESPONSE_ID, key)
    return key


def chat_spans(tracer: Tracer) -> Side:
    """Spans of a chat client."""

    async def calls(keys: Sequence[str]) -> object:
        result: object = None
        for key in keys:
            result = chat(tracer, key)
        return result

    return calls


def collected_chat_spans(world: World) -> Side:
    """Ours: the same, each within `collect_handles()`."""
    tracer = tracer_of(world.seen)

    async def calls(keys: Sequence[str]) -> object:
        last: of.FeedbackHandle | None = None
        for key in keys:
            with of.collect_handles() as collected:
                chat(tracer, key)
            last = collected.last
        return None if last is None else last.attributes[RESPONSE_ID]

    return calls


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One path, what it is measured beside, and the ratio to reach, if one was set."""

    name: str
    beside: str
    ours: MakeSide
    plain: MakeSide
    reach: float | None
    opens: OpenWorld = traced
    # What each call leaves behind, on both sides and on ours: spans, and a key of this kind.
    spans: int = 1
    key_kind: str | None = None


_NO_OP = "the SDK with a no-op processor"
_REATTACHED = "hand-written span, context re-attached for each item"
_HELD = "hand-written span, held across the yields: wrong, and cheaper"
_WRAPT = "an empty call through `wrapt`"

ROWS: Sequence[Row] = (
    Row("(how exact this is)", "itself: a hand-written span", spanned, spanned, None),
    Row("`@capture(key=…)`", "hand-written span", captured(called, answer), spanned, 1.00, key_kind="app"),
    Row("the same, `async`", "hand-written span", captured(awaited, aanswer), aspanned, 1.00, key_kind="app"),
    Row("the same, generator", _REATTACHED, captured(consumed, answers), reattached, 1.05, key_kind="app"),
    Row("the same, generator", _HELD, captured(consumed, answers), held, None, key_kind="app"),
    Row("the same, `async` generator", _REATTACHED, captured(aconsumed, aanswers), areattached, 1.05, key_kind="app"),
    Row("the same, `async` generator", _HELD, captured(aconsumed, aanswers), aheld, None, key_kind="app"),
    Row("`@capture(key=…)`, switched off", _WRAPT, captured(called, answer), only_wrapped, 2.00, switched_off, spans=0),
    Row("`@capture(key=…)`, no SDK", _WRAPT, captured(called, answer), only_wrapped, 2.00, without_sdk, spans=0),
    Row(
        "processor: a span that is no LLM call",
        _NO_OP,
        lambda world: client_spans(tracer_of(world.seen)),
        lambda world: client_spans(tracer_of(world.no_op)),
        1.02,
    ),
    Row(
        "processor: a span of a scope that never has any",
        _NO_OP,
        lambda world: client_spans(tracer_of(world.seen, SILENT_SCOPE)),
        lambda world: client_spans(tracer_of(world.no_op, SILENT_SCOPE)),
        1.02,
    ),
    Row(
        "processor: an LLM span with a response id",
        _NO_OP,
        lambda world: chat_spans(tracer_of(world.seen)),
        lambda world: chat_spans(tracer_of(world.no_op)),
        1.08,
        key_kind="response",
    ),
    Row("`capture_span()`", "hand-written span", captured_block, spanned, None),
    Row(
        "`collect_handles()` around one LLM span",
        f"the LLM span alone, {_NO_OP}",
        collected_chat_spans,
        lambda world: chat_spans(tracer_of(world.no_op)),
        None,
        key_kind="response",
    ),
)
