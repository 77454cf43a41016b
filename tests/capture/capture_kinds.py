"""Every kind of function that can be captured, all of them around the same few bodies.

A kind is made with a decorator: `@capture`, or one that does nothing, for the run that tells what is right.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from capture_world import BrokenError, IgnoredError, World
from typing_extensions import Self

Decorator = Callable[[Any], Any]
Make = Callable[[Decorator], Callable[..., Any]]


# --- bodies ------------------------------------------------------------------------------------------------------


def answering(world: World, *, fails: bool = False, **_: Any) -> str:
    """Return at once."""
    world.see()
    with world.inner():
        world.see("inner")
        with world.chat():
            world.see("chat")
    world.see()
    if fails:
        raise BrokenError("broken")
    return "result"


def streaming(world: World, *, fails: bool = False, **_: Any) -> Generator[Any, Any, str]:
    """Hold spans of the application's own across yields."""
    try:
        world.see()
        with world.inner():
            world.see("inner")
            world.note("sent", (yield 1))
            world.see("inner")
            with world.chat():
                world.see("chat")
                world.note("sent", (yield 2))
                world.see("chat")
            world.see("inner")
        world.see()
        if fails:
            raise BrokenError("broken")
        try:
            world.note("sent", (yield 3))
        except IgnoredError:
            world.see()
            world.note("sent", (yield "ignored"))
        world.see()
        world.note("sent", (yield from delegated(world)))
        world.see()
    finally:
        world.see()
        world.note("finally")
    return "result"


def delegated(world: World) -> Generator[Any, Any, str]:
    """What a body hands its steps to."""
    world.see()
    with world.inner():
        world.note("sent", (yield 4))
        world.see("inner")
    return "delegated"


async def streaming_async(world: World, *, fails: bool = False, waits: bool = False, **_: Any) -> Any:
    """Hold spans of the application's own across yields, and wait in between."""
    try:
        world.see()
        with world.inner():
            await asyncio.sleep(0)
            world.see("inner")
            world.note("sent", (yield 1))
            world.see("inner")
            with world.chat():
                await asyncio.sleep(0)
                world.see("chat")
                world.note("sent", (yield 2))
                world.see("chat")
            world.see("inner")
        await asyncio.sleep(0)
        world.see()
        if fails:
            raise BrokenError("broken")
        if waits:
            await wait_for_ever(world)
        try:
            world.note("sent", (yield 3))
        except IgnoredError:
            world.see()
            world.note("sent", (yield "ignored"))
        world.see()
    finally:
        world.see()
        world.note("finally")


async def answering_async(world: World, *, fails: bool = False, waits: bool = False, **_: Any) -> str:
    """Hold spans of the application's own while waiting."""
    try:
        world.see()
        with world.inner():
            world.see("inner")
            await asyncio.sleep(0)
            world.see("inner")
            with world.chat():
                await asyncio.sleep(0)
                world.see("chat")
        world.see()
        await asyncio.sleep(0)
        world.see()
        if fails:
            raise BrokenError("broken")
        if waits:
            await wait_for_ever(world)
    finally:
        world.see()
        world.note("finally")
    return "result"


async def wait_for_ever(world: World) -> None:
    """Wait, and let it be known."""
    assert world.waiting is not None
    world.waiting.set()
    await asyncio.Event().wait()


# --- what functions return ---------------------------------------------------------------------------------------


class Items:
    """An iterator and nothing else."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self._body = streaming(world, **options)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._body)


class Stream(Items):
    """A stream as the clients of models have it: an iterator, a context manager, to be closed."""

    response = "the response"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._body.close()


class AsyncItems:
    """An asynchronous iterator and nothing else."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self._body = streaming_async(world, **options)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await self._body.__anext__()


class AsyncStream(AsyncItems):
    """The same as `Stream`, asynchronous; its `close` is a coroutine function as well."""

    response = "the response"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._body.aclose()


class Manager:
    """What opens a stream when it is entered, and closes it when it is left."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world, self._options = world, options
        self._stream: Stream | None = None

    def __enter__(self) -> Stream:
        self.world.see()
        self._stream = Stream(self.world, **self._options)
        return self._stream

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()


class AsyncManager:
    """The same, asynchronous."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world, self._options = world, options
        self._stream: AsyncStream | None = None

    async def __aenter__(self) -> AsyncStream:
        self.world.see()
        await asyncio.sleep(0)
        self._stream = AsyncStream(self.world, **self._options)
        return self._stream

    async def __aexit__(self, *_: object) -> None:
        if self._stream is not None:
            await self._stream.close()


