"""Capture: a span for a call, and a handle on it, at the moment of the call.

One guard stands at the boundary to the application, around what happens before and after its own code: capture
never raises into it and never changes what it returns, raises or how it is awaited.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

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
from otel_feedback._dialects import BRAINTRUST_PARENT
from otel_feedback._handle import FeedbackHandle

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from otel_feedback._active import ActiveProvider

F = TypeVar("F", bound=Callable[..., Any])
Key = str | Callable[[Any], object] | None
Target = Literal["call", "llm", "root"]

INVALID = FeedbackHandle(trace.INVALID_SPAN_CONTEXT)


# --- one captured call -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Running:
    """A captured call between its start and its end."""

    provider: ActiveProvider
    call: Call
    token: Token[Context]
    # The span that was opened for it; none where the current one is used.
    span: Span | None


def _start(
    provider: ActiveProvider, name: str, *, opens_span: bool, attributes: Mapping[str, Any], key: str | None
) -> _Running:
    """Open a call: its span, its handle, its place in the context, its key."""
    outer = call_in()
    current = context.get_current()
    if opens_span:
        span: Span | None = provider.tracer.start_span(name, attributes={**provider.span_attributes, **attributes})
        current = trace.set_span_in_context(cast("Span", span), current)
    else:
        span = None
    handle = _handle_of(span or trace.get_current_span(current))
    call = Call(handle, parent=outer, key=key)
    for collection in collections_in(current) if handle.is_valid else ():
        collection.add(handle)
    running = _Running(provider, call, context.attach(with_call(call, current)), span)
    if key is not None:
        _bind(provider, call, key, handle)
    return running


def _end(running: _Running, error: BaseException | None) -> None:
    """Close a call: its place in the context, then its span, with the error that it ended in."""
    running.call.has_ended = True
    context.detach(running.token)
    if running.span is None:
        return
    if isinstance(error, (Exception, asyncio.CancelledError)):
        running.span.record_exception(error)
        running.span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    running.span.end()
    note_end(running.call.handle.context.span_id)
    running.call.handle = replace(running.call.handle, ended_at=getattr(running.span, "end_time", None))


def _handle_of(span: Span) -> FeedbackHandle:
    """Take the handle of a span that is live in this process."""
    own = span.get_span_context()
    attributes = getattr(span, "attributes", None) or {}
    kept = {BRAINTRUST_PARENT: attributes[BRAINTRUST_PARENT]} if BRAINTRUST_PARENT in attributes else {}
    return FeedbackHandle(own, root=root_of(own.span_id), started_at=getattr(span, "start_time", None), attributes=kept)


def _bind(provider: ActiveProvider, call: Call, key: str, handle: FeedbackHandle) -> None:
    """Bind a call's key, unless an enclosing call has the same one: that one is what the key means."""
    outer = call.parent
    while outer is not None:
        if outer.key == key:
            return
        outer = outer.parent
    if handle.is_valid:
        provider.bind_key(handle, key)


def _aim(call: Call, target: Target) -> FeedbackHandle:
    """Choose what a key means once the call is over."""
    if target == "llm" and call.last_llm is not None:
        return call.last_llm
    own = call.handle
    if target == "root" and own.root:
        context_of_root = SpanContext(
            own.context.trace_id, own.root, is_remote=False, trace_flags=own.context.trace_flags
        )
        # It began before the call did; to be the newest under the key it takes the call's own start.
        return replace(own, context=context_of_root, ended_at=None)
    return own


