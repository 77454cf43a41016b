"""Capture: a span for a call, and a handle on it, at the moment of the call.

One guard stands at the boundary to the application, around what happens before and after its own code: capture
never raises into it and never changes what it returns, raises or how it is awaited.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import gc
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, overload

import wrapt
from opentelemetry import context, trace
from opentelemetry.trace import SpanContext, Status, StatusCode

from otel_feedback import _active, _streams
from otel_feedback._correlate import (
    Call,
    CollectedHandles,
    Promise,
    call_in,
    collections_in,
    note_end,
    root_of,
    with_call,
    with_collection,
)
from otel_feedback._handle import FeedbackHandle, is_time

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from typing_extensions import Self

    from otel_feedback._active import ActiveProvider

F = TypeVar("F", bound=Callable[..., Any])
Key = str | Callable[[Any], object] | None
Target = Literal["call", "llm", "root"]

INVALID = FeedbackHandle(trace.INVALID_SPAN_CONTEXT)
# What a call has for a result that has none, or whose items were its results.
NOTHING = object()
NO_ATTRIBUTES: Mapping[str, Any] = MappingProxyType({})


# --- one captured call -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a call's key means once it is over, and how it is read from the result where it is not an argument."""

    target: Target = "call"
    key_of_result: Callable[[Any], object] | None = None


_ITSELF = _Meaning()


@dataclass(slots=True, eq=False)
class _Running:
    """A captured call between its start and its end."""

    provider: ActiveProvider
    call: Call
    collections: tuple[CollectedHandles, ...]
    # What gives its place in the context back; none while it is in no context, between two steps of a stream.
    token: Token[Context] | None
    # The span that was opened for it; none where the current one is used.
    span: Span | None
    meaning: _Meaning
    # Its place in the context, as it was given.
    within: Context
    pid: int
    # What names it, where that is known, and whether the store has it.
    key: str | None = None
    promise: Promise | None = None
    # What it goes on in, and where; this object is made before the stream (see `let_go`).
    place: _streams.Place | None = None
    held: list[Any] = field(default_factory=list)
    is_left_to_loop: bool = False
    # Taken by whoever ends it: a stream may be closed in one thread and exhausted in another. It is set last.
    ending: list[None] = field(default_factory=lambda: [None])

    def __del__(self) -> None:
        """Let go of a stream that nobody wants any more, and end its call, unless it is a forked parent's."""
        # One that was interrupted while it was made has nothing to end.
        ending = getattr(self, "ending", None)
        try:
            if ending and self.held and self.place is not None:
                _streams.let_go(self.held, self.place)
        finally:
            if ending and not self.is_left_to_loop and self.pid == os.getpid():
                _end_soon(self)


def _start(
    provider: ActiveProvider,
    name: str,
    *,
    opens_span: bool = True,
    attributes: Mapping[str, Any] = NO_ATTRIBUTES,
    meaning: _Meaning = _ITSELF,
) -> _Running:
    """Open a call, or leave nothing of it behind."""
    before = context.get_current()
    span = None
    try:
        if opens_span:
            span = provider.tracer.start_span(name, before, attributes={**provider.span_attributes, **attributes})
        return _enter(provider, name, before, span, meaning)
    except BaseException:
        # A Ctrl-C comes anywhere, also between having become current and knowing it.
        context.attach(before)
        if span is not None:
            span.end()
        raise


def _enter(provider: ActiveProvider, name: str, around: Context, span: Span | None, meaning: _Meaning) -> _Running:
    """Give a call its handle and its place in the context."""
    outer = call_in(around)
    call = _call_of(provider, trace.get_current_span(around), span, outer)
    collections: tuple[CollectedHandles, ...] = ()
    if call.known is None:
        collections = collections_in(around)
        for collection in collections:
            collection.add(call.handle, name)
        for enclosing in outer.enclosing() if outer is not None else ():
            enclosing.newest_start = call.newest_start
    within = with_call(call, around if span is None else trace.set_span_in_context(span, around))
    return _Running(provider, call, collections, context.attach(within), span, meaning, within, os.getpid())


