"""Streams: each step is made in a place of their own, and they look like what they are to everybody else."""

from __future__ import annotations

import asyncio
import collections.abc
import concurrent.futures
import contextlib
import copy
import gc
import inspect
import io
import itertools
import pickle
import sys
import threading
import types
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextvars import Context, ContextVar, Token, copy_context
from typing import Any

import pytest
from typing_extensions import Self

from otel_feedback import _streams

# What stands for OpenTelemetry's context, and what stands for any variable of an application.
OWN: ContextVar[str] = ContextVar("own", default="the consumer's")
THEIRS: ContextVar[str] = ContextVar("theirs", default="unset")

# What is heard of a stream, as a test writes it down.
Heard = list[tuple[str, object]]


class Ears(_streams.Steps):
    """Hears of a stream, and keeps what is to be done later."""

    def __init__(self, own: ContextVar[Any] | None = OWN) -> None:
        super().__init__(_streams.Place(copy_context(), own))
        self.heard: Heard = []
        self.loops = 0
        self.token: Token[str] | None = None
        self.to_do: list[Callable[[], None]] = []

    def has_item(self, item: Any) -> None:
        self.heard.append(("item", item))

    def has_ended(self, error: BaseException | None) -> None:
        self.heard.append(("end", error))

    def was_dropped(self) -> None:
        self.heard.append(("dropped", None))

    def is_left_to_loop(self) -> None:
        self.loops += 1

    def again(self) -> Ears:
        self.heard.append(("again", None))
        return self

    def has_result(self, result: Any) -> Any:
        self.heard.append(("result", result))
        return result

    def later(self, action: Callable[[], None]) -> None:
        self.to_do.append(action)

    @property
    def is_in(self) -> bool:
        return self.token is not None

    def go_in(self) -> None:
        self.token = OWN.set("the block's")

    def go_out(self) -> None:
        self.place = _streams.Place(copy_context(), OWN)
        assert self.token is not None
        OWN.reset(self.token)
        self.token = None


Wrap = Callable[[Any], Any]


def in_place_of(stream: Any, ears: Ears) -> Any:
    """Stand in for a stream."""
    return _streams.proxy([stream], ears)


@pytest.fixture
def ears() -> Ears:
    """Who hears of the stream that `stand_in` stands for."""
    return Ears()


@pytest.fixture
def stand_in(ears: Ears) -> Wrap:
    """Puts the stand-in in the place of a stream."""
    return lambda stream: in_place_of(stream, ears)


def bare(stream: Any) -> Any:
    """Leave a stream as it is."""
    return stream


def attempt(function: Callable[..., Any], *arguments: Any) -> object:
    """Answer what comes out of a call, or what is raised."""
    try:
        return function(*arguments)
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is compared)
        return type(error), str(error)


def in_a_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call something in a new thread, which has an empty context."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result(10)


def drive(awaitable: Any) -> Any:
    """Await something that never waits, without an event loop and its hooks."""

    async def wait() -> Any:
        return await awaitable

    coroutine = wait()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


# --- where the steps are made ------------------------------------------------------------------------------------


def counting() -> Generator[str, None, None]:
    OWN.set("the body's")
    try:
        yield OWN.get()
        yield OWN.get()
    finally:
        CLOSED_IN.append(OWN.get())


async def counting_async() -> AsyncIterator[str]:
    OWN.set("the body's")
    try:
        yield OWN.get()
        yield OWN.get()
    finally:
        CLOSED_IN.append(OWN.get())


# What was set in `OWN` where a body ended.
CLOSED_IN: list[str] = []


@pytest.fixture(autouse=True)
def _as_at_the_start() -> None:
    """Nothing has ended yet, and what bare generators have set in earlier tests is forgotten."""
    CLOSED_IN.clear()
    OWN.set("the consumer's")
    THEIRS.set("unset")


