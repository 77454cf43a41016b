"""`FeedbackSpanProcessor`: sees every span of the pipeline and keeps what a judgement may be about."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import wrapt
from opentelemetry import baggage, trace
from opentelemetry.context import get_current
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_feedback import _active, _dialects
from otel_feedback._correlate import (
    COLLECTIONS,
    LIVE,
    MAX_LIVE_SPANS,
    LiveSpan,
    LLMSpan,
    call_in,
    collections_in,
    forget,
    note_end,
)
from otel_feedback._dialects import MARKERS, RESPONSE_ID, SILENT_SCOPES
from otel_feedback._handle import FeedbackHandle, is_time
from otel_feedback.stores import CONVERSATION, RESPONSE

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span
    from opentelemetry.trace import SpanContext

    from otel_feedback._active import ActiveProvider

K = TypeVar("K")
V = TypeVar("V")

# What an LLM span is found again by, and of which kind of key it is.
KEYS: Mapping[str, str] = MappingProxyType({RESPONSE_ID: RESPONSE, _dialects.CONVERSATION_ID: CONVERSATION})

# How many LLM spans are remembered, at least, in order to know a call that is seen twice: it ends twice within
# milliseconds, and a process ends a few hundred calls of models a second at most.
RECENT_SPANS = 500


# --- the processor -----------------------------------------------------------------------------------------------


class FeedbackSpanProcessor(SpanProcessor):
    """Recognises LLM spans of any instrumentation, and tells each span its local root.

    `configure()` installs one. Add one yourself to a pipeline that you build by hand; two in one pipeline do no harm,
    and of two providers each binds the keys. Without a provider of its own it serves whichever is current. It never
    stores prompts or answers, and never raises.

    Args:
        provider: whom it serves; by default the current provider.
    """

    # Both methods run for every span of the application. They are written out, without helpers and context managers,
    # because calling one costs as much as most of what they do.

    def __init__(self, provider: ActiveProvider | None = None) -> None:
        self._own = provider

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note the span's local root and where it was started; collect its handle if it already is an LLM span."""
        provider = self._own or _active.get()
        # Whoever is switched off takes nothing away either: another processor may need it.
        if provider is not None and provider.is_disabled:
            return
        try:
            live = LiveSpan(span, forget)
            live.span_id = span_id = span.get_span_context().span_id
            live.where = where = get_current() if parent_context is None else parent_context
            live.early = live.kept = live.inner = None
            parent = span.parent
            if parent is None or parent.is_remote:
                live.root, live.above = span_id, None
            else:
                live.above = above = LIVE.get(parent.span_id)
                live.root = parent.span_id if above is None else above.root
            if len(LIVE) >= MAX_LIVE_SPANS:
                _forget_oldest()
            if LIVE.setdefault(span_id, live) is live and COLLECTIONS in where:
                _collect_early(span, live)
        except Exception as error:  # noqa: BLE001 (the boundary to the application)
            _failed(provider, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep the handle of an LLM span, and bind its response and conversation ids."""
        provider = self._own or _active.get()
        if provider is not None and provider.is_disabled:
            return
        try:
            context = span.get_span_context()
            if context is None:
                return
            live = LIVE.pop(context.span_id, None)
            scope = span.instrumentation_scope
            attributes = span.attributes
            if (
                (scope is None or scope.name not in SILENT_SCOPES)
                and attributes is not None
                and not MARKERS.isdisjoint(attributes)
            ):
                self._end_llm_span(span, context, live)
            elif live is not None and live.early is not None:
                _take_out(live)
            # Calls that go on and on, each within the last, must not hold each other in memory.
            if live is not None and live.above is not None and live.above.span_id not in LIVE:
                live.above = None
        except Exception as error:  # noqa: BLE001 (the boundary to the application)
            _failed(provider, error)

    def shutdown(self) -> None:
        """Do nothing: feedback outlives the trace's pipeline."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 (nothing to wait for)
        """Answer true: nothing is buffered here."""
        return True

    def _end_llm_span(self, span: ReadableSpan, context: SpanContext, live: LiveSpan | None) -> None:
        """Make a span with the marks of an LLM span known to what surrounds it, and bind its keys."""
        attributes = _plain(span.attributes)
        operation = _dialects.operation_of(attributes)
        # Only a call of a model is worth configuring a provider for: not the first span of any kind.
        provider = None if operation is None else self._own or _active.for_capture()
        if operation is None or provider is None:
            if live is not None:
                _take_out(live)
        elif live is not None:
            found = {**_dialects.handle_attributes(attributes), _dialects.OPERATION: operation}
            parents = (_plain(above.attributes) for parent in live.parents() if (above := parent()) is not None)
            found |= _dialects.inherited_attributes(found, parents, live.where, baggage.get_all(live.where))
            kept = _keep(
                LLMSpan(_handle(span, live.root, found), span.name, collections_in(live.where)), live, provider
            )
            _KEPT.put(context.span_id, (kept, id(provider)))
        elif (known := _KEPT.get(context.span_id)) is not None and known[1] != id(provider):
            # The second processor of a pipeline: the other one has served its own provider.
            _bind(known[0].handle, provider)


# The relay to the current provider: OpenTelemetry cannot remove a processor, so one is installed and never another.
RELAY = FeedbackSpanProcessor()


def _failed(provider: ActiveProvider | None, error: Exception) -> None:
    """Count what went wrong, as everywhere in capture."""
    with _active.guarded(provider):
        raise error


def _forget_oldest() -> None:
    """Make room among the live spans; another thread may do so at the same moment."""
    with suppress(RuntimeError, StopIteration):
        LIVE.pop(next(iter(LIVE)), None)


def _plain(attributes: Any) -> Mapping[str, object]:
    """Copy a span's attributes into a dictionary: each look-up in the SDK's own mapping costs a call of a function."""
    try:
        return attributes.copy()  # type: ignore[no-any-return]  # not of `Mapping`, and ten times as fast as `dict`
    except AttributeError:
        return dict(attributes)


def _handle(span: ReadableSpan, root: int, attributes: dict[str, str]) -> FeedbackHandle:
    """Make the handle of a span, running or ended."""
    start, end = span.start_time, span.end_time
    return FeedbackHandle(
        span.get_span_context(),  # type: ignore[arg-type]  # `on_start` and `on_end` have looked
        root,
        start if is_time(start) else None,
        end if is_time(end) else None,
        MappingProxyType(attributes),
    )


# --- LLM spans ---------------------------------------------------------------------------------------------------


def _collect_early(span: Span, live: LiveSpan) -> None:
    """Collect the handle of a span that says from its start that it is an LLM span: it may be a stream."""
    scope = span.instrumentation_scope
    if scope is not None and scope.name in SILENT_SCOPES:
        return
    attributes = _plain(span.attributes)
    operation = _dialects.operation_of(attributes)
    if operation is not None:
        found = {**_dialects.handle_attributes(attributes), _dialects.OPERATION: operation}
        live.early = _handle(span, live.root, found)
        for collection in collections_in(live.where):
            collection.add(live.early, span.name)


def _take_out(live: LiveSpan) -> None:
    """Take out again what was collected at a span's start: it is no call of its own."""
    if live.early is not None:
        for collection in collections_in(live.where):
            collection.discard(live.early)


def _keep(ended: LLMSpan, live: LiveSpan, provider: ActiveProvider) -> LLMSpan:
    """Capture an LLM span that has ended; answer what is captured of its call.

    A call that two instrumentations see is one call: the span within stays the captured one, whichever ends first.
    """
    around = _ended_around(ended.handle, live)
    known = _ended_within(ended.handle, live) or (None if around is not None else _answered_beside(ended.handle))
    if known is not None:
        _take_out(live)
        is_news = _complete(known, ended)
    else:
        if around is not None:
            _replace(around, ended)
        known, is_news, live.kept = ended, True, ended
        note_end(ended.handle.context.span_id)
    _tell(known, live)
    if is_news:
        _bind(known.handle, provider)
    return known


def _ended_within(handle: FeedbackHandle, live: LiveSpan) -> LLMSpan | None:
    """Find the span of the same call that has ended inside of one."""
    return live.inner if live.inner is not None and _may_be_one(live.inner.handle, handle) else None


def _ended_around(handle: FeedbackHandle, live: LiveSpan) -> LLMSpan | None:
    """Find the span of the same call that is around one and has ended before it, as with some streams."""
    for parent in live.parents():
        around = parent.kept
        if (
            around is not None
            and not around.is_replaced
            and _may_be_one(around.handle, handle)
            and _overlap(around.handle, handle)
        ):
            return around
    return None


def _answered_beside(handle: FeedbackHandle) -> LLMSpan | None:
    """Find the span of the same answer that was captured while this one ran: gateways use an id again, later."""
    known = _ANSWERED.get(_answer(handle))
    return known if known is not None and _overlap(known.handle, handle) else None


def _may_be_one(one: FeedbackHandle, other: FeedbackHandle) -> bool:
    """Tell whether two spans, one within the other, are the same call: unless both have an answer's id of their own."""
    ids = {one.attributes.get(RESPONSE_ID), other.attributes.get(RESPONSE_ID)} - {None}
    return len(ids) < 2


def _overlap(around: FeedbackHandle, within: FeedbackHandle) -> bool:
    """Tell whether a span began before the one around it ended; otherwise it is the next call, in a left context."""
    return (within.started_at or 0) < (around.ended_at or 0)


def _answer(handle: FeedbackHandle) -> tuple[int, str | None]:
    """Name the answer of a call, within its trace."""
    return handle.context.trace_id, handle.attributes.get(RESPONSE_ID)


def _complete(known: LLMSpan, ended: LLMSpan) -> bool:
    """Add to a captured span what only another one of the same call knows; say whether there is any such thing."""
    before = known.handle.attributes
    attributes = {**ended.handle.attributes, **before}
    known.collections += ended.collections
    if len(attributes) == len(before):
        return False
    known.handle = replace(known.handle, attributes=MappingProxyType(attributes))
    return True


def _replace(around: LLMSpan, ended: LLMSpan) -> None:
    """Put a span in the place of the one around it, which ended before it and was captured."""
    around.is_replaced = True
    for collection in around.collections:
        collection.discard(around.handle)
    _complete(ended, around)


def _tell(captured: LLMSpan, live: LiveSpan) -> None:
    """Make a captured LLM span known to what surrounds it."""
    for collection in captured.collections:
        collection.add(captured.handle, captured.name)
    call = call_in(live.where)
    for enclosing in call.enclosing() if call is not None else ():
        enclosing.last_llm = captured.handle
    for parent in live.parents():
        parent.inner = captured
    answer = _answer(captured.handle)
    if answer[1] is not None:
        _ANSWERED.put(answer, captured)


def _bind(handle: FeedbackHandle, provider: ActiveProvider) -> None:
    """Bind the keys that are among an LLM span's attributes."""
    for attribute, kind in KEYS.items():
        if attribute in handle.attributes:
            provider.bind_key(handle, handle.attributes[attribute], kind)


class _Recent(Generic[K, V]):
    """Remembers the newest few hundred values by key.

    In two generations, the older of which is forgotten as a whole: taking the oldest out of a dictionary, one by one,
    costs many times as much.
    """

    def __init__(self) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def put(self, key: K, value: V) -> None:
        """Remember a value."""
        if len(self._young) >= RECENT_SPANS:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def get(self, key: K) -> V | None:
        """Answer a value, if it is still remembered."""
        return self._young.get(key) or self._old.get(key)


# The captured spans, by the trace and the answer's id, and by the id of each span of the call; there with the provider
# that has been served, by its identity, so that nothing keeps it alive.
_ANSWERED: _Recent[tuple[int, str | None], LLMSpan] = _Recent()
_KEPT: _Recent[int, tuple[LLMSpan, int]] = _Recent()


# --- installing --------------------------------------------------------------------------------------------------

_installed: weakref.WeakSet[object] = weakref.WeakSet()
# Reentrant, because a finaliser that opens a span may come in the middle.
_installing = threading.RLock()


def _after_fork() -> None:
    """In a forked child, take a lock that no thread of the parent holds."""
    global _installing  # noqa: PLW0603 (as in _active)
    _installing = threading.RLock()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows forks nothing)
    os.register_at_fork(after_in_child=_after_fork)