def _call_of(provider: ActiveProvider, around: Span, opened: Span | None, outer: Call | None) -> Call:
    """Make the call of a span that was opened for it, or else of the one around; it may turn out to have none."""
    span = around if opened is None else opened
    own = span.get_span_context()
    # Without an SDK a tracer passes its parent's span on, which is the caller's: not what was captured here.
    if not own.is_valid or (opened is not None and own.span_id == around.get_span_context().span_id):
        return Call(INVALID, outer)
    if outer is not None:
        outer.forget_ended()
    # One that is not recording does not know its start.
    started_at = getattr(span, "start_time", None)
    if started_at is None or not is_time(started_at):
        started_at = provider.clock.time_unix_nano()
    return Call(None, outer, span, root_of(own.span_id), started_at, newest_start=started_at)


def _leave(running: _Running) -> None:
    """Give a call's place in the context back."""
    if running.token is not None:
        _detach(running.token)
        running.token = None


def _detach(token: Any) -> None:
    """Give a place in the context back, if this is where it was taken.

    In another context than it was made in a token is of no use, nor a second time, which it comes to when a Ctrl-C
    strikes here: OpenTelemetry's `detach` would log an error.
    """
    if not isinstance(token, contextvars.Token):
        context.detach(token)
        return
    with suppress(ValueError, RuntimeError):
        token.var.reset(token)


def _finish(
    running: _Running | None,
    *,
    result: Any = NOTHING,
    error: BaseException | None = None,
    ended_at: int | None = None,
) -> None:
    """End a call, once, and bind what its key has turned out to be or to mean; whatever goes wrong is counted."""
    if running is None:
        return
    # First of all, as a Ctrl-C may strike in the middle of the rest.
    _leave(running)
    try:
        running.ending.pop()
    except IndexError:
        return
    with _active.guarded(running.provider):
        _end(running, error, ended_at)
    # A call that nobody has asked for its handle yet will be, at its end.
    if (running.promise is None or running.promise.is_taken or running.meaning.target != "call") and (
        running.key is not None or running.meaning.key_of_result is not None
    ):
        with _active.guarded(running.provider):
            key = running.key if result is NOTHING else _read_key(running, result)
            if key is not None:
                _bind(running, key, _meant(running))


def _end_soon(running: _Running) -> None:
    """Have a call ended by a thread of ours: this may be a finaliser, which runs in any thread and under any lock."""
    ended_at = running.provider.clock.time_unix_nano()
    _do_later(running, functools.partial(_finish, running, ended_at=ended_at))


def _do_later(running: _Running, action: Callable[[], None]) -> None:
    """Have something done by whoever has a thread for it: a call's own provider may have been replaced meanwhile.

    Where nobody has one, everything is at its end, and a span that ends in a finaliser is better than none.
    """
    current = _active.get()
    if not (running.provider.later(action) or (current is not None and current.later(action))):
        action()


def _end(running: _Running, error: BaseException | None, ended_at: int | None) -> None:
    """Close a call: its place in the context, then its span, with the error that it ended in.

    What is no `Exception`, as a cancellation, is told and is no error: a person who stops an answer breaks nothing
    (https://github.com/open-telemetry/opentelemetry-python/issues/4484).
    """
    call, span = running.call, running.span
    call.has_ended = True
    if span is None:
        return
    try:
        if error is not None and not isinstance(error, GeneratorExit):
            span.record_exception(error)
        if isinstance(error, Exception):
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    finally:
        if span.is_recording():
            span.end(ended_at)
        if call.known is not INVALID:
            note_end(span.get_span_context().span_id)
            for collection in running.collections:
                collection.add(call.handle)


def _read_key(running: _Running, result: Any) -> str | None:
    """Answer a call's key, reading it from the result, or from an item of it, unless it has one."""
    read = running.meaning.key_of_result
    if running.key is None and read is not None:
        running.key = _as_key(read(result))
    return running.key


def _meant(running: _Running) -> FeedbackHandle:
    """Answer what a call's key means now, which began when the call did, so that the newest call stays what it means.

    The calls inside may have bound the same key before, if it is the result's: then it means the enclosing one.
    """
    call = running.call
    since = call.started_at if running.meaning.key_of_result is None else call.newest_start
    handle = _aim(call, running.meaning.target) if call.has_ended else call.handle
    return handle if handle.started_at == since else replace(handle, started_at=since)


def _is_free(running: _Running, key: str) -> bool:
    """Tell whether no enclosing call has the same key: that one is what the key means then."""
    outer = running.call.parent
    return outer is None or all(key not in enclosing.keys for enclosing in outer.enclosing())