PLACES: dict[str, Callable[..., Any]] = {
    "here": lambda function, *arguments: function(*arguments),
    "a thread": in_a_thread,
    "an empty context": lambda function, *arguments: Context().run(function, *arguments),
    "a copied context": lambda function, *arguments: copy_context().run(function, *arguments),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ending", ["exhausted", "closed"])
def test_all_steps_are_made_in_one_place(place: str, ending: str, stand_in: Wrap) -> None:
    """
    What the body has attached it finds again at its next step and at its end, wherever that is; the consumer never.
    """
    step = PLACES[place]
    stream = stand_in(counting())
    seen = [step(next, stream), OWN.get(), step(next, stream), OWN.get()]
    step(next, stream, None) if ending == "exhausted" else step(stream.close)

    assert ["the body's", "the consumer's"] * 2 == seen
    assert ["the body's"] == CLOSED_IN


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("ending", ["exhausted", "closed"])
def test_all_awaited_steps_are_made_in_one_place(place: str, ending: str, stand_in: Wrap) -> None:
    """
    An asynchronous generator is stepped, and closed, where it was before, whoever awaits it.
    """
    step = PLACES[place]
    stream = stand_in(counting_async())
    seen = [step(drive, stream.__anext__()), OWN.get(), step(drive, stream.__anext__()), OWN.get()]
    step(drive, anext(stream, None) if ending == "exhausted" else stream.aclose())

    assert ["the body's", "the consumer's"] * 2 == seen
    assert ["the body's"] == CLOSED_IN


def test_what_the_consumer_attaches_is_its_own_affair(stand_in: Wrap) -> None:
    """
    A span that becomes current outside, between two steps, is not current inside.
    """
    stream = stand_in(counting())
    next(stream)
    token = OWN.set("another one")
    inside = next(stream)
    OWN.reset(token)

    assert "the body's" == inside


def talking() -> Generator[str, None, None]:
    yield THEIRS.get()
    THEIRS.set("by the body")
    yield THEIRS.get()
    yield THEIRS.get()


async def talking_async() -> AsyncIterator[str]:
    for item in talking():
        yield item


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("wrap", [bare, lambda stream: in_place_of(stream, Ears())], ids=["bare", "captured"])
def test_other_variables_go_both_ways(is_async: bool, wrap: Wrap) -> None:
    """
    What the body sets the consumer sees after the step, and what the consumer sets the body sees at the next one.
    """
    seen = []

    def consume() -> None:
        stream = wrap(talking_async() if is_async else talking())
        for said in ("by the consumer", None, "by the consumer again"):
            if said is not None:
                THEIRS.set(said)
            seen.append((drive(stream.__anext__()) if is_async else next(stream), THEIRS.get()))

    copy_context().run(consume)

    assert [
        ("by the consumer", "by the consumer"),
        ("by the body", "by the body"),
        ("by the consumer again", "by the consumer again"),
    ] == seen


def test_a_worker_is_not_given_the_requests_variables(stand_in: Wrap) -> None:
    """
    Only what a step has changed goes out to who makes it: a pool's thread does not keep what an earlier step saw.
    """
    stream = stand_in(talking())
    token = THEIRS.set("the request's")

    def work() -> tuple[str, str]:
        return next(stream), THEIRS.get()

    def read() -> tuple[str, str]:
        before = THEIRS.get()
        return before, work()[1]

    first = next(stream)
    THEIRS.reset(token)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        changed = pool.submit(work).result()
    second = in_a_thread(read)

    assert "the request's" == first
    assert ("by the body", "by the body") == changed
    assert ("unset", "unset") == second


def test_a_variable_set_to_what_it_was_stays(stand_in: Wrap) -> None:
    """
    What neither side has changed is neither carried in nor out.
    """
    stream = stand_in(itertools.count())
    variable: ContextVar[object] = ContextVar("variable")
    value = object()
    variable.set(value)
    seen = [next(stream), variable.get() is value, next(stream), variable.get() is value]

    assert [0, True, 1, True] == seen


UNSET: ContextVar[str] = ContextVar("unset")


def setting_for_a_while() -> Iterator[str]:
    yield UNSET.get("unset")
    token = UNSET.set("by the body")
    yield UNSET.get("unset")
    UNSET.reset(token)
    yield UNSET.get("unset")


@pytest.mark.parametrize("wrap", [bare, lambda stream: in_place_of(stream, Ears())], ids=["bare", "captured"])
def test_a_variable_is_unset_again(wrap: Wrap) -> None:
    """
    A value that the body has for a while, across steps, is not left with the consumer.
    """

    def consume() -> list[tuple[str, str]]:
        return [(inside, UNSET.get("unset")) for inside in wrap(setting_for_a_while())]

    assert [(said, said) for said in ("unset", "by the body", "unset")] == Context().run(consume)


@pytest.mark.parametrize("wrap", [bare, lambda stream: in_place_of(stream, Ears())], ids=["bare", "captured"])
def test_the_consumers_variable_is_unset_again(wrap: Wrap) -> None:
    """
    A value that the consumer has for a while, across steps, is not left inside.
    """

    def reading() -> Iterator[str]:
        while True:
            yield UNSET.get("unset")

    def consume() -> list[str]:
        stream = wrap(reading())
        seen = [next(stream)]
        token = UNSET.set("by the consumer")
        seen.append(next(stream))
        UNSET.reset(token)
        return [*seen, next(stream)]

    assert ["unset", "by the consumer", "unset"] == Context().run(consume)


def test_a_variable_that_was_set_elsewhere_stays_there(stand_in: Wrap) -> None:
    """
    A worker that gets a step in which the body unsets a variable keeps its own value of it.
    """
    stream = stand_in(setting_for_a_while())
    context, elsewhere = Context(), Context()
    for _ in range(2):
        context.run(next, stream)
    elsewhere.run(UNSET.set, "the worker's")
    inside = elsewhere.run(next, stream)

    assert ("unset", "by the body", "the worker's") == (inside, context[UNSET], elsewhere[UNSET])


def two_steps_at_once(wrap: Wrap) -> list[object]:
    inside, go_on = threading.Event(), threading.Event()

    def stream() -> Iterator[int]:
        inside.set()
        go_on.wait(10)
        yield 1
        yield 2

    items: Any = wrap(stream())
    first: list[int] = []
    thread = threading.Thread(target=lambda: first.append(next(items)))
    thread.start()
    inside.wait(10)
    second = [
        attempt(next, items),
        attempt(items.send, None),
        attempt(items.throw, KeyError("k")),
        attempt(items.close),
    ]
    go_on.set()
    thread.join(10)
    return [*second, *first, *items]


def test_a_second_step_at_once_is_the_streams_own_affair(ears: Ears, stand_in: Wrap) -> None:
    """
    Two threads in one generator get from Python what they get without us, and its call goes on.
    """
    assert two_steps_at_once(bare) == two_steps_at_once(stand_in)
    assert [("item", 1), ("item", 2), ("end", None)] == ears.heard


def test_two_tasks_may_await_one_iterator(stand_in: Wrap) -> None:
    """
    Steps of a stream that allows several of them at once lie within each other, and each of them comes back.
    """

    class Stream:
        def __init__(self) -> None:
            self.number = 0

        def __aiter__(self) -> Stream:
            return self

        async def __anext__(self) -> int:
            self.number += 1
            number = self.number
            await asyncio.sleep(0)
            return number

    async def main() -> list[int]:
        stream = stand_in(Stream())
        return list(await asyncio.gather(*(anext(stream) for _ in range(3))))

    assert [1, 2, 3] == asyncio.run(main())


# --- what is heard -----------------------------------------------------------------------------------------------


ERROR = ValueError("broken")


def answering() -> Generator[object, object, str]:
    said: object = "nothing"
    for number in itertools.count():
        try:
            said = yield (number, said)
        except KeyError as error:
            said = type(error)
        if said == "break":
            raise ERROR
        if said == "return":
            return "the end"
    raise AssertionError("it never ends")


async def answering_async() -> AsyncIterator[object]:
    stream = answering()
    said: object = None
    while True:
        try:
            said = yield stream.send(said)
        except KeyError as error:
            said = type(error)
        except StopIteration:
            return


def throw(stream: Any, error: BaseException) -> Any:
    return stream.throw(error)


ITEM = (0, "nothing")
STEPS: dict[str, tuple[Callable[[Any], object], Heard]] = {
    "next": (next, [("item", ITEM)]),
    "send": (lambda s: (next(s), s.send("this")), [("item", ITEM), ("item", (1, "this"))]),
    "throw that is caught": (
        lambda s: (next(s), s.throw(KeyError("k"))),
        [("item", ITEM), ("item", (1, KeyError))],
    ),
    "throw that comes out": (lambda s: (next(s), attempt(s.throw, ERROR)), [("item", ITEM), ("end", ERROR)]),
    "throw before the start": (lambda s: (attempt(s.throw, ERROR), attempt(next, s)), [("end", ERROR), ("end", None)]),
    "an error": (lambda s: (next(s), attempt(s.send, "break")), [("item", ITEM), ("end", ERROR)]),
    "a result": (lambda s: (next(s), attempt(s.send, "return")), [("item", ITEM), ("end", None)]),
    "close": (lambda s: (next(s), s.close(), attempt(next, s)), [("item", ITEM), ("end", None), ("end", None)]),
    "close before the start": (lambda s: (s.close(), attempt(next, s)), [("end", None), ("end", None)]),
    "GeneratorExit": (lambda s: (next(s), attempt(s.throw, GeneratorExit())), [("item", ITEM), ("end", None)]),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_items_and_the_end_of_a_generator_are_heard(name: str, ears: Ears, stand_in: Wrap) -> None:
    """
    Each item and each end is heard once, with its error; the program sees what it sees without us.
    """
    program, heard = STEPS[name]

    assert program(answering()) == program(stand_in(answering()))
    assert heard == ears.heard


async def attempt_to(awaitable: Awaitable[Any]) -> object:
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is compared)
        return type(error), str(error)


AWAITED_STEPS: dict[str, tuple[Callable[[Any], list[Any]], Heard]] = {
    "anext": (lambda s: [s.__anext__], [("item", ITEM)]),
    "asend": (lambda s: [s.__anext__, lambda: s.asend("this")], [("item", ITEM), ("item", (1, "this"))]),
    "athrow that is caught": (
        lambda s: [s.__anext__, lambda: s.athrow(KeyError("k"))],
        [("item", ITEM), ("item", (1, KeyError))],
    ),
    "athrow that comes out": (lambda s: [s.__anext__, lambda: s.athrow(ERROR)], [("item", ITEM), ("end", ERROR)]),
    "athrow before the start": (lambda s: [lambda: s.athrow(ERROR)], [("end", ERROR)]),
    "an error": (lambda s: [s.__anext__, lambda: s.asend("break")], [("item", ITEM), ("end", ERROR)]),
    "an end": (lambda s: [s.__anext__, lambda: s.asend("return")], [("item", ITEM), ("end", None)]),
    "aclose": (lambda s: [s.__anext__, s.aclose, s.__anext__], [("item", ITEM), ("end", None), ("end", None)]),
    "aclose before the start": (lambda s: [s.aclose, s.__anext__], [("end", None), ("end", None)]),
}


@pytest.mark.parametrize("name", AWAITED_STEPS)
def test_the_items_and_the_end_of_an_asynchronous_generator_are_heard(name: str, ears: Ears, stand_in: Wrap) -> None:
    """
    What is awaited of a generator is heard when it is there, and the program sees what it sees without us.
    """
    steps, heard = AWAITED_STEPS[name]

    async def run(stream: Any) -> tuple[list[object], Heard]:
        # At its end the loop closes what is left.
        return [await attempt_to(step()) for step in steps(stream)], list(ears.heard)

    assert (asyncio.run(run(answering_async()))[0], heard) == asyncio.run(run(stand_in(answering_async())))


def test_the_result_of_a_generator_goes_to_who_delegates(stand_in: Wrap) -> None:
    """
    `yield from` a captured generator has its result.
    """

    def delegating() -> Generator[object, object, str]:
        return (yield from stand_in(answering()))

    stream = delegating()
    next(stream)

    assert (StopIteration, "the end") == attempt(stream.send, "return")


def test_a_step_of_an_asynchronous_generator_that_was_cancelled_is_its_end(ears: Ears, stand_in: Wrap) -> None:
    """
    A generator that a cancellation came out of is over.
    """

    async def stream() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def main() -> list[object]:
        items = stand_in(stream())
        first = await items.__anext__()
        return [first, await attempt_to(asyncio.wait_for(items.__anext__(), 0.01)), await anext(items, "over")]

    first, _, last = asyncio.run(main())

    assert (1, "over") == (first, last)
    assert [("item", 1), asyncio.CancelledError, ("end", None)] == [
        ears.heard[0],
        type(ears.heard[1][1]),
        ears.heard[2],
    ]


class Slow:
    """An asynchronous iterator that goes on where somebody ceased to wait, as a client's stream does."""

    def __init__(self) -> None:
        self.number = 0
        self.is_closed = False

    def __aiter__(self) -> Slow:
        return self

    async def __anext__(self) -> int:
        self.number += 1
        if self.number == 2:
            await asyncio.Event().wait()
        if self.number > 3:
            raise StopAsyncIteration
        return self.number

    async def close(self) -> str:
        self.is_closed = True
        return "closed"


def test_an_iterator_whose_step_was_cancelled_may_go_on(ears: Ears, stand_in: Wrap) -> None:
    """
    A step of an object that was cancelled is perhaps not the end: an item and the end may follow.
    """

    async def main() -> list[object]:
        items = stand_in(Slow())
        seen: list[object] = [await anext(items)]
        task = asyncio.create_task(attempt_to(items.__anext__()))
        await asyncio.sleep(0)
        task.cancel()
        seen.append(await task)
        return [*seen, await anext(items), await anext(items, "over")]

    assert [1, (asyncio.CancelledError, ""), 3, "over"] == asyncio.run(main())
    assert [("item", 1), ("item", 3), ("end", None)] == ears.heard


def test_a_client_closes_its_stream_by_a_coroutine(ears: Ears, stand_in: Wrap) -> None:
    """
    `close()` that has to be awaited ends the stream when it was awaited, and answers what it answers.
    """

    async def main() -> tuple[object, Heard, bool]:
        stream = Slow()
        items = stand_in(stream)
        closing = items.close()
        return list(ears.heard), await closing, stream.is_closed  # type: ignore[return-value]  # compared below

    assert ([], "closed", True) == asyncio.run(main())
    assert [("end", None)] == ears.heard


def test_a_closing_that_is_given_up_is_given_up_in_silence(stand_in: Wrap) -> None:
    """
    Who closes the coroutine of a `close()` instead of awaiting it hears nothing of it.
    """
    closing = stand_in(Slow()).close()

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        closing.close()
        del closing
        gc.collect()

    assert [] == warned


# --- what is awaited ---------------------------------------------------------------------------------------------


async def coroutine() -> str:
    await asyncio.sleep(0)
    return f"{THEIRS.get()}, in {OWN.get()}"


@types.coroutine
def generator_coroutine() -> Generator[Any, Any, str]:
    yield from asyncio.sleep(0).__await__()
    return f"{THEIRS.get()}, in {OWN.get()}"


class Delegating:
    """Awaited by what a coroutine is awaited by."""

    def __await__(self) -> Generator[Any, Any, str]:
        return coroutine().__await__()


class Plain:
    """Awaited by an iterator that can neither be sent to nor thrown into."""

    def __await__(self) -> Any:
        return iter([None, None])


class OfGenerator:
    """An iterator whose step is a generator that `types.coroutine` has marked."""

    def __aiter__(self) -> OfGenerator:
        return self

    def __anext__(self) -> Any:
        return generator_coroutine()


class OfFuture:
    """An iterator whose step is a future."""

    def __aiter__(self) -> OfFuture:
        return self

    def __anext__(self) -> Any:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "done")
        return future