class Later:
    """Something to await that is no coroutine."""

    def __init__(self, world: World, **options: Any) -> None:
        self._world, self._options = world, options

    def __await__(self) -> Generator[Any, Any, str]:
        return answering_async(self._world, **self._options).__await__()


def future_of(world: World, *, fails: bool = False, **_: Any) -> asyncio.Future[str]:
    """A future that somebody else will set."""
    world.see()
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()
    if fails:
        loop.call_soon(future.set_exception, BrokenError("broken"))
    else:
        loop.call_soon(future.set_result, "result")
    return future


# --- how they are written ----------------------------------------------------------------------------------------


def returning(body: Callable[..., Any]) -> Make:
    """A function that returns what another one answers: nothing of it tells what that is."""

    def answer(world: World, message_id: str, **options: Any) -> Any:
        world.see()
        return body(world, **options)

    return lambda decorate: decorate(answer)


def awaited(body: Callable[..., Any]) -> Make:
    """A coroutine function whose result is a stream, as a client's `create(stream=True)`."""

    async def answer(world: World, message_id: str, **options: Any) -> Any:
        world.see()
        await asyncio.sleep(0)
        return body(world, **options)

    return lambda decorate: decorate(answer)


# The last positional argument is the world; before it comes what a method is bound to.


def function_itself() -> Any:
    def answer(*args: Any, message_id: str, **options: Any) -> Any:
        return answering(args[-1], **options)

    return answer


def coroutine_function() -> Any:
    async def answer(*args: Any, message_id: str, **options: Any) -> Any:
        return await answering_async(args[-1], **options)

    return answer


def generator_function() -> Any:
    def answer(*args: Any, message_id: str, **options: Any) -> Any:
        return (yield from streaming(args[-1], **options))

    return answer


def async_generator_function() -> Any:
    # Its body stands here in full: an asynchronous generator cannot hand its steps on.
    async def answer(*args: Any, message_id: str, fails: bool = False, waits: bool = False) -> Any:
        world: World = args[-1]
        try:
            world.see()
            with world.inner():
                world.see("inner")
                world.note("sent", (yield 1))
                await asyncio.sleep(0)
                world.see("inner")
                with world.chat():
                    world.note("sent", (yield 2))
                    await asyncio.sleep(0)
                    world.see("chat")
            world.see()
            if fails:
                raise BrokenError("broken")
            if waits:
                await wait_for_ever(world)
            try:
                world.note("sent", (yield 3))
            except IgnoredError:
                world.see()
                await asyncio.sleep(0)
                world.note("sent", (yield "ignored"))
        finally:
            world.see()
            world.note("finally")

    return answer


def as_function(factory: Callable[[], Any]) -> Make:
    """A function, captured."""
    return lambda decorate: decorate(factory())


def as_partial(factory: Callable[[], Any]) -> Make:
    """A partial of a function, captured."""
    return lambda decorate: decorate(functools.partial(factory()))


def as_method(factory: Callable[[], Any]) -> Make:
    """A captured method, bound."""
    return lambda decorate: type("Agent", (), {"answer": decorate(factory())})().answer


def as_method_in(wrap: Callable[[Any], Any], factory: Callable[[], Any]) -> Make:
    """A class or static method; `@capture` stands below."""
    return lambda decorate: type("Agent", (), {"answer": wrap(decorate(factory()))}).answer  # type: ignore[attr-defined]


def as_method_of(wrap: Callable[[Any], Any], factory: Callable[[], Any]) -> Make:
    """A class or static method; `@capture` stands above."""
    return lambda decorate: type("Agent", (), {"answer": decorate(wrap(factory()))})().answer


