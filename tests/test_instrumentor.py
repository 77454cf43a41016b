"""`FeedbackInstrumentor`: an application without a line of ours, under `opentelemetry-instrument` and by hand."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of
from otel_feedback import FeedbackInstrumentor

if TYPE_CHECKING:
    import pytest

APP = """
from opentelemetry import trace

with trace.get_tracer("app").start_as_current_span("chat") as span:
    span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": "chatcmpl-1"})
print(trace.format_span_id(span.get_span_context().span_id))
"""


def test_under_auto_instrumentation_a_response_id_becomes_a_key(tmp_path: Path) -> None:
    """
    An application that never heard of feedback, run by `opentelemetry-instrument`, leaves its LLM span in the store.
    """
    (tmp_path / "app.py").write_text(APP)
    command = [str(Path(sys.executable).parent / "opentelemetry-instrument"), sys.executable, "app.py"]
    environment = {
        # What opentelemetry-distro does where it is installed: it sets up the SDK before the instrumentors come.
        "OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_FEEDBACK_STORE_URL": f"sqlite:///{tmp_path}/feedback.db",
    }
    ran = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=60
    )

    settings = of.Settings(key_wait_millis=0, delivery="none")
    with of.FeedbackProvider(exporters=[], store=environment["OTEL_FEEDBACK_STORE_URL"], settings=settings) as feedback:
        assert ran.stdout.strip() == feedback.handle_for_key("chatcmpl-1").span_id


def test_it_is_registered_where_opentelemetry_looks() -> None:
    """
    The entry point by which `opentelemetry-instrument` finds it loads the same class.
    """
    (entry,) = importlib.metadata.entry_points(group="opentelemetry_instrumentor", name="otel_feedback")

    assert FeedbackInstrumentor is entry.load()


def test_it_needs_nothing_of_the_application() -> None:
    """
    No library must be installed for it to be switched on.
    """
    assert () == FeedbackInstrumentor().instrumentation_dependencies()


def test_the_given_tracer_provider_is_seen() -> None:
    """
    `instrument(tracer_provider=…)` sees the spans of that one; taking it off again leaves them as they are.
    """
    with of.configure(exporters=[], store="memory:", settings=of.Settings(key_wait_millis=0)) as feedback:
        tracer_provider = TracerProvider(shutdown_on_exit=False)
        instrumentor = FeedbackInstrumentor()
        instrumentor.instrument(tracer_provider=tracer_provider)
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.response.id": "r-1"}
        with tracer_provider.get_tracer("app").start_as_current_span("chat", attributes=attributes) as span:
            pass
        instrumentor.uninstrument()

        assert span.get_span_context() == feedback.handle_for_key("r-1").context


def test_without_an_sdk_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """
    Instrumenting a no-op would see nothing for ever, so there is one line in the log.
    """
    FeedbackInstrumentor().instrument(tracer_provider=trace.NoOpTracerProvider())
    FeedbackInstrumentor().uninstrument()

    assert ["no OpenTelemetry SDK is set up, so calls of models are not seen: is opentelemetry-distro installed?"] == [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]


WITHOUT = """
import sys
sys.modules["opentelemetry.instrumentation.instrumentor"] = None
import otel_feedback as of
try:
    of.FeedbackInstrumentor
except ImportError as error:
    print(type(error).__name__, error.extra, error)
"""


def test_without_its_extra_the_error_names_it() -> None:
    """
    Where opentelemetry-instrumentation is not installed, using the class says what to install; nothing else breaks.
    """
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=30)

    assert ran.stdout.startswith("MissingExtraError auto ")
    assert "pip install 'otel-feedback[auto]'" in ran.stdout