class OfPlain:
    """An iterator whose step is awaited by a plain iterator."""

    def __aiter__(self) -> OfPlain:
        return self

    def __anext__(self) -> Any:
        return Plain()


AWAITED: dict[str, Callable[[Wrap], Any]] = {
    "a coroutine": lambda wrap: wrap(coroutine()),
    "an object": lambda wrap: wrap(Delegating()),
    "a plain iterator": lambda wrap: wrap(Plain()),
    "a step that is a marked generator": lambda wrap: wrap(OfGenerator()).__anext__(),
    "a step that is a future": lambda wrap: wrap(OfFuture()).__anext__(),
    "a step that is a plain iterator": lambda wrap: wrap(OfPlain()).__anext__(),
}


@pytest.mark.parametrize("name", AWAITED)
@pytest.mark.parametrize("how", ["await", "task", "gather", "wait_for"])
def test_whatever_can_be_awaited_can_be_awaited(name: str, how: str, ears: Ears, stand_in: Wrap) -> None:
    """
    The answer is that of the bare one, however it is awaited, and it is heard.
    """

    async def main(wrap: Wrap) -> object:
        awaited = AWAITED[name](wrap)

        async def wait() -> object:
            return await awaited

        if how == "task":
            return await asyncio.create_task(wait())
        if how == "gather":
            return await asyncio.gather(wait())
        return await (asyncio.wait_for(wait(), 10) if how == "wait_for" else awaited)

    captured = asyncio.run(main(stand_in))

    assert asyncio.run(main(bare)) == captured
    assert [captured[0] if how == "gather" else captured] == [heard for _, heard in ears.heard]  # type: ignore[index]