def _promise(running: _Running, key: str) -> None:
    """Bind a call's key at its start."""
    running.key = key
    if running.call.known is None and _is_free(running, key):
        running.promise = running.provider.promise_key(running.call, key)
        running.call.keys.add(key)


def _bind(running: _Running, key: str, handle: FeedbackHandle) -> None:
    """Bind a call's key to what it has turned out to mean."""
    if handle.is_valid and _is_free(running, key):
        running.provider.bind_key(handle, key)
        running.call.keys.add(key)


def _aim(call: Call, target: Target) -> FeedbackHandle:
    """Choose what a key means once the call is over."""
    if target == "llm" and call.last_llm is not None:
        return call.last_llm
    own = call.handle
    if target == "root" and own.root != own.context.span_id:
        context_of_root = SpanContext(
            own.context.trace_id, own.root, is_remote=False, trace_flags=own.context.trace_flags
        )
        return replace(own, context=context_of_root, ended_at=None)
    return own


# --- the decorator -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parameter:
    """The parameter that holds a key: where it stands among the positional arguments, if it does, and its default."""

    name: str
    position: int | None = None
    default: object = None

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, skipped: int) -> str | None:
        """Read the key from a call's arguments, the first of which may have been bound to an instance."""
        position = None if self.position is None else self.position - skipped
        if position is not None and position < len(args):
            return _as_key(args[position])
        return _as_key(kwargs.get(self.name, self.default))


@dataclass(frozen=True, slots=True)
class _Capture:
    """What `@capture` was told about one function."""

    name: str
    opens_span: bool
    parameter: _Parameter | None
    meaning: _Meaning
    # Whether the function was bound to its instance before it was decorated.
    is_bound: bool

    def begin(self, instance: object, args: Any, kwargs: Any) -> _Running | None:
        """Start a call and bind its key; whatever goes wrong is counted and the call goes on without."""
        provider = _active.for_capture()
        if provider is None:
            return None
        running = None
        try:
            with _active.guarded(provider):
                if self.opens_span and not provider.is_tracing:
                    return None
                running = _start(provider, self.name, opens_span=self.opens_span, meaning=self.meaning)
                if self.parameter is not None:
                    key = self.parameter.read(args, kwargs, skipped=int(instance is not None and not self.is_bound))
                    if key is not None:
                        _promise(running, key)
        except BaseException as error:
            _finish(running, error=error)
            raise
        return running


def _as_key(value: object) -> str | None:
    """Turn an application's id into a key; nothing is no key."""
    return None if value is None else str(value)


def _parameter_of(function: Any, name: str) -> _Parameter:
    """Find the parameter that holds the key.

    Raises:
        TypeError: when there is none of that name, or nobody can tell.
    """
    function = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        raise TypeError(f"@capture(key={name!r}): {_name_of(function)} does not tell its parameters") from error
    kinds = {parameter.name: parameter.kind for parameter in parameters.values()}
    kind = kinds.get(name)
    if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        return _Parameter(name, list(parameters).index(name), _default_of(parameters[name]))
    if kind is inspect.Parameter.KEYWORD_ONLY:
        return _Parameter(name, None, _default_of(parameters[name]))
    if inspect.Parameter.VAR_KEYWORD not in kinds.values():
        raise TypeError(f"@capture(key={name!r}): {_name_of(function)} has no parameter {name!r}")
    return _Parameter(name)


def _default_of(parameter: inspect.Parameter) -> object:
    """Answer a parameter's default; having none is the same as `None`: no key."""
    return None if parameter.default is inspect.Parameter.empty else parameter.default


class _BoundCapturedFunction(wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]  # not generic before wrapt 2
    """A captured method, bound; it can be copied and sent to another process as a bound method can."""

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Let pickle look it up at what it is bound to; a static method at its module."""
        if hasattr(self, "__self__"):
            return getattr, (self.__self__, self.__name__)
        return pkgutil.resolve_name, (f"{self.__module__}:{self.__qualname__}",)

    def __copy__(self) -> Self:
        """Answer itself, which nobody can tell from a copy."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Bind it to a copy of what it is bound to, as copying a method does."""
        if hasattr(self, "__self__"):
            return getattr(copy.deepcopy(self.__self__, memo), self.__name__)
        return self


