"""What a function hands out before it is done: a stream, an awaitable, a manager of one; each step of it in one place.

A span that is current while a generator waits at its `yield` is current for whoever consumes it. So the steps run in
a `contextvars.Context` of their own, which is entered for each single step and left after it, in whichever task or
thread the step is made. What the body attaches and has not detached yet is found there again at its next step, where
its tokens are good; the consumer never sees it. All other context variables go back and forth at each step, as if the
body ran in its consumer's context, which is what Python does.

This file does not know what a captured call is: only that somebody wants to hear of items and of the end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import sys
import threading
import types
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from contextvars import Context, ContextVar, Token, copy_context
from functools import lru_cache, partial
from typing import Any

_NOWHERE = object()

# Classes that are made for streams; a program has a few types of streams, and a test's mocks have one type each.
MAX_CLASSES = 256


class Place:
    """Where the steps of one stream are made.

    Args:
        where: the context of the steps.

        own: the variable that never goes back and forth.
    """

    __slots__ = ("_acquire", "_own", "_release", "_set_inside", "_set_outside", "_where")

    def __init__(self, where: Context, own: ContextVar[Any] | None) -> None:
        self._where = where
        self._own = own
        lock = threading.Lock()
        self._acquire, self._release = lock.acquire, lock.release
        # By what we have set a variable that was not set, which is the only way to unset it again.
        self._set_inside: dict[ContextVar[Any], Token[Any]] = {}
        self._set_outside: dict[ContextVar[Any], Token[Any]] = {}

    def run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Make a step."""
        # In the middle of a step nobody else can enter: what a second step at once means is the stream's own affair.
        # This runs for each item, and the name of the argument would cost as much as the lock.
        if not self._acquire(False):
            return step(*arguments)
        try:
            before = self._carry_in()
            try:
                return self._where.run(step, *arguments)
            finally:
                self._carry_out(before)
        finally:
            self._release()

    def _carry_in(self) -> Context:
        """Let the stream see what its consumer has set or unset since; answer how it is now."""
        where, own, here = self._where, self._own, copy_context()
        for variable, value in here.items():
            if variable is not own and where.get(variable, _NOWHERE) is not value:
                _remember(self._set_inside, where.run(variable.set, value))
        if self._set_inside:
            for variable in [each for each in self._set_inside if each not in here]:
                where.run(_unset, self._set_inside.pop(variable))
        return where.copy()

    def _carry_out(self, before: Context) -> None:
        """Let the consumer see what the step has set or unset, as it would without us."""
        where, own = self._where, self._own
        for variable, value in where.items():
            if variable is not own and before.get(variable, _NOWHERE) is not value:
                _remember(self._set_outside, variable.set(value))
        if self._set_outside:
            for variable in [each for each in self._set_outside if each not in where]:
                _unset(self._set_outside.pop(variable))