@pytest.mark.parametrize("run", [asyncio.run, lambda it: asyncio.run(as_task(it))], ids=["run", "create_task"])
def test_a_loop_takes_a_coroutine_for_one(run: Callable[[Any], Any], ears: Ears, stand_in: Wrap) -> None:
    """
    An event loop runs the stand-in of a coroutine as it is.
    """
    assert "unset, in the consumer's" == run(stand_in(coroutine()))
    assert [("result", "unset, in the consumer's")] == ears.heard


async def as_task(awaited: Any) -> Any:
    return await asyncio.create_task(awaited)


COROUTINE_STEPS: dict[str, tuple[Callable[[Any], object], Heard]] = {
    "sent to its end": (
        lambda c: (c.send(None), attempt(c.send, None)),
        [("result", "unset, in the consumer's")],
    ),
    "thrown into": (lambda c: (c.send(None), attempt(c.throw, ERROR)), [("end", ERROR)]),
    "thrown into before the start": (lambda c: attempt(c.throw, ERROR), [("end", ERROR)]),
    "closed": (lambda c: (c.send(None), c.close()), [("end", None)]),
    "closed before the start": (lambda c: c.close(), [("end", None)]),
}


@pytest.mark.parametrize("name", COROUTINE_STEPS)
def test_a_coroutine_that_is_stepped_by_hand(name: str, ears: Ears, stand_in: Wrap) -> None:
    """
    An event loop of another make finds the methods of a coroutine, and gets what it gets without us, in silence.
    """
    program, heard = COROUTINE_STEPS[name]

    assert program(coroutine()) == program(stand_in(coroutine()))
    assert heard == ears.heard


@pytest.mark.parametrize("wrap", [bare, lambda stream: in_place_of(stream, Ears())], ids=["bare", "captured"])
def test_a_coroutine_that_nobody_awaits_is_told_of_once(wrap: Wrap) -> None:
    """
    Python's own warning comes, and comes once.
    """
    awaited = [wrap(coroutine())]

    with pytest.warns(RuntimeWarning) as warned:
        awaited.clear()

    assert ["coroutine 'coroutine' was never awaited"] == [str(each.message) for each in warned]


STARTED = [lambda s: s.__anext__(), lambda s: s.asend(None), lambda s: s.aclose()]


@pytest.mark.parametrize("make", STARTED, ids=["anext", "asend", "aclose"])
@pytest.mark.parametrize("how", ["close", "throw"])
def test_a_step_that_is_given_up_before_it_began(make: Callable[[Any], Any], how: str) -> None:
    """
    A loop that ends takes its steps back, begun or not: they say what the bare ones say.
    """

    def program(wrap: Wrap) -> list[object]:
        stream = wrap(counting_async())
        step = make(stream)
        return [attempt(step.close) if how == "close" else attempt(step.throw, ERROR), drive(anext(stream, "over"))]

    assert program(bare)[0] == program(lambda stream: in_place_of(stream, Ears()))[0]


