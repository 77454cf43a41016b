"""`FeedbackInstrumentor`: capture switched on by `opentelemetry-instrument`, without a line in the application.

The module needs the extra `[auto]`; only its entry point and `otel_feedback.FeedbackInstrumentor` load it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from opentelemetry import trace

from otel_feedback import _active
from otel_feedback.exceptions import MissingExtraError
from otel_feedback.processor import install
from otel_feedback.provider import start_from_environment

logger = logging.getLogger(__name__)

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # no stubs
except ImportError as error:
    raise MissingExtraError(
        "FeedbackInstrumentor needs opentelemetry-instrumentation: pip install 'otel-feedback[auto]'",
        extra="auto",
    ) from error


class FeedbackInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # the base is untyped
    """Installs the feedback span processor on the tracer provider that auto-instrumentation has set up.

    The feedback provider itself is configured from the environment when the first call of a model has ended.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Need nothing of the application."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        """Install the processor on the given tracer provider, else on the global one."""
        _active.set_default(start_from_environment)
        if not install(kwargs.get("tracer_provider") or trace.get_tracer_provider()):
            logger.warning(
                "no OpenTelemetry SDK is set up, so calls of models are not seen: is opentelemetry-distro installed?"
            )

    def _uninstrument(self, **kwargs: Any) -> None:
        """Do nothing: OpenTelemetry cannot remove a processor, and ours rests while feedback is disabled."""
