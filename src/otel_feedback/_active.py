"""The slot of the current provider: one per process, read by the decorators, the processor and the functions.

The one guard between capture and the application stands here too, because everything that captures goes through it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from otel_feedback.exceptions import ConfigurationError, FeedbackError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from opentelemetry.trace import Tracer

    from otel_feedback._handle import FeedbackHandle
    from otel_feedback._time import Clock

logger = logging.getLogger(__name__)


class ActiveProvider(Protocol):
    """What capture and the processor need of the current provider."""

    @property
    def is_disabled(self) -> bool:
        """Whether everything is a no-op."""
        ...

    @property
    def clock(self) -> Clock:
        """What tells when a call began whose span does not know it."""
        ...

    @property
    def is_tracing(self) -> bool:
        """Whether a span could have a trace: an OpenTelemetry SDK is set up."""
        ...

    @property
    def tracer(self) -> Tracer:
        """What opens the spans of captured calls."""
        ...

    @property
    def span_attributes(self) -> Mapping[str, str]:
        """What the destinations want to see on captured spans."""
        ...

    def promise_key(self, call: Any, key: str) -> Any:
        """Bind a key to a captured call that has just begun; answer what knows whether the store has it yet."""
        ...

    def bind_key(self, handle: FeedbackHandle, key: str, kind: str = "app") -> None:
        """Bind a key to a call."""
        ...

    def later(self, action: Callable[[], None]) -> bool:
        """Have something done soon, in a thread of ours, if there is one; say whether there is.

        It is nothing but put into a queue, so that a finaliser may ask.
        """
        ...

    def capture_failed(self, error: BaseException) -> None:
        """Count what went wrong in capture, and say so once in a while."""
        ...


def _make_none() -> ActiveProvider:
    raise ConfigurationError("nobody has said how a provider is made")


@dataclass(slots=True)
class _Slot:
    """The current provider, how one is made, and how that went."""

    provider: ActiveProvider | None = None
    make: Callable[[], ActiveProvider] = _make_none
    is_making: bool = False
    has_failed: bool = False


_lock = threading.RLock()
_slot = _Slot()


def _after_fork() -> None:
    """In a forked child, forget what a thread of the parent was in the middle of: it does not exist here."""
    global _lock
    _lock, _slot.is_making = threading.RLock(), False


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows forks nothing)
    os.register_at_fork(after_in_child=_after_fork)


def get() -> ActiveProvider | None:
    """Answer the current provider, if there is one."""
    return _slot.provider


def put(provider: ActiveProvider | None) -> ActiveProvider | None:
    """Make a provider the current one, or none; answer the one before."""
    with _lock:
        before, _slot.provider, _slot.has_failed = _slot.provider, provider, False
        return before


def set_default(make: Callable[[], ActiveProvider]) -> None:
    """Say how a provider is made where nobody configured one; what failed before may go well now."""
    _slot.make, _slot.has_failed = make, False


def get_or_make() -> ActiveProvider:
    """Answer the current provider; where there is none, one of the threads that ask makes it and the others wait.

    Raises:
        ConfigurationError: when it cannot be made, or is being made by this very thread.
    """
    with _lock:
        if _slot.provider is not None:
            return _slot.provider
        if _slot.is_making:
            raise ConfigurationError("the provider is still being made; it cannot be used from within")
        _slot.is_making = True
        try:
            provider = _slot.make()
        finally:
            _slot.is_making = False
        put(provider)
        return provider


def for_capture() -> ActiveProvider | None:
    """Answer the current provider unless it is disabled, making one at the first captured call.

    It never raises: where that fails, capture stays off, after one line in the log.
    """
    provider = _slot.provider or _try_to_make()
    return None if provider is None or provider.is_disabled else provider


def _try_to_make() -> ActiveProvider | None:
    """Make a provider, once; the spans that are opened while it is made, by an instrumented store, have none yet."""
    with _lock:
        if _slot.has_failed or _slot.is_making:
            return None
        try:
            return get_or_make()
        except Exception as error:  # noqa: BLE001 (the boundary to the application, and to exporters' constructors)
            _slot.has_failed = True
            # A foreign text may hold a key.
            why = error if isinstance(error, FeedbackError) else type(error).__name__
            logger.error("capture is off: otel-feedback could not be configured: %s", why)  # noqa: TRY400
            return None


class guarded:  # noqa: N801 (it reads as what it does)
    """Let nothing that is raised inside reach the application: it is counted by the provider that it happened to.

    A class, because a generator's `contextmanager` costs a captured call more than all that stands inside of it.
    """

    __slots__ = ("_provider",)

    def __init__(self, provider: ActiveProvider | None) -> None:
        self._provider = provider

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Count an error, and end it."""
        if not isinstance(error, Exception):
            return False
        # Even telling of it may fail: the application's own logging is behind it.
        with suppress(Exception):
            if self._provider is not None:
                self._provider.capture_failed(error)
        return True
