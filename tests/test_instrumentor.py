"""`FeedbackInstrumentor` in code: what it takes, what it refuses; `tests/auto` runs it as a command does."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of
from otel_feedback import FeedbackInstrumentor
from otel_feedback.instrumentor import InstrumentorOptions
from otel_feedback.testing import InMemoryFeedbackExporter


@pytest.fixture
def tracer_provider() -> TracerProvider:
    """A tracer provider of an application."""
    return TracerProvider(shutdown_on_exit=False)


@pytest.fixture
def instrument(tracer_provider: TracerProvider) -> Iterator[Callable[..., None]]:
    """Instrument that tracer provider, with options; it is undone in the end."""
    instrumentor = FeedbackInstrumentor()

    def run(**options: Any) -> None:
        instrumentor.instrument(tracer_provider=tracer_provider, **options)

    yield run
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def call(tracer_provider: TracerProvider, response_id: str) -> trace.SpanContext:
    """Make a call of a model."""
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.response.id": response_id}
    with tracer_provider.get_tracer("app").start_as_current_span("chat", attributes=attributes) as span:
        return span.get_span_context()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what our own loggers warned of."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("otel_feedback") and record.levelno >= logging.WARNING
    ]


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


class TestInstrumented:
    def test_the_given_tracer_provider_is_seen(
        self, instrument: Callable[..., None], tracer_provider: TracerProvider
    ) -> None:
        """
        A span of it is found by its response id, in a provider that the options describe.
        """
        instrument(store_url="memory:", key_wait_millis=0, exporters=[], disabled=False)
        context = call(tracer_provider, "r-1")

        assert context.span_id == of.get_feedback_provider().handle_for_key("r-1").context.span_id

    def test_exporters_may_be_objects(self, instrument: Callable[..., None], tracer_provider: TracerProvider) -> None:
        """
        In code there are the exporters themselves; feedback goes to them.
        """
        exporter = InMemoryFeedbackExporter()
        instrument(store_url="memory:", exporters=[exporter])
        call(tracer_provider, "r-1")
        of.record_feedback(key="r-1", name="rating", value=True)

        assert of.get_feedback_provider().force_flush()
        assert ["rating"] == [each.record.name for each in exporter.exported]

    def test_a_provider_of_its_own_flushes_the_given_tracer_provider(
        self, instrument: Callable[..., None], tracer_provider: TracerProvider
    ) -> None:
        """
        What is held back until its span has arrived is released by a flush, as where `configure()` was given it.
        """
        instrument(store_url="memory:", exporters=[of.BraintrustExporter("project_name:p", api_key="k")])
        call(tracer_provider, "r-1")
        feedback = of.get_feedback_provider()
        handle = feedback.handle_for_key("r-1")
        feedback.force_flush()

        assert feedback._is_released(handle)

    def test_twice_is_once(
        self,
        instrument: Callable[..., None],
        tracer_provider: TracerProvider,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """
        The second time does nothing, whatever it is given: not even its options are read.
        """
        instrument(store_url="memory:", exporters=[], key_wait_millis=7)
        instrument(store_url="memory:", nonsense=1)

        assert 7 == of.get_feedback_provider().settings.key_wait_millis
        assert ["Attempting to instrument while already instrumented"] == [
            record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")
        ]

    def test_what_opentelemetry_hands_to_every_instrumentor_is_no_option(
        self, instrument: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Distros pass the providers of metrics and logs as well; they are of no concern.
        """
        instrument(meter_provider=object(), logger_provider=object(), event_logger_provider=object())

        assert [] == errors(caplog)

    def test_without_an_sdk_it_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        """
        Instrumenting a no-op would see nothing for ever, so there is one line in the log.
        """
        FeedbackInstrumentor().instrument(tracer_provider=trace.NoOpTracerProvider())
        FeedbackInstrumentor().uninstrument()

        (line,) = errors(caplog)
        assert line.startswith("no OpenTelemetry SDK is set up, so calls of models are not seen until there is one; ")
        assert "opentelemetry-distro" in line

    def test_what_was_configured_before_stays(
        self, instrument: Callable[..., None], tracer_provider: TracerProvider, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Options come too late for a provider that there is; a line says that they are not used, and calls are seen.
        """
        with of.configure(exporters=[], store="memory:", settings=of.Settings(key_wait_millis=0)) as feedback:
            caplog.clear()
            instrument(store_url="memory:")
            context = call(tracer_provider, "r-1")

            assert context.span_id == feedback.handle_for_key("r-1").context.span_id
            assert ["otel-feedback was configured before: the options of FeedbackInstrumentor are not used"] == errors(
                caplog
            )

    def test_without_options_what_was_configured_before_needs_no_word(
        self, instrument: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        An application that configures itself may be instrumented as well.
        """
        with of.configure(exporters=[], store="memory:"):
            caplog.clear()
            instrument()

            assert [] == errors(caplog)

    def test_once_it_is_taken_off_the_environment_holds_again(
        self, instrument: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        A provider that is made later is not the options'.
        """
        instrument(store_url="memory:", key_wait_millis=7)
        FeedbackInstrumentor().uninstrument()
        monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "memory:")

        assert 1_000 == of.get_feedback_provider().settings.key_wait_millis


# For each option, a value that is not its default.
GIVEN: Mapping[str, Any] = {
    "disabled": True,
    "exporters": ["orq", "console"],
    "store_url": "sqlite:///elsewhere.db",
    "key_wait_millis": 0,
    "on_unknown_key": "park",
    "durability": "process",
    "delivery": "none",
    "signing_keys": ["a key", "the one before it"],
    "on_unsampled": "export",
    "undeclared": "refuse",
    "exit_timeout_millis": 999_999_999,
    "max_queue_size": 1,
    "max_export_batch_size": 10_000,
    "concurrency": 100,
    "retention_days": 3_650,
}


class TestOptions:
    def test_there_is_one_for_every_setting(self) -> None:
        """
        What the environment can say the file can say, by the same name, and of the same choices.
        """
        settings = get_type_hints(of.Settings)
        options = get_type_hints(InstrumentorOptions)

        assert {*settings, "braintrust_hold_millis"} == options.keys()
        assert {*settings} == GIVEN.keys()
        for name in ("disabled", "on_unknown_key", "durability", "delivery", "on_unsampled", "undeclared"):
            assert settings[name] == options[name]

    def test_each_wins_over_its_variable(
        self, instrument: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        All of them together are the settings of the provider, whatever the environment says.
        """
        monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "memory:")
        monkeypatch.setenv("OTEL_FEEDBACK_EXPORTERS", "weave")
        monkeypatch.setenv("OTEL_FEEDBACK_ON_UNKNOWN_KEY", "raise")
        instrument(**GIVEN)

        lists = {name: tuple(GIVEN[name]) for name in ("exporters", "signing_keys")}

        assert of.Settings(**{**GIVEN, **lists}) == of.get_feedback_provider().settings

    def test_what_is_not_given_comes_from_the_environment(
        self, instrument: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        Nor is an empty value in a YAML file given. The variables are read when the provider is made.
        """
        instrument(key_wait_millis=7, store_url=None)
        monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "memory:")
        monkeypatch.setenv("OTEL_FEEDBACK_ON_UNKNOWN_KEY", "park")

        assert (
            of.Settings(key_wait_millis=7, store_url="memory:", on_unknown_key="park")
            == of.get_feedback_provider().settings
        )

    def test_braintrust_s_hold_reaches_its_exporter(
        self, instrument: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        It wins over its variable, and the other exporters are as they are.
        """
        monkeypatch.setenv("OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS", "1")
        instrument(store_url="memory:", exporters=["console", "braintrust"], braintrust_hold_millis=7)
        exporters = of.get_feedback_provider()._exporters

        assert ["console", "braintrust"] == list(exporters)
        assert 7 == exporters["braintrust"].hold_millis

    @pytest.mark.parametrize(
        ("option", "value", "why"),
        [
            (
                "stoer_url",
                "memory:",
                "there is none of this name, but braintrust_hold_millis, concurrency, delivery, disabled",
            ),
            ("enabled", True, "there is none of this name"),  # which OpenTelemetry keeps for itself
            ("disabled", "true", "a valid boolean"),
            ("disabled", 1, "a valid boolean"),
            ("exporters", "orq", "a valid list"),
            ("exporters", [1], "a valid string"),
            ("exporters", ["orq", "okr"], "no exporter is registered as 'okr'; there are braintrust, console, orq, "),
            ("store_url", "", "at least 1 character"),
            ("store_url", 5, "a valid string"),
            ("key_wait_millis", "5", "a valid integer"),
            ("key_wait_millis", 5.0, "a valid integer"),
            ("key_wait_millis", True, "a valid integer"),
            ("key_wait_millis", -1, "greater than or equal to 0"),
            ("exit_timeout_millis", 1_000_000_000, "less than or equal to 999999999"),
            ("braintrust_hold_millis", "1m", "a valid integer"),
            ("on_unknown_key", "drop", "'raise' or 'park'"),
            ("durability", "DISK", "'disk' or 'process'"),
            ("delivery", "None", "'thread' or 'none'"),
            ("signing_keys", "a key", "valid list"),
            ("signing_keys", [" "], "pattern"),
            ("on_unsampled", False, "'skip' or 'export'"),
        ],
    )
    def test_one_that_cannot_be_used_is_named(
        self,
        instrument: Callable[..., None],
        tracer_provider: TracerProvider,
        caplog: pytest.LogCaptureFixture,
        option: str,
        value: Any,
        why: str,
    ) -> None:
        """
        One line of the log says which and why; a call is made as ever, and what records feedback raises the same.
        """
        instrument(**{option: value})
        call(tracer_provider, "r-1")

        (line,) = errors(caplog)
        assert line.startswith(f"calls of models are not captured: the option {option} of otel_feedback ")
        assert why in line
        with pytest.raises(of.ConfigurationError, match=f"the option {option} of otel_feedback ") as raised:
            of.record_feedback(key="r-1", name="rating", value=True)
        assert option == raised.value.setting

    def test_all_that_cannot_be_used_are_named_and_none_is_quoted(
        self, instrument: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        A store's URL may hold a password.
        """
        instrument(
            store_url=["sqlite://user:secret@host"], key_wait_millis="secret", delivery="none", nonsense="secret"
        )

        (line,) = errors(caplog)
        assert ["key_wait_millis", "nonsense", "store_url"] == [
            part.split()[0] for part in line.split("the option ")[1:]
        ]
        assert "secret" not in line

    def test_braintrust_s_hold_is_not_for_objects(
        self, instrument: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        An exporter that was made in code has its own, and two of them would contradict each other.
        """
        instrument(exporters=[InMemoryFeedbackExporter()], braintrust_hold_millis=7)

        (line,) = errors(caplog)
        assert "the option braintrust_hold_millis is for an exporter that is named" in line

    def test_a_refusal_ends_where_the_application_configures_itself(
        self, instrument: Callable[..., None], tracer_provider: TracerProvider
    ) -> None:
        """
        What code says explicitly holds, as after an environment that cannot be used.
        """
        instrument(nonsense=1)
        with of.configure(
            exporters=[],
            store="memory:",
            tracer_provider=tracer_provider,
            settings=of.Settings(key_wait_millis=0),
        ) as feedback:
            context = call(tracer_provider, "r-1")

            assert context.span_id == feedback.handle_for_key("r-1").context.span_id


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