class BorrowedPlace(Place):
    """The consumer's own context, for a function that has left something attached in its caller's.

    Its tokens are good nowhere else, if they are there. So the variable alone is exchanged for each step.
    """

    __slots__ = ("_current",)

    def __init__(self, own: ContextVar[Any]) -> None:
        super().__init__(copy_context(), own)
        self._current = own.get()

    def run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Make a step."""
        own: Any = self._own
        before = own.get()
        own.set(self._current)
        try:
            return step(*arguments)
        finally:
            self._current = own.get()
            own.set(before)


def _remember(tokens: dict[ContextVar[Any], Token[Any]], token: Token[Any]) -> None:
    """Keep what unsets a variable that was not set before."""
    if token.old_value is Token.MISSING:
        tokens[token.var] = token


def _unset(token: Token[Any]) -> None:
    """Unset a variable, unless this is another context than the one where we set it."""
    with suppress(ValueError):
        token.var.reset(token)


class Steps:
    """Who hears of the steps of one stream.

    Args:
        place: where they are made.
    """

    __slots__ = ("place",)

    def __init__(self, place: Place) -> None:
        self.place = place

    def has_item(self, item: Any) -> None:
        """Hear of an item."""
        raise NotImplementedError

    def has_result(self, result: Any) -> Any:
        """Hear of the result that was awaited; answer what stands in for it."""
        raise NotImplementedError

    def has_ended(self, error: BaseException | None) -> None:
        """Hear of the end, or of another one after it."""
        raise NotImplementedError

    def was_dropped(self) -> None:
        """Hear of the end in what may be a finaliser."""
        raise NotImplementedError

    def is_left_to_loop(self) -> None:
        """Hear that an event loop sees to the end from now on."""
        raise NotImplementedError

    def again(self) -> Steps:
        """Answer who hears of the steps after the stream was collected; if nothing does, that is the end."""
        raise NotImplementedError

    def later(self, action: Callable[[], None]) -> None:
        """Have something done soon, outside of any finaliser."""
        raise NotImplementedError

    @property
    def is_in(self) -> bool:
        """Whether the caller is where the steps are made, in the block of a manager."""
        raise NotImplementedError

    def go_in(self) -> None:
        """Bring the caller to where the steps are made."""
        raise NotImplementedError

    def go_out(self) -> None:
        """Bring the caller back; the steps go on to be made where it was."""
        raise NotImplementedError


# --- which results are still to come -----------------------------------------------------------------------------


def kind_of(result: Any) -> str | None:
    """Tell how there is more to come of a result: of a `stream`, of a `future`; `None` where it is all.

    A stream iterates, or is awaited, or is a manager of one.
    """
    kind: Any = type(result)
    # A mock has whatever it is asked for, and a test wants it back as it is.
    mock = sys.modules.get("unittest.mock")
    if mock is not None and isinstance(result, mock.NonCallableMock):
        return None
    if hasattr(kind, "__next__") or hasattr(kind, "__anext__"):
        return "stream"
    if asyncio.isfuture(result) or isinstance(result, concurrent.futures.Future):
        return "future"
    enters = hasattr(kind, "__enter__") or hasattr(kind, "__aenter__")
    return "stream" if hasattr(kind, "__await__") or (enters and _can_only_be_entered(kind)) else None


@lru_cache(maxsize=MAX_CLASSES)
def _can_only_be_entered(kind: Any) -> bool:
    """Tell a manager of a stream, which has no other use, from a connection, a lock or an image that closes itself."""
    return all(name.startswith("_") for name in dir(kind))


# --- the proxy ---------------------------------------------------------------------------------------------------


class Captured:
    """A stand-in for a stream that makes its steps in their place; it looks like what it stands for."""

    __slots__ = ("__weakref__", "_otel_feedback_held", "_otel_feedback_is_known", "_otel_feedback_steps")

    def __init__(self, held: list[Any], steps: Any) -> None:
        object.__setattr__(self, "_otel_feedback_held", held)
        object.__setattr__(self, "_otel_feedback_steps", steps)
        # Whether the event loop need not be told of it any more.
        object.__setattr__(self, "_otel_feedback_is_known", not inspect.isasyncgen(held[0]))

    @property
    def _otel_feedback_stream(self) -> Any:
        return self._otel_feedback_held[0]

    @property  # type: ignore[misc]  # `isinstance` asks it, after the type itself
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]  # nobody sets it
        # Which may be a stand-in itself: instrumentations make them, too.
        return self._otel_feedback_stream.__class__  # type: ignore[no-any-return]  # whatever it says that it is

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_otel_feedback_"):
            raise AttributeError(name)  # what is being collected has lost them
        value = getattr(self._otel_feedback_stream, name)
        # Such a stand-in has some of its methods only when they are asked for.
        return partial(_METHODS[name], self) if name in _METHODS else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._otel_feedback_stream, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._otel_feedback_stream, name)

    def __dir__(self) -> list[str]:
        return dir(self._otel_feedback_stream)

    def __repr__(self) -> str:
        return repr(self._otel_feedback_stream)

    def __str__(self) -> str:
        return str(self._otel_feedback_stream)

    def __hash__(self) -> int:
        return hash(self._otel_feedback_stream)

    def __eq__(self, other: object) -> Any:
        return self._otel_feedback_stream == bare(other)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let a copy be one of the stream alone: nobody's call goes on in it."""
        return self._otel_feedback_stream.__reduce_ex__(protocol)