def test_a_step_that_never_began_ends_nothing(ears: Ears, stand_in: Wrap) -> None:
    """
    What was made and closed without having been awaited was no step.
    """
    stream = stand_in(counting_async())
    stream.__anext__().close()
    item = drive(stream.__anext__())
    drive(stream.aclose())

    assert "the body's" == item
    assert [("item", "the body's"), ("end", None)] == ears.heard


@pytest.mark.parametrize("make", [coroutine, Delegating], ids=["coroutine", "object"])
def test_what_is_awaited_and_closed_half_way_is_over(make: Callable[[], Any], ears: Ears, stand_in: Wrap) -> None:
    """
    A task that is destroyed closes what it awaits: that may be in a finaliser.
    """
    step = stand_in(make()).__await__()
    step.send(None)
    step.close()

    assert [("dropped", None)] == ears.heard


def test_a_step_that_came_too_early_is_closed_without_an_end(ears: Ears, stand_in: Wrap) -> None:
    """
    A second step of an asynchronous generator at once is refused, and giving it up does not end the first one.
    """
    first_go, first_done = [True], []

    @types.coroutine
    def wait() -> Generator[None, None, None]:
        while first_go:
            yield

    async def stream() -> AsyncIterator[int]:
        await wait()
        yield 1

    items = stand_in(stream())
    first, second = items.__anext__(), items.__anext__()
    first.send(None)
    refused = attempt(second.send, None)
    second.close()
    first_go.clear()
    first_done.append(attempt(first.send, None))
    heard = list(ears.heard)
    drive(items.aclose())

    assert (RuntimeError, "anext(): asynchronous generator is already running") == refused
    assert [(StopIteration, "1")] == first_done
    assert [("item", 1)] == heard


def test_an_awaited_step_is_iterated_by_whoever_likes(stand_in: Wrap) -> None:
    """
    The step of a stream is its own iterator, as `yield from` and `next` want it.
    """
    step = stand_in(counting_async()).__anext__()

    assert iter(step) is step
    assert (StopIteration, "the body's") == attempt(next, step)


def test_a_marked_generator_is_awaited_and_iterated(ears: Ears, stand_in: Wrap) -> None:
    """
    What `types.coroutine` makes is awaitable and a generator, and stays both.
    """
    assert "unset, in the consumer's" == asyncio.run(as_awaited(stand_in(generator_coroutine())))
    assert [("result", "unset, in the consumer's")] == ears.heard
    assert [None] == list(stand_in(generator_coroutine()))


def test_a_borrowed_place_exchanges_one_variable_for_each_step() -> None:
    """
    What was set where a stream was made is set again at each step, and the consumer's own is there between them.
    """
    token = OWN.set("the maker's")
    place = _streams.BorrowedPlace(OWN)
    OWN.reset(token)
    seen = [place.run(OWN.get), OWN.get()]
    place.run(OWN.set, "the body's")
    seen += [OWN.get(), place.run(OWN.get), OWN.get()]

    assert ["the maker's", "the consumer's", "the consumer's", "the body's", "the consumer's"] == seen


def test_what_answers_itself_is_over_when_it_was_awaited(ears: Ears, stand_in: Wrap) -> None:
    """
    An object that is awaited for being ready gives its stand-in, and its call has ended.
    """

    class Pool:
        def __await__(self) -> Generator[Any, Any, Pool]:
            yield from asyncio.sleep(0).__await__()
            return self

    pool = stand_in(Pool())

    assert pool is asyncio.run(as_awaited(pool))
    assert [("end", None)] == ears.heard


async def as_awaited(awaited: Any) -> Any:
    return await awaited


# --- managers ----------------------------------------------------------------------------------------------------


class Manager:
    """Enters a stream, as clients' `.stream()` does."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __enter__(self) -> Any:
        return self._stream

    def __exit__(self, *_: object) -> bool:
        CLOSED_IN.append(OWN.get())
        return False

    async def __aenter__(self) -> Any:
        return self._stream

    async def __aexit__(self, *_: object) -> bool:
        return self.__exit__()


class SelfManaging(Manager):
    """A stream that is entered itself, as clients' streams are."""

    def __init__(self) -> None:
        super().__init__(self)
        self.items = iter([1, 2])

    def __iter__(self) -> SelfManaging:
        return self

    def __next__(self) -> int:
        return next(self.items)

    def __aiter__(self) -> SelfManaging:
        return self

    async def __anext__(self) -> int:
        try:
            return next(self.items)
        except StopIteration:
            raise StopAsyncIteration from None


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_is_entered_is_the_stand_in(is_async: bool, ears: Ears, stand_in: Wrap) -> None:
    """
    `with stream as entered` gives what was entered, so that its items are heard; leaving it is the end.
    """
    stream = stand_in(SelfManaging())

    async def consume() -> tuple[bool, list[int]]:
        async with stream as entered:
            return entered is stream, [item async for item in entered]

    def consume_now() -> tuple[bool, list[int]]:
        with stream as entered:
            return entered is stream, list(entered)

    assert (True, [1, 2]) == (drive(consume()) if is_async else consume_now())
    assert [("item", 1), ("item", 2), ("end", None), ("end", None)] == ears.heard
    assert ["the consumer's"] == CLOSED_IN


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_manager_enters_goes_on_in_its_place(is_async: bool, ears: Ears, stand_in: Wrap) -> None:
    """
    The stream that comes out of a manager makes its steps where that was entered, and the block is the consumer's.
    """
    stream = stand_in(Manager(counting_async() if is_async else counting()))

    async def consume() -> Any:
        async with stream as entered:
            return _streams.steps_of(entered) is ears, OWN.get(), await anext(entered)

    def consume_now() -> Any:
        with stream as entered:
            return _streams.steps_of(entered) is ears, OWN.get(), next(entered)

    assert (True, "the consumer's", "the body's") == (drive(consume()) if is_async else consume_now())
    assert ["the body's"] == CLOSED_IN
    assert [("item", "the body's"), ("end", None)] == ears.heard[:2]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_else_a_manager_enters_is_left_as_it_is(is_async: bool, ears: Ears, stand_in: Wrap) -> None:
    """
    A manager of something that is no stream gives just that, and its block is where the steps are made.
    """
    something = object()

    async def consume() -> tuple[object, str]:
        async with stand_in(Manager(something)) as entered:
            return entered, OWN.get()

    def consume_now() -> tuple[object, str]:
        with stand_in(Manager(something)) as entered:
            return entered, OWN.get()

    assert (something, "the block's") == (drive(consume()) if is_async else consume_now())
    assert ["the block's"] == CLOSED_IN
    assert [("end", None)] == ears.heard