def as_object(factory: Callable[[], Any]) -> Make:
    """An object with such a `__call__`, captured."""
    return lambda decorate: decorate(type("Agent", (), {"__call__": factory()})())


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of function, and what can be done with what it returns."""

    make: Make
    can: frozenset[str]
    # Whether it is driven in every place: not where it only is another way to write a kind that is.
    is_everywhere: bool = True


CALL, ITERATE, MANAGER = frozenset({"call", "late"}), frozenset({"next"}), frozenset({"manager"})
GENERATE = ITERATE | {"close", "send"}
# An object that is made of a generator which nobody outside knows of.
OBJECT = ITERATE | {"object"}
STREAM = OBJECT | {"close", "with"}
AITERATE, AMANAGER = frozenset({"anext"}), frozenset({"async manager"})
AGENERATE = AITERATE | {"aclose", "asend"}
AOBJECT = AITERATE | {"async object"}
ASTREAM = AOBJECT | {"async close", "async with"}
AWAITED = frozenset({"awaited"})
FUTURE = frozenset({"await"})
AWAITABLE, COROUTINE = FUTURE | {"by hand"}, FUTURE | {"by hand", "coroutine"}
# The call begins with its first step, not with the call of the function.
LATE = COROUTINE | {"late"}

KINDS: dict[str, Kind] = {
    "function": Kind(as_function(function_itself), CALL),
    "partial of a function": Kind(as_partial(function_itself), CALL, False),
    "callable object": Kind(as_object(function_itself), CALL, False),
    # Iterators.
    "generator function": Kind(as_function(generator_function), GENERATE),
    "partial of a generator function": Kind(as_partial(generator_function), GENERATE, False),
    "generator method": Kind(as_method(generator_function), GENERATE, False),
    "generator class method, capture below": Kind(as_method_in(classmethod, generator_function), GENERATE, False),
    "generator class method, capture above": Kind(as_method_of(classmethod, generator_function), GENERATE, False),
    "generator static method, capture below": Kind(as_method_in(staticmethod, generator_function), GENERATE, False),
    "generator static method, capture above": Kind(as_method_of(staticmethod, generator_function), GENERATE, False),
    "callable object, a generator": Kind(as_object(generator_function), GENERATE, False),
    "function returning a generator": Kind(returning(streaming), GENERATE),
    "function returning an iterator": Kind(returning(Items), OBJECT),
    "function returning a stream": Kind(returning(Stream), STREAM),
    "function returning a manager of a stream": Kind(returning(Manager), MANAGER),
    # Asynchronous iterators.
    "async generator function": Kind(as_function(async_generator_function), AGENERATE),
    "partial of an async generator function": Kind(as_partial(async_generator_function), AGENERATE, False),
    "async generator method": Kind(as_method(async_generator_function), AGENERATE, False),
    "async generator class method, capture below": Kind(
        as_method_in(classmethod, async_generator_function), AGENERATE, False
    ),
    "async generator class method, capture above": Kind(
        as_method_of(classmethod, async_generator_function), AGENERATE, False
    ),
    "async generator static method": Kind(as_method_of(staticmethod, async_generator_function), AGENERATE, False),
    "callable object, an async generator": Kind(as_object(async_generator_function), AGENERATE, False),
    "function returning an async generator": Kind(returning(streaming_async), AGENERATE),
    "function returning an async iterator": Kind(returning(AsyncItems), AOBJECT),
    "function returning an async stream": Kind(returning(AsyncStream), ASTREAM),
    "function returning an async manager of a stream": Kind(returning(AsyncManager), AMANAGER),
    # Streams that are awaited first.
    "coroutine function returning a generator": Kind(awaited(streaming), AWAITED | GENERATE),
    "coroutine function returning a stream": Kind(awaited(Stream), AWAITED | STREAM),
    "coroutine function returning an async generator": Kind(awaited(streaming_async), AWAITED | AGENERATE),
    "coroutine function returning an async stream": Kind(awaited(AsyncStream), AWAITED | ASTREAM),
    "coroutine function returning an async manager": Kind(awaited(AsyncManager), AWAITED | AMANAGER),
    # What is awaited.
    "coroutine function": Kind(as_function(coroutine_function), LATE),
    "partial of a coroutine function": Kind(as_partial(coroutine_function), LATE, False),
    "coroutine method": Kind(as_method(coroutine_function), LATE, False),
    "coroutine class method": Kind(as_method_of(classmethod, coroutine_function), LATE, False),
    "callable object, a coroutine": Kind(as_object(coroutine_function), LATE, False),
    "function returning a coroutine": Kind(returning(answering_async), COROUTINE | {"started"}),
    "function returning an awaitable": Kind(returning(Later), AWAITABLE),
    "function returning a future": Kind(returning(future_of), FUTURE),
}