def proxy(held: list[Any], steps: Steps) -> Any:
    """Stand in for the stream that is in a list, which whoever lets go of it may clear."""
    stream = held[0]
    kind: Any = type(stream)
    # A generator that `types.coroutine` marked is awaited.
    return _class_for(kind, inspect.isgenerator(stream) and inspect.isawaitable(stream))(held, steps)


def let_go(held: list[Any], place: Place) -> None:
    """Let go of a stream where its tokens are good: Python closes it, and the generators that it holds, right there.

    In its place is left one that has ended, for who closes its own streams when it is collected itself.

    The collector of cycles would not do it there: it calls the finalisers of all that it found, in the order in which
    it found it. That is from the proxy on to what it holds, or the order in which objects were made, if they are new.
    So both have a finaliser that comes here: the proxy, and something that is made before the stream.
    """
    if not _is_over(held[0]):
        streams, held[0] = held[:], _nothing()
        place.run(streams.clear)


def _is_over(stream: Any) -> bool:
    """Tell whether this is a generator or a coroutine without a frame: nothing is left of it."""
    frame = _FRAMES.get(type(stream))
    return frame is not None and getattr(stream, frame) is None


def _nothing() -> Generator[Any, Any, None]:
    """Yield nothing."""
    yield from ()


def steps_of(stream: Any) -> Steps | None:
    """Answer where a stream makes its steps, if we stand in for it."""
    return stream._otel_feedback_steps if issubclass(type(stream), Captured) else None  # noqa: SLF001 (ours)


def bare(stream: Any) -> Any:
    """Answer what we stand in for, or the object itself."""
    return stream._otel_feedback_stream if issubclass(type(stream), Captured) else stream  # noqa: SLF001 (ours)


def _end_by(self: Captured, error: BaseException, *, closes: bool = False) -> None:
    """Say that a step has ended a stream, and how, unless it may go on.

    A generator goes on if it has its frame still: it was in the middle of another step. Any other asynchronous iterator
    may, after somebody ceased to wait for its next item.
    """
    stream = self._otel_feedback_stream
    if type(stream) in _FRAMES:
        goes_on = not _is_over(stream)
    else:
        goes_on = isinstance(error, asyncio.CancelledError) and hasattr(type(stream), "__anext__") and not closes
    if not goes_on:
        is_end = isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit))
        self._otel_feedback_steps.has_ended(None if is_end else error)


_FRAMES: Mapping[type, str] = {
    types.GeneratorType: "gi_frame",
    types.AsyncGeneratorType: "ag_frame",
    types.CoroutineType: "cr_frame",
}


def _has_item(self: Captured, item: Any) -> Any:
    """Take an item."""
    self._otel_feedback_steps.has_item(item)
    return item


def _has_closed(self: Captured, result: Any) -> Any:
    """Take the answer of what closes a stream, which may have to be awaited first."""
    if inspect.isawaitable(result):
        return _AwaitedStep(self, lambda: result, (), _has_closed)
    self._otel_feedback_steps.has_ended(None)
    return result


def _has_entered(self: Captured, entered: Any) -> Any:
    """Answer what came out of a stream that was entered: our stand-in for itself, mostly."""
    return self if entered is self._otel_feedback_stream else entered


def _step(name: str, then: Callable[[Captured, Any], Any]) -> Callable[..., Any]:
    """Make the method that makes one step."""

    def step(self: Captured, *arguments: Any, **options: Any) -> Any:
        method = _introduced(self, name)
        try:
            result = self._otel_feedback_steps.place.run(partial(method, **options) if options else method, *arguments)
        except BaseException as error:
            _end_by(self, error)
            raise
        return then(self, result)

    return step