def install(tracer_provider: object) -> bool:
    """Let a tracer provider's spans be seen; doing it again does nothing.

    On the proxy that stands for a provider still to be set, it is done as soon as there is one, before its first span.

    The SDK class's own `add_span_processor` is called, because some subclasses (Phoenix's, Arize's) remove their
    exporter in an override of theirs.

    Args:
        tracer_provider: the SDK's, or one that has a method `add_span_processor`.

    Returns:
        Whether it can be seen now: not the proxy, and not a no-op.
    """
    if isinstance(tracer_provider, trace.ProxyTracerProvider):
        return _DEFERRED.begin()
    add = _add_method(tracer_provider)
    if add is None:
        return False
    with _installing:
        if tracer_provider in _installed:
            return True
        _installed.add(tracer_provider)
    try:
        add(RELAY)
    except BaseException:
        _installed.discard(tracer_provider)
        raise
    return True


def _add_method(tracer_provider: object) -> Callable[[SpanProcessor], object] | None:
    """Answer what adds a processor to a tracer provider."""
    if isinstance(tracer_provider, TracerProvider):
        return partial(TracerProvider.add_span_processor, tracer_provider)
    add = getattr(tracer_provider, "add_span_processor", None)
    return add if callable(add) else None


class _Deferred:
    """Installs on the global tracer provider once there is one.

    Nothing tells when it is set. While one is waited for, two public functions of OpenTelemetry's are wrapped:
    `set_tracer_provider`, which acts at once, and the SDK's `get_tracer`, for those who have imported the former by its
    name before; a provider opens no span without it. Both do and answer what they did.
    """

    def __init__(self) -> None:
        self._is_waiting = False
        # Whose function was wrapped, its name, and what stands there now.
        self._wrapped: list[tuple[Any, str, Any]] = []

    def begin(self) -> bool:
        """Wait for a provider, unless that is done already; say whether its spans are seen: one may be there by now."""
        with _installing:
            if self._is_waiting:
                return False
            self._wrap(trace, "set_tracer_provider", self._settle_after)
            self._wrap(TracerProvider, "get_tracer", self._settle_before)
            self._is_waiting = True
        # Another thread may have set one before all was wrapped.
        return self.settle()

    def settle(self) -> bool:
        """Install on the global provider if there is one; say whether its spans are seen."""
        tracer_provider = trace.get_tracer_provider()
        if isinstance(tracer_provider, trace.ProxyTracerProvider):
            return False
        self._end()
        return install(tracer_provider)

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Wrap a function."""
        self._wrapped.append((owner, name, wrapt.wrap_function_wrapper(owner, name, wrapper)))

    def _end(self) -> None:
        """Put back what was wrapped; where somebody else has wrapped it since, ours goes on doing nothing."""
        with _installing:
            self._is_waiting = False
            while self._wrapped:
                owner, name, wrapper = self._wrapped.pop()
                if vars(owner).get(name) is wrapper:
                    setattr(owner, name, wrapper.__wrapped__)

    def _settle_after(self, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 (wrapt's signature)
        """Set a provider, and install on it if it was taken."""
        result = wrapped(*args, **kwargs)
        self._try_to_settle()
        return result

    def _settle_before(self, wrapped: Callable[..., Any], instance: object, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 (wrapt's signature)
        """Install before a provider hands out a tracer, if it has become the global one."""
        self._try_to_settle()
        return wrapped(*args, **kwargs)

    def _try_to_settle(self) -> None:
        """Settle; what goes wrong is ours, and no concern of who sets a provider."""
        if self._is_waiting:
            with _active.guarded(_active.get()):
                self.settle()


_DEFERRED = _Deferred()