def test_a_manager_that_enters_itself_is_the_stand_in(ears: Ears, stand_in: Wrap) -> None:
    """
    A manager that gives itself is left by the block that entered it, once.
    """

    class Itself(Manager):
        def __init__(self) -> None:
            super().__init__(self)

    stream = stand_in(Itself())

    with stream as entered:
        assert entered is stream

    assert [("end", None)] == ears.heard


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_swallowed", [False, True])
def test_the_error_of_a_block_is_its_managers_affair(
    is_swallowed: bool, is_async: bool, ears: Ears, stand_in: Wrap
) -> None:
    """
    An exception in a `with` block goes to the manager, which may swallow it; otherwise it is the call's.
    """

    class Swallowing(Manager):
        def __exit__(self, *_: object) -> bool:
            return is_swallowed

    async def consume() -> None:
        async with stand_in(Swallowing(None)):
            raise ERROR

    def consume_now() -> None:
        with stand_in(Swallowing(None)):
            raise ERROR

    raised = attempt((lambda: drive(consume())) if is_async else consume_now)

    assert (None if is_swallowed else (ValueError, "broken")) == raised
    assert [("end", None if is_swallowed else ERROR)] == ears.heard


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_entered", [False, True])
def test_a_manager_that_fails_is_heard(is_entered: bool, is_async: bool, ears: Ears, stand_in: Wrap) -> None:
    """
    What cannot be entered, or left, ends with that error.
    """

    class Broken(Manager):
        def __enter__(self) -> Any:
            if not is_entered:
                raise ERROR

        def __exit__(self, *_: object) -> bool:
            raise ERROR

        async def __aenter__(self) -> Any:
            return self.__enter__()

    async def consume() -> None:
        async with stand_in(Broken(None)):
            assert is_entered

    def consume_now() -> None:
        with stand_in(Broken(None)):
            assert is_entered

    assert (ValueError, "broken") == attempt((lambda: drive(consume())) if is_async else consume_now)
    assert [("end", ERROR)] == ears.heard


# --- asynchronous generators, which their event loop closes ------------------------------------------------------


@contextlib.contextmanager
def hooks(firstiter: Callable[[Any], None] | None, finalizer: Callable[[Any], None] | None) -> Iterator[None]:
    """Be an event loop to the asynchronous generators that begin inside."""
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter, finalizer)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*before)


@contextlib.contextmanager
def unraisable() -> Iterator[list[object]]:
    """Gather what Python says of exceptions that it can raise nowhere."""
    before, said = sys.unraisablehook, []
    sys.unraisablehook = lambda each: said.append((type(each.exc_value), str(each.exc_value)))
    try:
        yield said
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def noting() -> Iterator[None]:
    try:
        yield
    finally:
        CLOSED_IN.append(OWN.get())


async def holding() -> AsyncIterator[int]:
    OWN.set("the body's")
    with noting():
        yield 1
        yield 2


async def waiting_at_its_end() -> AsyncIterator[int]:
    try:
        yield 1
    finally:
        await asyncio.sleep(0)


def test_the_loop_hears_of_the_stand_in(stand_in: Wrap) -> None:
    """
    What an event loop is told to look after is the stand-in, once, and its hooks stay what they are.
    """
    seen: list[object] = []
    stream = stand_in(counting_async())

    with hooks(seen.append, seen.append):
        before = sys.get_asyncgen_hooks()
        drive(stream.__anext__())
        drive(stream.__anext__())
        after = sys.get_asyncgen_hooks()
    drive(stream.aclose())

    assert [True] == [each is stream for each in seen]
    assert before == after


def test_the_loop_closes_the_stand_in_in_its_place(ears: Ears, stand_in: Wrap) -> None:
    """
    A generator that was collected half-way is given to its loop, whose closing it is heard, and made where it was.
    """
    given: list[Any] = []
    with hooks(None, lambda each: given.append(each.aclose())):
        stream = stand_in(counting_async())
        drive(stream.__anext__())
        del stream
        gc.collect()
    Context().run(drive, given.pop())

    assert ["the body's"] == CLOSED_IN
    assert (("end", None), []) == (ears.heard[-1], ears.to_do)


def test_a_closed_loop_closes_nothing(ears: Ears, stand_in: Wrap) -> None:
    """
    What is collected after its loop was closed is let go of soon, in its place, and not by the finaliser.
    """
    with hooks(None, lambda _: None):
        stream = stand_in(holding())
        drive(stream.__anext__())
        del stream
        gc.collect()
    before = list(CLOSED_IN)
    for action in ears.to_do:
        Context().run(action)
    ears.to_do.clear()

    assert ([], ["the body's"]) == (before, CLOSED_IN)


def test_without_a_loop_a_collected_generator_is_closed_at_once(ears: Ears, stand_in: Wrap) -> None:
    """
    Where nobody has set hooks Python closes what it collects, and so do we, in the place of the steps.
    """
    stream = stand_in(counting_async())
    drive(stream.__anext__())
    del stream
    Context().run(gc.collect)

    assert ["the body's"] == CLOSED_IN
    assert ("dropped", None) in ears.heard


@pytest.mark.parametrize("wrap", [bare, lambda stream: in_place_of(stream, Ears())], ids=["bare", "captured"])
def test_without_a_loop_a_closing_that_waits_is_an_error_that_nobody_gets(wrap: Wrap) -> None:
    """
    Python says that such a generator has ignored its closing.
    """
    with unraisable() as said:
        stream = wrap(waiting_at_its_end())
        drive(stream.__anext__())
        del stream
        gc.collect()

    assert [(RuntimeError, "async generator ignored GeneratorExit")] == said


