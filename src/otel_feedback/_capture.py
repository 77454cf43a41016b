"""Capture: a span for a call, and a handle on it, at the moment of the call.

One guard stands at the boundary to the application, around what happens before and after its own code: capture
never raises into it and never changes what it returns, raises or how it is awaited.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, overload

import wrapt
from opentelemetry import context, trace
from opentelemetry.trace import SpanContext, Status, StatusCode

from otel_feedback import _active
from otel_feedback._correlate import (
    Call,
    CollectedHandles,
    call_in,
    collections_in,
    note_end,
    root_of,
    with_call,
    with_collection,
)
from otel_feedback._handle import FeedbackHandle

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


# --- one captured call -------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Running:
    """A captured call between its start and its end."""

    provider: ActiveProvider
    call: Call
    token: Token[Context]
    # The span that was opened for it; none where the current one is used.
    span: Span | None
    # What names it, where that is known before its end.
    key: str | None = None


def _start(provider: ActiveProvider, name: str, *, opens_span: bool, attributes: Mapping[str, Any]) -> _Running:
    """Open a call, or leave nothing of it behind."""
    before = context.get_current()
    span = None
    try:
        if opens_span:
            span = provider.tracer.start_span(name, attributes={**provider.span_attributes, **attributes})
        return _enter(provider, span)
    except BaseException:
        # A Ctrl-C comes anywhere, also between having become current and knowing it.
        context.attach(before)
        if span is not None:
            span.end()
        raise


def _enter(provider: ActiveProvider, span: Span | None) -> _Running:
    """Give a call its handle and its place in the context."""
    outer = call_in()
    current = context.get_current()
    around = trace.get_current_span(current)
    if span is not None:
        current = trace.set_span_in_context(span, current)
    handle = _handle_of(span or around, provider)
    if span is not None and handle.context.span_id == around.get_span_context().span_id:
        # Without an SDK a tracer passes its parent's span on, which is the caller's: not what was captured here.
        handle = INVALID
    call = Call(handle, parent=outer, newest_start=handle.started_at)
    if handle.is_valid:
        _tell(call, outer, collections_in(current))
    return _Running(provider, call, context.attach(with_call(call, current)), span)


def _tell(call: Call, outer: Call | None, collections: Iterable[CollectedHandles]) -> None:
    """Make a call known to what surrounds it."""
    for collection in collections:
        collection.add(call.handle)
    for enclosing in outer.enclosing() if outer is not None else ():
        enclosing.newest_start = call.newest_start


def _end(running: _Running, error: BaseException | None) -> None:
    """Close a call: its place in the context, then its span, with the error that it ended in."""
    call, span = running.call, running.span
    context.detach(running.token)
    call.has_ended = True
    if span is None:
        return
    try:
        if error is not None:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    finally:
        span.end()
    if call.handle.is_valid:
        note_end(call.handle.context.span_id)
        ended = FeedbackHandle.from_span(span)
        call.handle = replace(call.handle, ended_at=ended.ended_at, attributes=ended.attributes)


def _handle_of(span: Span, provider: ActiveProvider) -> FeedbackHandle:
    """Take the handle of a span that is live in this process; one that is not recording does not know its start."""
    handle = FeedbackHandle.from_span(span)
    started_at = provider.clock.time_unix_nano() if handle.started_at is None else handle.started_at
    return replace(handle, root=root_of(handle.context.span_id), started_at=started_at)


def _bind(running: _Running, key: str, handle: FeedbackHandle) -> None:
    """Bind a call's key, unless an enclosing call has the same one: that one is what the key means."""
    outer = running.call.parent
    while outer is not None:
        if key in outer.keys:
            return
        outer = outer.parent
    if handle.is_valid:
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
    target: Target
    opens_span: bool
    parameter: _Parameter | None
    key_of_result: Callable[[Any], object] | None
    # Whether the function was bound to its instance before it was decorated.
    is_bound: bool

    def begin(self, instance: object, args: Any, kwargs: Any) -> _Running | None:
        """Start a call and bind its key; whatever goes wrong is counted and the call goes on without."""
        provider = _active.for_capture()
        running = None
        try:
            with _active.guarded(provider):
                if provider is not None:
                    running = _start(provider, self.name, opens_span=self.opens_span, attributes={})
            with _active.guarded(provider):
                if running is not None and self.parameter is not None:
                    skipped = int(instance is not None and not self.is_bound)
                    running.key = self.parameter.read(args, kwargs, skipped=skipped)
                    if running.key is not None:
                        _bind(running, running.key, running.call.handle)
        except BaseException as error:
            self.finish(running, error=error)
            raise
        return running

    def finish(self, running: _Running | None, *, result: Any = None, error: BaseException | None = None) -> None:
        """End a call, once, and bind what its key has turned out to be or to mean; whatever goes wrong is counted."""
        if running is None or running.call.has_ended:
            return
        with _active.guarded(running.provider):
            _end(running, error)
        with _active.guarded(running.provider):
            call = running.call
            key, started_at = running.key, call.handle.started_at
            if self.key_of_result is not None and error is None:
                # The calls inside may have bound the same key before: it means the enclosing one.
                key, started_at = _as_key(self.key_of_result(result)), call.newest_start
            if key is not None:
                # Whatever it means now began when the call did, so that the newest call stays what a key means.
                _bind(running, key, replace(_aim(call, self.target), started_at=started_at))


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
def capture(function: F, /) -> F: ...


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
            that is callable. Generators are not supported yet.

        key: the name of a parameter that holds your own id of the answer, or a function that takes the result and
            answers the id. What such a function raises is counted and never reaches the caller.

        name: the span's name.

        target: what the key means once the call is over: the `call` itself, the last `llm` span inside of it, or the
            local `root` span.

        span: whether to open a span; otherwise the current one is captured.

    Raises:
        TypeError: at decoration, when the function has no parameter of the key's name or is a generator function, and
            when an argument is none of the above.
    """
    if function is None:
        return functools.partial(_decorate, key=key, name=name, target=target, span=span)
    return _decorate(function, key=key, name=name, target=target, span=span)


def _decorate(function: F, *, key: Key, name: str | None, target: Target, span: bool) -> F:
    """Wrap a function."""
    if not (key is None or isinstance(key, str) or callable(key)):
        raise TypeError(f"@capture(key=…) takes a parameter's name or a function of the result, not {key!r}")
    if target not in get_args(Target):
        raise TypeError(f"@capture(target=…) is one of {', '.join(get_args(Target))}, not {target!r}")
    plain = _plain(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError("@capture does not support generator functions yet; capture the function that consumes it")
    captured = _Capture(
        name=name or _name_of(function),
        target=target,
        opens_span=span,
        parameter=_parameter_of(function, key) if isinstance(key, str) else None,
        key_of_result=key if callable(key) else None,
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
        result = wrapped(*args, **kwargs)
        captured.finish(running, result=result)
    except BaseException as error:
        captured.finish(running, error=error)
        raise
    return result


async def _call_async(captured: _Capture, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
    """Run a coroutine function as a captured call."""
    running = None
    try:
        running = captured.begin(instance, args, kwargs)
        result = await wrapped(*args, **kwargs)
        captured.finish(running, result=result)
    except BaseException as error:
        captured.finish(running, error=error)
        raise
    return result


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
                if provider is not None:
                    running = _start(provider, self._name, opens_span=True, attributes=self._attributes)
                    self._running.append(running)
        except BaseException as error:
            if running is not None:
                self._end(running, error)
            raise
        return INVALID if running is None else running.call.handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call of this instance that this context is in."""
        call = call_in()
        ours = [running for running in self._running if running.call is call]
        # A generator may be closed in another context than it was started in: then it is the newest.
        for running in ours or self._running[-1:]:
            self._end(running, error)

    def _end(self, running: _Running, error: BaseException | None) -> None:
        """End one call of this instance."""
        # One that was interrupted on its way in may not be listed.
        with suppress(ValueError):
            self._running.remove(running)
        with _active.guarded(running.provider):
            _end(running, error)

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


@contextmanager
def collect_handles() -> Iterator[CollectedHandles]:
    """Gather the handles of all captured calls and LLM spans of this context, child tasks included.

    A concurrent request, in a context of its own, adds nothing.
    """
    collection = CollectedHandles()
    token = context.attach(with_collection(collection))
    try:
        yield collection
    finally:
        context.detach(token)