# --- the decorator -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Captured:
    """What `@capture` was told about one function, and how to find its key."""

    key: Key
    name: str
    target: Target
    opens_span: bool
    # Where the key stands among the positional arguments, by whether the function is bound to an instance.
    positions: dict[bool, tuple[int | None, object]] = field(default_factory=dict)

    def begin(self, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> _Running | None:
        """Start a call; whatever goes wrong is counted and the call goes on without."""
        provider = _active.for_capture()
        if provider is None:
            return None
        try:
            key = self._early_key(wrapped, instance, args, kwargs)
            return _start(provider, self.name, opens_span=self.opens_span, attributes={}, key=key)
        except Exception as error:  # noqa: BLE001 (the boundary to the application)
            provider.capture_failed(error)
            return None

    def finish(self, running: _Running | None, *, result: Any = None, error: BaseException | None = None) -> None:
        """End a call; whatever goes wrong is counted."""
        if running is None:
            return
        try:
            _end(running, error)
            key = running.call.key
            if callable(self.key) and error is None:
                key = _as_key(self.key(result))
            if key is not None:
                _bind(running.provider, running.call, key, _aim(running.call, self.target))
        except Exception as failure:  # noqa: BLE001 (the boundary to the application)
            running.provider.capture_failed(failure)

    def _early_key(self, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> str | None:
        """Read the key from the arguments."""
        if not isinstance(self.key, str):
            return None
        if self.key in kwargs:
            return _as_key(kwargs[self.key])
        is_bound = instance is not None
        if is_bound not in self.positions:
            self.positions[is_bound] = _position(wrapped, self.key)
        position, default = self.positions[is_bound]
        return _as_key(args[position] if position is not None and position < len(args) else default)


def _as_key(value: object) -> str | None:
    """Turn an application's id into a key; nothing is no key."""
    return None if value is None else str(value)


def _position(function: Callable[..., Any], parameter: str) -> tuple[int | None, object]:
    """Find where a parameter stands among the positional ones, and its default."""
    parameters = inspect.signature(function).parameters
    if parameter not in parameters:
        return None, None
    found = parameters[parameter]
    default = None if found.default is inspect.Parameter.empty else found.default
    if found.kind is inspect.Parameter.KEYWORD_ONLY:
        return None, default
    return list(parameters).index(parameter), default


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
        TypeError: at decoration, when the function has no parameter of the key's name or is a generator function.
    """
    if function is None:
        return functools.partial(_decorate, key=key, name=name, target=target, span=span)
    return _decorate(function, key=key, name=name, target=target, span=span)


def _decorate(function: F, *, key: Key, name: str | None, target: Target, span: bool) -> F:
    """Wrap a function."""
    plain = _plain(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError("@capture does not support generator functions yet; use capture_span() inside of it")
    if isinstance(key, str):
        _check_parameter(function, key)
    captured = _Captured(key, name or _name_of(function), target, span)
    is_async = inspect.iscoroutinefunction(plain)
    return cast("F", wrapt.FunctionWrapper(function, functools.partial(_call_async if is_async else _call, captured)))


def _call(captured: _Captured, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:
    """Run a function as a captured call."""
    running = captured.begin(wrapped, instance, args, kwargs)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        captured.finish(running, error=error)
        raise
    captured.finish(running, result=result)
    return result


async def _call_async(
    captured: _Captured, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any
) -> Any:
    """Run a coroutine function as a captured call."""
    running = captured.begin(wrapped, instance, args, kwargs)
    try:
        result = await wrapped(*args, **kwargs)
    except BaseException as error:
        captured.finish(running, error=error)
        raise
    captured.finish(running, result=result)
    return result


def _plain(function: Any) -> Any:
    """Find the function whose code runs: inside of partials, bound and class methods, callable objects."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, (staticmethod, classmethod)) or inspect.ismethod(function):
            function = function.__func__
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


def _check_parameter(function: Any, key: str) -> None:
    """Refuse a key that names no parameter."""
    function = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if key not in parameters and not takes_any:
        raise TypeError(f"@capture(key={key!r}): {_name_of(function)} has no parameter {key!r}")


# --- without a decorator -----------------------------------------------------------------------------------------


class capture_span:  # noqa: N801 (it reads as a function, and is one of the public API)
    """Capture a block of code: `with capture_span("answer") as handle:`, or `async with`.

    Always yields a handle; where there is no SDK, or capture is off, it is not valid. Keys are bound by `bind_key`.

    Args:
        name: the span's name.

        attributes: the span's attributes.
    """

    def __init__(self, name: str | None = None, **attributes: Any) -> None:
        self._name = name or "capture_span"
        self._attributes = attributes
        self._running: list[_Running | None] = []

    def __enter__(self) -> FeedbackHandle:
        """Start the call."""
        provider = _active.for_capture()
        running = None
        if provider is not None:
            try:
                running = _start(provider, self._name, opens_span=True, attributes=self._attributes, key=None)
            except Exception as error:  # noqa: BLE001 (the boundary to the application)
                provider.capture_failed(error)
        self._running.append(running)
        return INVALID if running is None else running.call.handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the call."""
        running = self._running.pop()
        if running is None:
            return
        try:
            _end(running, error)
        except Exception as failure:  # noqa: BLE001 (the boundary to the application)
            running.provider.capture_failed(failure)

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