@pytest.mark.parametrize("ending", ["the loop ends", "it is collected", "it is closed"])
def test_a_real_loop_closes_what_is_left(ending: str, ears: Ears, stand_in: Wrap) -> None:
    """
    `asyncio` ends a suspended generator in its place, whether it is collected before or at the end of the loop.
    """
    left: list[Any] = []

    async def main() -> None:
        left.append(stand_in(counting_async()))
        await anext(left[0])
        if ending == "it is closed":
            await left[0].aclose()
        if ending == "it is collected":
            left.clear()
            gc.collect()
            await asyncio.sleep(0)

    asyncio.run(main())

    assert ["the body's"] == CLOSED_IN
    assert ("end", None) == ears.heard[-1]


def test_a_generator_that_was_never_begun_is_no_loops_affair(ears: Ears, stand_in: Wrap) -> None:
    """
    A stream that nobody has stepped is dropped without a word to the event loop.
    """
    seen: list[object] = []
    with hooks(seen.append, seen.append):
        stand_in(counting_async())
        gc.collect()

    assert ([], [], 0) == (seen, ears.to_do, ears.loops)


# --- what it looks like ------------------------------------------------------------------------------------------


class Rich:
    """A stream with everything that a stream can have, and more."""

    kind = "rich"

    def __init__(self, *items: int) -> None:
        self.items = list(items)
        self.note = "a note"

    def __iter__(self) -> Rich:
        return self

    def __next__(self) -> int:
        if not self.items:
            raise StopIteration
        return self.items.pop(0)

    def __len__(self) -> int:
        return len(self.items)

    def __bool__(self) -> bool:
        return True

    def __call__(self, *arguments: int, **named: int) -> object:
        return arguments, named

    def __getitem__(self, index: int) -> int:
        return self.items[index]

    def __contains__(self, item: int) -> bool:
        return item in self.items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rich) and self.items == other.items

    def __hash__(self) -> int:
        return hash("rich")

    def __str__(self) -> str:
        return f"Rich, of {self.items}"

    def __repr__(self) -> str:
        return f"Rich(*{self.items})"


class Ordered(Rich):
    """A stream that can be put into an order."""

    def __lt__(self, other: Rich) -> bool:
        return self.items < other.items


def outcome(function: Callable[..., Any], *arguments: Any) -> object:
    """Answer what comes out of a call, or the type of what is raised: its text has the full name of C's types."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is compared)
        return type(error)


def closed(stream: Any) -> object:
    closing = stream.close()
    return drive(closing) if inspect.isawaitable(closing) else closing


LOOKS: dict[str, Callable[[Any], object]] = {
    "isinstance": lambda s: [
        isinstance(s, each)
        for each in (
            Rich,
            object,
            str,
            types.GeneratorType,
            types.AsyncGeneratorType,
            types.CoroutineType,
            collections.abc.Iterator,
            collections.abc.Generator,
            collections.abc.AsyncIterator,
            collections.abc.AsyncGenerator,
            collections.abc.Awaitable,
            collections.abc.Coroutine,
            collections.abc.Sized,
            collections.abc.Callable,
            collections.abc.Hashable,
            contextlib.AbstractContextManager,
        )
    ],
    "__class__": lambda s: s.__class__,
    "inspect": lambda s: [
        inspect.isgenerator(s),
        inspect.isasyncgen(s),
        inspect.iscoroutine(s),
        inspect.isawaitable(s),
    ],
    "hasattr": lambda s: [
        hasattr(s, name)
        for name in (
            *("__next__", "send", "throw", "close", "__anext__", "asend", "athrow", "aclose", "__await__", "__enter__"),
            *("__aenter__", "__len__", "__call__", "gi_frame", "ag_frame", "cr_frame", "note", "nothing"),
        )
    ],
    "dir": dir,
    "str": lambda s: str(s).partition(" at 0x")[0],
    "repr": lambda s: repr(s).partition(" at 0x")[0],
    "__doc__": lambda s: s.__doc__,
    "__name__": lambda s: outcome(lambda: s.__name__),
    "callable": callable,
    "len": lambda s: outcome(len, s),
    "bool": bool,
    "call": lambda s: outcome(s, 1),
    "next": lambda s: outcome(next, s),
    "iter": lambda s: outcome(lambda: iter(s) is s),
    "aiter": lambda s: outcome(lambda: aiter(s) is s),
    "item": lambda s: outcome(lambda: s[0]),
    "in": lambda s: outcome(lambda: 2 in s),
    "pickle": lambda s: outcome(lambda: list(pickle.loads(pickle.dumps(s)))),  # noqa: S301 (our own)
    "copy": lambda s: outcome(lambda: list(copy.copy(s))),
    "deepcopy": lambda s: outcome(lambda: list(copy.deepcopy(s))),
    "an attribute": lambda s: outcome(lambda: setattr(s, "note", "another") or s.note),
    "a lost attribute": lambda s: outcome(lambda: delattr(s, "note") or hasattr(s, "note")),
    "weak reference": lambda s: weakref.ref(s)() is s,
    "tee": lambda s: outcome(lambda: [list(each) for each in itertools.tee(s)]),
    "zip": lambda s: outcome(lambda: list(zip(s, "ab", strict=False))),
    "close": lambda s: outcome(closed, s),
}


def items() -> Iterator[int]:
    yield from (1, 2)


async def async_items() -> AsyncIterator[int]:
    yield 1


LOOKERS: dict[str, Callable[[], Any]] = {
    "generator": items,
    "asynchronous generator": async_items,
    "rich": lambda: Rich(1, 2),
    "manager": lambda: Manager(None),
    "slow": Slow,
    "file": lambda: io.StringIO("a\nb\n"),
}


@pytest.mark.parametrize("kind", LOOKERS)
@pytest.mark.parametrize("look", LOOKS)
def test_a_stream_looks_like_what_it_is(kind: str, look: str, stand_in: Wrap) -> None:
    """
    Whatever a program asks of a stream has the answer that the bare one gives.
    """
    assert LOOKS[look](LOOKERS[kind]()) == LOOKS[look](stand_in(LOOKERS[kind]()))


def test_a_stream_that_is_called_takes_what_it_takes(stand_in: Wrap) -> None:
    """
    An object that is a stream and can be called gets its keyword arguments, too.
    """
    assert Rich()(1, two=2) == stand_in(Rich())(1, two=2)


def test_a_coroutine_looks_like_one(stand_in: Wrap) -> None:
    """
    `inspect`, `asyncio` and the abstract types take the stand-in of a coroutine for a coroutine.
    """
    bare_one, captured = coroutine(), stand_in(coroutine())
    seen = [
        (asyncio.iscoroutine(each), inspect.isawaitable(each), isinstance(each, collections.abc.Coroutine), dir(each))
        for each in (bare_one, captured)
    ]
    bare_one.close()
    captured.close()

    assert seen[0] == seen[1]


def test_a_plain_iterator_can_be_copied_and_sent(ears: Ears, stand_in: Wrap) -> None:
    """
    A copy goes on from where the stream is, on its own: it is heard by nobody.
    """
    stream = stand_in(iter([1, 2, 3]))
    next(stream)
    copies = [copy.copy(stream), copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]  # noqa: S301 (our own)

    assert [[2, 3]] * 3 == [list(each) for each in copies]
    assert [None] * 3 == [_streams.steps_of(each) for each in copies]
    assert [("item", 1)] == ears.heard


def test_equality_is_the_streams_own(stand_in: Wrap) -> None:
    """
    A stand-in is equal to what it stands for, to another stand-in of an equal stream, and to nothing else.
    """
    stream, other = Rich(1), Rich(2)
    captured = stand_in(stream)

    assert [True, True, True, False, False] == [
        captured == stream,
        stream == captured,
        captured == stand_in(Rich(1)),
        captured == other,
        captured == "stream",
    ]
    assert hash(stream) == hash(captured)
    assert {captured: 1}[stream] == 1


def test_an_order_is_the_streams_own(stand_in: Wrap) -> None:
    """
    Special methods that only some types have go to the stream.
    """
    assert [True, False] == [stand_in(Ordered(number)) < Ordered(2) for number in (1, 2)]


def test_there_is_one_class_for_each_type(stand_in: Wrap) -> None:
    """
    Classes are made once, and have the name and documentation of what they stand in for.
    """
    one, other, third = (type(stand_in(stream)) for stream in (Rich(1), Rich(2), items()))

    assert one is other
    assert one is not third
    assert ("Rich", Rich.__doc__) == (one.__name__, one.__doc__)


class StandIn:
    """What an instrumentation puts in the place of a stream: it has the stream's methods when they are asked for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return next(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_method_that_a_stand_in_of_others_has_makes_a_step(ears: Ears, stand_in: Wrap) -> None:
    """
    A stream that an instrumentation stands in for is closed in its place by a `close` that its type does not have.
    """
    stream = stand_in(StandIn(counting()))
    next(stream)
    Context().run(stream.close)

    assert ["the body's"] == CLOSED_IN
    assert [("item", "the body's"), ("end", None)] == ears.heard