def _awaited_step(name: str, then: Callable[[Captured, Any], Any]) -> Callable[..., Any]:
    """Make the method that makes one step which is awaited."""

    def step(self: Captured, *arguments: Any) -> _AwaitedStep:
        return _AwaitedStep(self, _introduced(self, name), arguments, then)

    return step


class _AwaitedStep:
    """A step while it is awaited (PEP 492): what a method answers, resumed in the place of the steps.

    It is no coroutine function's, because one of these would not pass on what is thrown into it before it started: a
    loop that closes in the middle of `aclose()` does that.
    """

    __slots__ = ("_arguments", "_captured", "_iterator", "_method", "_then")

    def __init__(
        self,
        captured: Captured,
        method: Callable[..., Any],
        arguments: tuple[Any, ...],
        then: Callable[[Captured, Any], Any],
    ) -> None:
        self._captured = captured
        self._method = method
        self._arguments = arguments
        self._then = then
        self._iterator: Any = None

    def __await__(self) -> _AwaitedStep:
        return self

    def __iter__(self) -> _AwaitedStep:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    # The interpreter looks for these three at whatever it awaits (PEP 380).

    def send(self, value: Any) -> Any:
        """Go on."""
        return _resume(self._captured, self._then, self._go_on, "send", value)

    def throw(self, *error: Any) -> Any:
        """Go on with an error."""
        return _resume(self._captured, self._then, self._go_on, "throw", *error)

    def close(self) -> None:
        """Go on no further; a step that never began was none, but what closes a stream was called already."""
        if self._iterator is not None or self._then is _has_closed:
            self._captured._otel_feedback_steps.place.run(self._go_on, "close")  # noqa: SLF001 (ours)
            stream = self._captured._otel_feedback_stream  # noqa: SLF001 (ours)
            if type(stream) not in _FRAMES or _is_over(stream):
                self._captured._otel_feedback_steps.was_dropped()  # noqa: SLF001 (ours)

    def _go_on(self, how: str, *arguments: Any) -> Any:
        """Make the next part of the step."""
        if self._iterator is None:
            self._iterator = _iterator_of(self._method, self._arguments)
        return getattr(self._iterator, how)(*arguments)


def _resume(self: Captured, then: Callable[[Captured, Any], Any], go_on: Callable[..., Any], *arguments: Any) -> Any:
    """Go on with what is awaited, in the place of the steps."""
    try:
        return self._otel_feedback_steps.place.run(go_on, *arguments)
    except StopIteration as stop:
        raise StopIteration(then(self, stop.value)) from None
    except BaseException as error:
        _end_by(self, error, closes=then is _has_closed)
        raise


