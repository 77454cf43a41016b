"""`FeedbackSpanProcessor`: sees every span of the pipeline and keeps what a judgement may be about."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_feedback import _active, _dialects
from otel_feedback._correlate import LIVE, MAX_LIVE_SPANS, LiveSpan, call_in, collections_in, note_end
from otel_feedback._handle import FeedbackHandle
from otel_feedback.stores import CONVERSATION, RESPONSE

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from otel_feedback._active import ActiveProvider


# What an LLM span is found again by, and of which kind of key it is.
KEYS: Mapping[str, str] = MappingProxyType({_dialects.RESPONSE_ID: RESPONSE, _dialects.CONVERSATION_ID: CONVERSATION})


class FeedbackSpanProcessor(SpanProcessor):
    """Recognises LLM spans of any instrumentation, and tells each span its local root.

    `configure()` installs one. Add one yourself to a pipeline that you build by hand; two in one pipeline do no harm.
    Without a provider of its own it serves whichever is current. It never stores prompts or answers, and never raises.

    Args:
        provider: whom it serves; by default the current provider.
    """

    def __init__(self, provider: ActiveProvider | None = None) -> None:
        self._own = provider

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note the span's local root and the calls that it runs inside of."""
        if not self._rests():
            with _active.guarded(self._own or _active.get()):
                _note(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep the handle of an LLM span, and bind its response and conversation ids."""
        if self._rests():
            return
        with _active.guarded(self._own or _active.get()):
            live = _give_up(span)
            operation = _dialects.operation_of(span.attributes or {})
            if live is None or operation is None:
                return
            # Only a call of a model is worth configuring a provider for: not the first span of any kind.
            provider = self._own or _active.for_capture()
            if provider is not None:
                _keep(span, live, operation, provider)

    def shutdown(self) -> None:
        """Do nothing: feedback outlives the trace's pipeline."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 (nothing to wait for)
        """Answer true: nothing is buffered here."""
        return True

    def _rests(self) -> bool:
        """Whether there is nothing to do, not even to take a span's place away: another processor may need it."""
        provider = self._own or _active.get()
        return provider is not None and provider.is_disabled


# The relay to the current provider: OpenTelemetry cannot remove a processor, so one is installed and never another.
RELAY = FeedbackSpanProcessor()


def _after_fork() -> None:
    """In a forked child, take a lock that no thread of the parent holds."""
    global _installing  # noqa: PLW0603 (as in _active)
    _installing = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows forks nothing)
    os.register_at_fork(after_in_child=_after_fork)

_installed: weakref.WeakSet[object] = weakref.WeakSet()
_installing = threading.Lock()


def install(tracer_provider: object) -> bool:
    """Let a tracer provider's spans be seen; doing it again does nothing.

    The SDK class's own `add_span_processor` is called, because some subclasses (Phoenix's, Arize's) remove their
    exporter in an override of theirs.

    Args:
        tracer_provider: the SDK's, or one that has a method `add_span_processor`.

    Returns:
        Whether it can be seen: not the proxy that stands for a provider still to be set, and not a no-op.
    """
    with _installing:
        if tracer_provider in _installed:
            return True
        if isinstance(tracer_provider, TracerProvider):
            TracerProvider.add_span_processor(tracer_provider, RELAY)
        elif callable(add := getattr(tracer_provider, "add_span_processor", None)):
            add(RELAY)
        else:
            return False
        _installed.add(tracer_provider)
        return True


def _note(span: Span, parent_context: Context | None) -> None:
    """Put a span among the live ones."""
    own = span.get_span_context()
    parent = trace.get_current_span(parent_context).get_span_context()
    if not parent.is_valid or parent.is_remote or parent.trace_id != own.trace_id:
        root = own.span_id
    else:
        known = LIVE.get(parent.span_id)
        root = parent.span_id if known is None else known.root
    if len(LIVE) >= MAX_LIVE_SPANS:
        LIVE.pop(next(iter(LIVE)), None)
    LIVE[own.span_id] = LiveSpan(root, call_in(parent_context), collections_in(parent_context))


def _give_up(span: ReadableSpan) -> LiveSpan | None:
    """Take a span's place among the live ones away; a second processor of the pipeline finds none."""
    context = span.get_span_context()
    return None if context is None else LIVE.pop(context.span_id, None)


def _keep(span: ReadableSpan, live: LiveSpan, operation: str, provider: ActiveProvider) -> None:
    """Make an LLM span known to what surrounds it, and bind its keys."""
    found = FeedbackHandle.from_span(cast("trace.Span", span))  # of which it has what a handle takes
    attributes = {**found.attributes, "gen_ai.operation.name": operation}
    handle = replace(found, root=live.root, attributes=attributes)
    note_end(handle.context.span_id)
    for collection in live.collections:
        collection.add(handle)
    for call in live.call.enclosing() if live.call is not None else ():
        call.last_llm = handle
    for attribute, kind in KEYS.items():
        if attribute in attributes:
            provider.bind_key(handle, attributes[attribute], kind)