def test_what_is_let_go_of_is_closed_in_its_place(ears: Ears) -> None:
    """
    A generator that nobody wants any more ends where its steps were made; a stand-in that is left has ended.
    """
    held: list[Any] = [counting()]
    stream = _streams.proxy(held, ears)
    next(stream)
    Context().run(_streams.let_go, held, ears.place)

    assert ["the body's"] == CLOSED_IN
    assert ([], None) == (list(stream), stream.close())


def test_what_was_interrupted_while_it_was_made_has_nothing(stand_in: Wrap) -> None:
    """
    A stand-in that a Ctrl-C has kept from standing in for anything is collected in silence, and has no attribute.
    """
    kind = type(stand_in(items()))

    with unraisable() as said:
        asked = attempt(lambda: kind.__new__(kind).note)

    assert (AttributeError, []) == (asked[0], said)  # type: ignore[index]  # a type and a text


def test_what_we_stand_in_for_is_known() -> None:
    """
    A stand-in tells where it makes its steps and what it stands for; anything else is what it is.
    """
    steps, stream = Ears(), items()
    captured = in_place_of(stream, steps)

    assert (steps, stream) == (_streams.steps_of(captured), _streams.bare(captured))
    assert (None, stream) == (_streams.steps_of(stream), _streams.bare(stream))


class Connection:
    """Is entered, and has another use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def execute(self) -> None: ...


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (items, "stream"),
        (async_items, "stream"),
        (lambda: iter([1]), "stream"),
        (Slow, "stream"),
        (lambda: Manager(None), "stream"),
        (Plain, "stream"),
        (lambda: contextlib.suppress(ValueError), "stream"),
        (concurrent.futures.Future, "future"),
        (lambda: asyncio.Future(loop=asyncio.new_event_loop()), "future"),
        (Connection, None),
        (threading.Lock, None),
        (contextlib.ExitStack, None),
        (lambda: [1], None),
        (lambda: "text", None),
        (lambda: {"a": 1}, None),
        (lambda: None, None),
        (lambda: Slow, None),
        (lambda: items, None),
    ],
)
def test_which_results_are_still_to_come(make: Callable[[], Any], kind: str | None) -> None:
    """
    What iterates, is awaited, or can only be entered has more to come; lists, functions, connections are all there.
    """
    result = make()
    if isinstance(result, asyncio.Future):
        result.get_loop().close()

    assert kind == _streams.kind_of(result)


@pytest.mark.parametrize(
    ("hear", "arguments"),
    [
        ("has_item", (1,)),
        ("has_ended", (None,)),
        ("was_dropped", ()),
        ("has_result", (1,)),
        ("is_left_to_loop", ()),
        ("again", ()),
        ("later", (list,)),
        ("is_in", ()),
        ("go_in", ()),
        ("go_out", ()),
    ],
)
def test_somebody_has_to_hear(hear: str, arguments: tuple[object, ...]) -> None:
    """
    What steps mean is said by a subclass.
    """
    with pytest.raises(NotImplementedError):
        getattr(_streams.Steps(_streams.Place(copy_context(), None)), hear)(*arguments)


def test_without_a_variable_of_their_own_steps_carry_all() -> None:
    """
    Where nothing is to be kept apart every variable goes both ways.
    """

    stream = in_place_of(counting(), Ears(own=None))
    seen = copy_context().run(lambda: (next(stream), OWN.get()))
    stream.close()

    assert ("the body's", "the body's") == seen