def _iterator_of(method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Answer what `await` would step through: of what a method answers."""
    awaitable = method(*arguments)
    # A generator that `types.coroutine` marked is its own iterator.
    iterator = awaitable if inspect.isgenerator(awaitable) else awaitable.__await__()
    return iterator if hasattr(iterator, "throw") else _delegate(iterator)


def _delegate(iterator: Any) -> Generator[Any, Any, Any]:
    """Give an iterator the methods that a plain one has not."""
    return (yield from iterator)


# --- managers ----------------------------------------------------------------------------------------------------

# They are entered and left where their user is: what one makes current is meant to be current in the block, which is
# inside of the call. Of a stream that comes out of it only the steps are.


def _enter_manager(self: Captured) -> Any:
    """Enter a manager."""
    steps = self._otel_feedback_steps
    try:
        steps.go_in()
        return _from_manager(self, self._otel_feedback_stream.__enter__())
    except BaseException as error:
        steps.has_ended(error)
        raise


async def _aenter_manager(self: Captured) -> Any:
    """Enter a manager, which is awaited."""
    steps = self._otel_feedback_steps
    try:
        steps.go_in()
        return _from_manager(self, await self._otel_feedback_stream.__aenter__())
    except BaseException as error:
        steps.has_ended(error)
        raise


def _from_manager(self: Captured, entered: Any) -> Any:
    """Stand in for the stream that came out of a manager; anything else is used in the block."""
    if entered is self._otel_feedback_stream:
        return self
    if not (hasattr(type(entered), "__next__") or hasattr(type(entered), "__anext__")):
        return entered
    self._otel_feedback_steps.go_out()
    return proxy([entered], self._otel_feedback_steps)


def _leave_manager(self: Captured, *failure: Any) -> Any:
    """Leave a manager."""
    steps, leave = self._otel_feedback_steps, self._otel_feedback_stream.__exit__
    try:
        is_suppressed = leave(*failure) if steps.is_in else steps.place.run(leave, *failure)
    except BaseException as error:
        steps.has_ended(error)
        raise
    steps.has_ended(failure[1] if steps.is_in and not is_suppressed else None)
    return is_suppressed


async def _aleave_manager(self: Captured, *failure: Any) -> Any:
    """Leave a manager, which is awaited."""
    steps, leave = self._otel_feedback_steps, self._otel_feedback_stream.__aexit__
    try:
        is_suppressed = await (leave(*failure) if steps.is_in else _AwaitedStep(self, leave, failure, _as_it_is))
    except BaseException as error:
        steps.has_ended(error)
        raise
    steps.has_ended(failure[1] if steps.is_in and not is_suppressed else None)
    return is_suppressed


def _as_it_is(_: Captured, result: Any) -> Any:
    """Take what a step answers."""
    return result


def _itself(self: Captured) -> Captured:
    """Answer the iterator of a generator."""
    return self


def _has_iterator(self: Captured, iterator: Any) -> Any:
    """Stand in for the iterator of a stream, which mostly is the stream itself."""
    return self if iterator is self._otel_feedback_stream else proxy([iterator], self._otel_feedback_steps)


def _has_result(self: Captured, result: Any) -> Any:
    """Take the result of what was awaited, which is the end unless it is a stream in turn."""
    if result is self._otel_feedback_stream:
        self._otel_feedback_steps.has_ended(None)
        return self
    return self._otel_feedback_steps.has_result(result)


def _await(self: Captured) -> _AwaitedStep:
    """Await a coroutine, or anything else that has a result."""
    stream = self._otel_feedback_stream
    return _AwaitedStep(self, lambda: stream, (), _has_result)


def _part(name: str) -> Callable[..., Any]:
    """Make the method by which an event loop goes on with a coroutine that it was given."""

    def part(self: Captured, *arguments: Any) -> Any:
        return _resume(self, _has_result, getattr(self._otel_feedback_stream, name), *arguments)

    return part


def _let_go(self: Captured) -> None:
    """Let go of a stream that nobody wants any more."""
    held, steps = getattr(self, "_otel_feedback_held", None), getattr(self, "_otel_feedback_steps", None)
    # One that was interrupted while it was made stands in for nothing.
    if held is not None and steps is not None:
        let_go(held, steps.place)


def _forward(name: str) -> Callable[..., Any]:
    """Make a special method that is the stream's own."""

    def forward(self: Captured, *arguments: Any, **options: Any) -> Any:
        return getattr(self._otel_feedback_stream, name)(*arguments, **options)

    return forward


# What makes a step, and how, where the stream's type has it.
_METHODS: Mapping[str, Callable[..., Any]] = {
    **{name: _step(name, _has_item) for name in ("__next__", "send", "throw")},
    **{name: _awaited_step(name, _has_item) for name in ("__anext__", "asend", "athrow")},
    # Clients' streams have a `close` that is awaited, too.
    **{name: _step(name, _has_closed) for name in ("close", "aclose", "__exit__", "__aexit__")},
    "__enter__": _step("__enter__", _has_entered),
    "__aenter__": _awaited_step("__aenter__", _has_entered),
    "__await__": _await,
}
_MANAGER_METHODS: Mapping[str, Callable[..., Any]] = {
    "__enter__": _enter_manager,
    "__exit__": _leave_manager,
    "__aenter__": _aenter_manager,
    "__aexit__": _aleave_manager,
}
_COROUTINE_METHODS: Mapping[str, Callable[..., Any]] = {name: _part(name) for name in ("__next__", "send", "throw")}
# An iterator is its own iterator, mostly; what only makes iterators goes on making them.
_ITERATION = {"__iter__": "__next__", "__aiter__": "__anext__"}
# What is special about a stream's type is forwarded, but for what every class has of its own.
_OWN = {*dir(Captured), "__dict__", "__del__", "__class_getitem__"} - {
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__format__",
}


@lru_cache(maxsize=MAX_CLASSES)
def _class_for(kind: Any, is_awaited: bool) -> type[Captured]:  # noqa: FBT001 (a cache's key)
    """Make the class that stands in for a type: it has just the methods that the type has."""
    names = set(dir(kind))
    special = (name for name in names - _OWN if name.startswith("__") and callable(getattr(kind, name)))
    body: dict[str, Any] = {name: _forward(name) for name in special}
    body |= {name: method for name, method in _METHODS.items() if name in names}
    if names.isdisjoint(("__next__", "__anext__", "__await__")):
        body |= {name: method for name, method in _MANAGER_METHODS.items() if name in names}
    # Of the others the event loop hears by itself.
    if not issubclass(kind, types.AsyncGeneratorType):
        body["__del__"] = _let_go
    if is_awaited or issubclass(kind, types.CoroutineType):
        body |= {name: method for name, method in _COROUTINE_METHODS.items() if name in names} | {"__await__": _await}
    iterators = {name for name, step in _ITERATION.items() if {name, step} <= names}
    body |= {name: _itself if kind in _FRAMES else _step(name, _has_iterator) for name in iterators}
    return type(kind.__name__, (Captured,), {"__slots__": (), "__doc__": kind.__doc__, **body})


# --- asynchronous generators, which their event loop closes ------------------------------------------------------


def _introduced(self: Captured, name: str) -> Callable[..., Any]:
    """Answer a method of the stream; if it is an asynchronous generator's first, the event loop hears of us by it.

    The loop closes those that are left at its end, and those that were collected half-way (PEP 525): that has to
    happen where the steps are made, too, so that our stand-in is what it looks after.
    """
    method = getattr(self._otel_feedback_stream, name)
    if self._otel_feedback_is_known:
        return method  # type: ignore[no-any-return]  # whatever the stream has under that name
    object.__setattr__(self, "_otel_feedback_is_known", True)
    self._otel_feedback_steps.is_left_to_loop()
    return partial(_introduce, self, method)


def _introduce(self: Captured, method: Callable[..., Any], *arguments: Any) -> Any:
    """Make the first step, for which the interpreter asks the hooks."""
    stand_in: Any = self
    firstiter, finalizer = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(
        firstiter=None if firstiter is None else lambda _: firstiter(stand_in),
        finalizer=partial(_collected, self._otel_feedback_steps, finalizer),
    )
    try:
        return method(*arguments)
    finally:
        sys.set_asyncgen_hooks(firstiter, finalizer)


def _collected(steps: Steps, finalizer: Callable[[Any], None] | None, generator: Any) -> None:
    """Close an asynchronous generator that nobody wants any more: by its loop, or here where it has none."""
    if finalizer is None:
        steps.was_dropped()
        _close_at_once(steps, generator.aclose())
        return
    stand_in = proxy([generator], steps.again())
    finalizer(stand_in)
    if not stand_in._otel_feedback_is_known:  # noqa: SLF001 (ours)
        # The loop is closed and does nothing. What the frame holds still has to be let go of where its tokens are good.
        steps.later(partial(steps.place.run, [stand_in].clear))


def _close_at_once(steps: Steps, closing: Any) -> None:
    """Close as far as it goes without waiting; what would have to wait is an error, as without us."""
    with suppress(StopIteration):
        steps.place.run(closing.send, None)
        raise RuntimeError("async generator ignored GeneratorExit")
