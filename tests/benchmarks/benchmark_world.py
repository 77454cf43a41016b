"""What a benchmark runs in: our pipeline and, beside it, OpenTelemetry's own without us."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import otel_feedback as of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

# Who tells the application's spans apart from those of a library that never makes an LLM span.
APPLICATION = "app"
SILENT_SCOPE = "opentelemetry.instrumentation.httpx"


class NoOpProcessor(SpanProcessor):
    """Does nothing, which is the least that a pipeline with a processor costs."""


@dataclass(frozen=True, slots=True)
class World:
    """Both pipelines, open."""

    feedback: of.FeedbackProvider
    # The tracer providers: one that our processor is in, one that has no processor, and one that has a no-op.
    seen: TracerProvider
    bare: TracerProvider
    no_op: TracerProvider

    async def settle(self, _: Sequence[str] = ()) -> None:
        """Have all keys written that were bound until now: a look-up does it, and costs nothing else to speak of."""
        with suppress(of.UnknownTargetError):
            self.feedback.handle_for_key("no call's key")


# Opens a world whose spans are also seen by the watchers: ours by the first, the plain ones by the second.
OpenWorld = Callable[..., AbstractContextManager[World]]


@contextmanager
def _open(*watchers: SpanProcessor, settings: of.Settings, has_sdk: bool) -> Iterator[World]:
    """Configure as an application does, with a SQLite file of its own and nowhere to deliver to."""
    seen, bare, no_op = (TracerProvider(shutdown_on_exit=False) for _ in range(3))
    no_op.add_span_processor(NoOpProcessor())
    for watcher, providers in zip(watchers, ((seen,), (bare, no_op)), strict=False):
        for provider in providers:
            provider.add_span_processor(watcher)
    given: Any = seen if has_sdk else None
    with tempfile.TemporaryDirectory() as directory:
        feedback = of.configure(
            exporters=[], store=f"sqlite:///{directory}/feedback.db", tracer_provider=given, settings=settings
        )
        try:
            yield World(feedback, seen, bare, no_op)
        finally:
            of.set_feedback_provider(None)
            for each in (seen, bare, no_op):
                each.shutdown()


# A look-up for a key that is not there need not wait for another process, only for a thread that is about to write it.
_SETTINGS = of.Settings(key_wait_millis=20)

traced: OpenWorld = partial(_open, settings=_SETTINGS, has_sdk=True)
switched_off: OpenWorld = partial(_open, settings=replace(_SETTINGS, disabled=True), has_sdk=True)
# The global tracer provider is the proxy that OpenTelemetry's API begins with.
without_sdk: OpenWorld = partial(_open, settings=_SETTINGS, has_sdk=False)


def tracer_of(provider: TracerProvider, scope: str = APPLICATION) -> Tracer:
    """Answer a tracer of an application, or of one of its libraries."""
    return provider.get_tracer(scope)