class _CapturedFunction(wrapt.FunctionWrapper):  # type: ignore[type-arg]  # as above
    """A captured function, which can be copied and sent to another process as a function can."""

    __bound_function_wrapper__ = _BoundCapturedFunction

    def __init__(self, wrapped: Any, wrapper: Any, again: Callable[[Any], Any]) -> None:
        super().__init__(wrapped, wrapper)
        # What captures a function as this one was captured.
        self._self_again = again

    def __reduce_ex__(self, protocol: object) -> str | tuple[Any, ...]:
        """Let pickle look it up by its name, as it does with functions; capture again what has no name of its own."""
        return str(self.__qualname__) if self._is_at_its_name() else (self._self_again, (self.__wrapped__,))

    def _is_at_its_name(self) -> bool:
        """Tell whether its qualified name leads to it, and not to what it wraps."""
        try:
            return pkgutil.resolve_name(f"{self.__module__}:{self.__qualname__}") is self
        except (AttributeError, ImportError, ValueError):
            return False

    def __copy__(self) -> Self:
        """Answer itself, as copying a function does."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Answer itself, as copying a function does."""
        return self


@overload
def capture(
    function: F, /, *, key: Key = None, name: str | None = None, target: Target = "call", span: bool = True
) -> F: ...


@overload
def capture(
    *, key: Key = None, name: str | None = None, target: Target = "call", span: bool = True
) -> Callable[[F], F]: ...


def capture(
    function: F | None = None,
    /,
    *,
    key: Key = None,
    name: str | None = None,
    target: Target = "call",
    span: bool = True,
) -> F | Callable[[F], F]:
    """Capture the calls of a function, so that judgements can be joined to them later.

    Each call gets a span, named after the function, that is current while the body runs. With a key, the call can be
    found again from any process, from before its body runs.

    Args:
        function: a function or coroutine function, a method, class method or static method, a partial, or an object
            that is callable. Where it returns a stream (a generator, an iterator, a client's stream object, each
            synchronous or asynchronous), an awaitable or a future, the call ends when that does; where it returns a
            context manager, the block is inside of the call (so capture stands above `@contextmanager`).

        key: the name of a parameter that holds your own id of the answer, or a function that takes the result and
            answers the id; of a stream it takes each item until it answers something. What such a function raises is
            counted and never reaches the caller. Where a decorator adds arguments of its own, capture below it.

        name: the span's name.

        target: what the key means once the call is over: the `call` itself, the last `llm` span inside of it, or the
            local `root` span.

        span: whether to open a span; otherwise the current one is captured.

    Raises:
        TypeError: at decoration, when the function has no parameter of the key's name, and when an argument is none
            of the above.
    """
    if function is None:
        return functools.partial(_decorate, key=key, name=name, target=target, span=span)
    return _decorate(function, key=key, name=name, target=target, span=span)


def _decorate(function: F, *, key: Key, name: str | None, target: Target, span: bool) -> F:
    """Wrap a function."""
    if not (key is None or isinstance(key, str) or callable(key)) or inspect.iscoroutinefunction(key):
        raise TypeError(f"@capture(key=…) takes a parameter's name or a function of the result, not {key!r}")
    if target not in get_args(Target):
        raise TypeError(f"@capture(target=…) is one of {', '.join(get_args(Target))}, not {target!r}")
    plain = _plain(function)
    captured = _Capture(
        name=name or _name_of(function),
        opens_span=span,
        parameter=_parameter_of(function, key) if isinstance(key, str) else None,
        meaning=_Meaning(target, key if callable(key) else None),
        is_bound=hasattr(function, "__self__"),
    )
    call = _call_async if inspect.iscoroutinefunction(plain) else _call
    again = functools.partial(_decorate, key=key, name=name, target=target, span=span)
    return cast("F", _CapturedFunction(function, functools.partial(call, captured), again))


