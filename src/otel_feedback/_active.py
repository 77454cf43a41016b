"""The slot of the current provider: one per process, read by the decorators, the processor and the functions."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.trace import Tracer

    from otel_feedback._handle import FeedbackHandle

logger = logging.getLogger(__name__)


class ActiveProvider(Protocol):
    """What capture and the processor need of the current provider."""

    @property
    def is_disabled(self) -> bool:
        """Whether everything is a no-op."""
        ...

    @property
    def tracer(self) -> Tracer:
        """What opens the spans of captured calls."""
        ...

    @property
    def span_attributes(self) -> Mapping[str, str]:
        """What the destinations want to see on captured spans."""
        ...

    def bind_key(self, handle: FeedbackHandle, key: str, kind: str = "app") -> None:
        """Bind a key to a call."""
        ...

    def capture_failed(self, error: BaseException) -> None:
        """Count what went wrong in capture, and say so once in a while."""
        ...


_lock = threading.RLock()
_provider: ActiveProvider | None = None
_configure: Callable[[], ActiveProvider] | None = None
_has_failed = False


def get() -> ActiveProvider | None:
    """Answer the current provider, if there is one."""
    return _provider


def put(provider: ActiveProvider | None) -> ActiveProvider | None:
    """Make a provider the current one, or none; answer the one before."""
    global _provider, _has_failed
    with _lock:
        before, _provider, _has_failed = _provider, provider, False
        return before


def set_default(configure: Callable[[], ActiveProvider]) -> None:
    """Say how a provider is made where nobody configured one."""
    global _configure  # noqa: PLW0603
    _configure = configure


def for_capture() -> ActiveProvider | None:
    """Answer the current provider, configuring one from the environment at the first captured call.

    It never raises: where that fails, capture stays off, after one line in the log.
    """
    global _has_failed  # noqa: PLW0603
    provider = _provider
    if provider is None and _configure is not None and not _has_failed:
        with _lock:
            if _provider is None and not _has_failed:
                try:
                    _configure()
                except Exception:
                    _has_failed = True
                    logger.exception("capture is off: otel-feedback could not be configured from the environment")
            provider = _provider
    return None if provider is None or provider.is_disabled else provider