def _call(captured: _Capture, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
    """Run a function as a captured call."""
    running = None
    try:
        running = captured.begin(instance, args, kwargs)
        return _hand_out(running, wrapped(*args, **kwargs))
    except BaseException as error:
        _finish(running, error=error)
        raise


async def _call_async(captured: _Capture, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
    """Run a coroutine function as a captured call."""
    running = None
    try:
        running = captured.begin(instance, args, kwargs)
        return _hand_out(running, await wrapped(*args, **kwargs))
    except BaseException as error:
        _fail(running, error)
        raise


def _fail(running: _Running | None, error: BaseException) -> None:
    """End a call that was awaited; closing a coroutine is no error of it, and mostly a finaliser's doing."""
    if not isinstance(error, GeneratorExit):
        _finish(running, error=error)
    elif running is not None and not running.call.has_ended:
        # Elsewhere something else is current.
        if call_in() is running.call:
            _leave(running)
        _end_soon(running)


# --- what is still to come ---------------------------------------------------------------------------------------


class _StreamedCall(_streams.Steps):
    """Where a captured call goes on, step by step."""

    __slots__ = ("running",)

    def __init__(self, running: _Running, place: _streams.Place) -> None:
        super().__init__(place)
        self.running = running

    def has_item(self, item: Any) -> None:
        """Look for the call's key in an item."""
        running = self.running
        if running.key is None and running.meaning.key_of_result is not None and running.ending:
            with _active.guarded(running.provider):
                key = _read_key(running, item)
                if key is not None:
                    _bind(running, key, _meant(running))

    def has_ended(self, error: BaseException | None) -> None:
        """End the call."""
        _finish(self.running, error=error)

    def was_dropped(self) -> None:
        """End the call, later."""
        _end_soon(self.running)

    def is_left_to_loop(self) -> None:
        """Leave the end to the event loop."""
        self.running.is_left_to_loop = True

    def again(self) -> _StreamedCall:
        """Go on with the call after its stream was collected: Python finalises an object only once."""
        return _StreamedCall(replace(self.running, is_left_to_loop=False, held=[]), self.place)

    @property
    def is_in(self) -> bool:
        """Whether the caller is inside of the call."""
        return self.running.token is not None

    def go_in(self) -> None:
        """Bring the caller into the call, unless it is there or the call is over."""
        if not self.is_in and self.running.ending:
            self.running.token = context.attach(self.running.within)

    def go_out(self) -> None:
        """Bring the caller back; the call goes on where it was."""
        self.place = self.running.place = _place_of(self.running)
        _leave(self.running)

    def has_result(self, result: Any) -> Any:
        """Go on with what was awaited."""
        return _hand_out(self.running, result)

    def later(self, action: Callable[[], None]) -> None:
        """Have something done by a thread of ours."""
        _do_later(self.running, action)


def _hand_out(running: _Running | None, result: Any) -> Any:
    """Answer what the caller gets: with a result that is still to come the call goes on, with any other it ends."""
    if running is None:
        return result
    with _active.guarded(running.provider):
        go_on = _GO_ON.get(_streams.kind_of(result))
        if go_on is not None and running.call.known is not INVALID:
            answer = go_on(running, result)
            _leave(running)
            return answer
    _finish(running, result=result)
    return result


def _as_stream(running: _Running, stream: Any) -> Any:
    """Go on with the call step by step."""
    running.place = place = _place_of(running)
    held = [stream]
    if not inspect.isasyncgen(stream):
        running.held = held
    return _streams.proxy(held, _StreamedCall(running, place))


def _place_of(running: _Running) -> _streams.Place:
    """Answer where the steps of a call go on that is current right now.

    Where another implementation of OpenTelemetry's context is installed, it is not known what to keep apart.
    """
    token: object = running.token
    own = token.var if isinstance(token, contextvars.Token) else None
    if own is not None and context.get_current() is not running.within:
        return _streams.BorrowedPlace(own)
    return _streams.Place(contextvars.copy_context(), own)


def _until_done(running: _Running, future: Any) -> Any:
    """End the call when a future is done, which goes on by itself."""
    future.add_done_callback(functools.partial(_when_done, running))
    return future


_GO_ON: Mapping[str | None, Callable[[_Running, Any], Any]] = {
    "stream": _as_stream,
    "future": _until_done,
}


def _when_done(running: _Running, future: Any) -> None:
    """End a call whose result was a future."""
    error = None
    with _active.guarded(running.provider):
        error = _error_of(future)
    _finish(running, error=error)


def _error_of(future: Any) -> BaseException | None:
    """Answer the error that a future ended in, without taking it from whoever has to see it.

    To ask one of asyncio's for its exception would silence "exception was never retrieved", so what it refers to is
    looked at instead.
    """
    if future.cancelled():
        return asyncio.CancelledError()
    if asyncio.isfuture(future):
        return next((each for each in gc.get_referents(future) if isinstance(each, BaseException)), None)
    return future.exception()  # type: ignore[no-any-return]  # some library's future


def _plain(function: Any) -> Any:
    """Find the function whose code runs: inside of partials, bound and class methods, callable objects.

    Raises:
        TypeError: when there is none.
    """
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, (staticmethod, classmethod)) or inspect.ismethod(function):
            function = function.__func__
        elif not callable(function):
            raise TypeError(f"@capture takes a function, not {function!r}")
        elif not inspect.isroutine(function) and not inspect.isclass(function):
            return type(function).__call__
        else:
            return function


def _name_of(function: Any) -> str:
    """Name a span after a function: its qualified name, without the functions that it was defined in."""
    plain = function.func if isinstance(function, functools.partial) else function
    plain = getattr(plain, "__func__", plain)
    qualified = getattr(plain, "__qualname__", None) or type(plain).__qualname__
    return str(qualified).rpartition("<locals>.")[2]


# --- without a decorator -----------------------------------------------------------------------------------------


class capture_span:  # noqa: N801 (it reads as a function, and is one of the public API)
    """Capture a block of code: `with capture_span("answer") as handle:`, or `async with`.

    Always yields a handle; where there is no SDK, or capture is off, it is not valid. Keys are bound by `bind_key`.
    A generator must not yield inside of the block: until it goes on, its consumer would be inside, too.

    Args:
        name: the span's name.

        attributes: the span's attributes.
    """

    def __init__(self, /, name: str | None = None, **attributes: Any) -> None:
        self._name = name or "capture_span"
        self._attributes = attributes
        # An instance may be entered again inside of itself, and in several tasks at once.
        self._running: list[_Running] = []

    def __enter__(self) -> FeedbackHandle:
        """Start the call."""
        provider = _active.for_capture()
        running = None
        try:
            with _active.guarded(provider):
                if provider is not None and provider.is_tracing:
                    running = _start(provider, self._name, attributes=self._attributes)
                    self._running.append(running)
                    return running.call.handle
        except BaseException as error:
            if running is not None:
                self._end(running, error)
            raise
        return INVALID

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call of this instance that this context is in."""
        call = call_in()
        ours = [running for running in self._running if running.call is call]
        # A generator may be closed in another context than it was started in; of several nobody knows which is meant.
        alone = self._running[:] if len(self._running) == 1 else []
        for running in ours or alone:
            self._end(running, error)

    def _end(self, running: _Running, error: BaseException | None) -> None:
        """End one call of this instance."""
        # One that was interrupted on its way in may not be listed.
        with suppress(ValueError):
            self._running.remove(running)
        _finish(running, error=error)

    async def __aenter__(self) -> FeedbackHandle:
        """Start the call."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call."""
        self.__exit__(kind, error, traceback)


def current_handle() -> FeedbackHandle | None:
    """Answer the handle of the innermost captured call that we are inside of, else `None`; never an earlier call's."""
    call = call_in()
    return None if call is None or not call.handle.is_valid else call.handle


def handle_of(stream: object) -> FeedbackHandle | None:
    """Answer the handle of the captured call whose stream this is, before its first item as well; else `None`."""
    steps = _streams.steps_of(stream)
    return steps.running.call.handle if isinstance(steps, _StreamedCall) else None


@contextmanager
def collect_handles() -> Iterator[CollectedHandles]:
    """Gather the handles of all captured calls and LLM spans of this context, child tasks included.

    A concurrent request, in a context of its own, adds nothing; nor does a thread, unless it is given the context, by
    `contextvars.copy_context().run`, `asyncio.to_thread` or OpenTelemetry's instrumentation of threads. A generator
    must not yield inside of the block, unless it is captured itself: until it goes on, its consumer would be inside.

    Yields:
        A sequence of the handles in the order of the calls' starts, one for each span, with `last`, the newest,
        `by_operation("chat")` and `by_name("answer")`.
    """
    collection = CollectedHandles()
    token: Any = context.attach(with_collection(collection))
    try:
        yield collection
    finally:
        _detach(token)
