"""The functions on top: one global provider, made once, replaced cleanly, and never half."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags

import otel_feedback as of
from otel_feedback import _active, processor
from otel_feedback.testing import InMemoryFeedbackExporter

SETTINGS = of.Settings(key_wait_millis=0)


@pytest.fixture(autouse=True)
def _shut_down() -> Iterator[None]:
    """The current provider gets the time to close what it opened."""
    yield
    of.set_feedback_provider(None)


HANDLE = of.FeedbackHandle(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))


def configure(**given: Any) -> of.FeedbackProvider:
    return of.configure(**{"exporters": [], "store": "memory:", "settings": SETTINGS, **given})


# --- configure ---------------------------------------------------------------------------------------------------


def test_configuring_makes_the_provider_the_current_one() -> None:
    """
    What `configure()` answers is what the functions use.
    """
    provider = configure()

    assert provider is of.get_feedback_provider()


def test_configuring_again_replaces_and_stops_the_one_before() -> None:
    """
    A notebook's second `configure()` leaves one provider running, and one relay in the tracer provider.
    """
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    before = configure(tracer_provider=tracer_provider, exporters=[InMemoryFeedbackExporter("first")])
    after = configure(tracer_provider=tracer_provider, exporters=[InMemoryFeedbackExporter("second")])

    relays = [each for each in tracer_provider._active_span_processor._span_processors if each is processor.RELAY]
    assert after is of.get_feedback_provider()
    assert before._is_shut_down
    assert ["otel-feedback-correlate", "otel-feedback-deliver-keep", "otel-feedback-deliver-second"] == sorted(
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("otel-feedback-correlate", "otel-feedback-deliver"))
    )
    assert 1 == len(relays)


def test_the_same_exporter_and_store_may_be_configured_again() -> None:
    """
    What the first provider closed works for the second, and what was recorded before is still there.
    """
    store, exporter = of.SQLiteStore("feedback.db"), InMemoryFeedbackExporter()
    configure(store=store, exporters=[exporter])
    first = of.record_feedback(HANDLE, "rating", True)
    provider = configure(store=store, exporters=[exporter])
    second = of.record_feedback(HANDLE, "rating", False)

    assert provider.force_flush(10_000)
    assert [first.id, second.id] == [record.id for record in exporter.records]


def test_only_the_current_provider_sees_the_spans_of_the_tracer_provider() -> None:
    """
    A provider that is used as an object leaves the application's tracing alone until it is made the current one.
    """
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    with of.FeedbackProvider(exporters=[], store="memory:", tracer_provider=tracer_provider, settings=SETTINGS) as own:
        before = tracer_provider._active_span_processor._span_processors
        of.set_feedback_provider(own)

        assert ((), (processor.RELAY,)) == (before, tracer_provider._active_span_processor._span_processors)


class Keyless(InMemoryFeedbackExporter):
    """Lacks something."""

    was_shut_down = False

    def start(self) -> None:
        raise of.ConfigurationError("no key", setting="KEY")

    def shutdown(self) -> None:
        self.was_shut_down = True


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"exporters": [InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("a")]}, of.ConfigurationError),
        ({"exporters": [Keyless()]}, of.ConfigurationError),
        ({"store": "mysql://host/db"}, of.ConfigurationError),
        ({"store": "sqlite://relative"}, of.ConfigurationError),
        ({"store": "sqlite:///"}, of.ConfigurationError),
        ({"store": "sqlite:////dev/null/feedback.db"}, of.StoreError),
        ({"exporters": None, "settings": of.Settings(exporters=("nobody",))}, of.ConfigurationError),
    ],
)
def test_a_failing_configure_leaves_the_provider_that_was_there(given: dict[str, Any], error: type[Exception]) -> None:
    """
    Whatever is wrong with a new configuration, the old one goes on working.
    """
    exporter = InMemoryFeedbackExporter()
    provider = configure(exporters=[exporter])

    with pytest.raises(error):
        configure(**given)

    of.record_feedback(HANDLE, "rating", True)
    assert provider is of.get_feedback_provider()
    assert provider.force_flush(10_000)
    assert 1 == len(exporter.records)


def test_a_failing_start_gives_back_what_it_took() -> None:
    """
    An exporter that lacks a key stops the start: those started are shut down, the store is closed, no thread runs.
    """
    store, exporter = of.SQLiteStore("feedback.db"), Keyless()

    with pytest.raises(of.ConfigurationError):
        configure(store=store, exporters=[exporter])

    assert exporter.was_shut_down
    assert repr(store).endswith("closed>")
    assert [] == [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("otel-feedback-correlate", "otel-feedback-deliver"))
    ]


def test_a_process_that_only_records_needs_no_keys() -> None:
    """
    Only a process that delivers makes its exporters ready; one that leaves it to another has but their names.
    """
    provider = configure(exporters=[Keyless("a")], settings=of.Settings(key_wait_millis=0, delivery="none"))
    receipt = of.record_feedback(HANDLE, "rating", True)

    assert {"a": "pending"} == {name: each.state for name, each in receipt.deliveries.items()}
    assert not provider.force_flush(0)


# --- the environment ---------------------------------------------------------------------------------------------


def test_an_unknown_exporter_names_those_that_there_are() -> None:
    """
    A misspelt name in the environment fails with the list of the registered ones.
    """
    with pytest.raises(
        of.ConfigurationError, match=r"'orc'; there are .*braintrust, console, orq, otlp, weave"
    ) as caught:
        of.configure(store="memory:", settings=of.Settings(exporters=("console", "orc")))

    assert "OTEL_FEEDBACK_EXPORTERS" == caught.value.setting


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("orq", of.OrqExporter),
        ("braintrust", of.BraintrustExporter),
        ("weave", of.WeaveExporter),
        ("console", of.ConsoleFeedbackExporter),
        ("otlp", of.OTLPFeedbackExporter),
    ],
)
def test_our_own_exporters_come_by_entry_points(name: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each name in the environment makes the exporter that is registered for it, without its key where none delivers.
    """
    monkeypatch.setenv("OTEL_FEEDBACK_EXPORTERS", name)
    monkeypatch.setenv("OTEL_FEEDBACK_DELIVERY", "none")
    monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "memory:")

    with of.configure() as provider:
        assert {name: kind} == {each: type(exporter) for each, exporter in provider._exporters.items()}


def test_anybodys_exporter_comes_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    A package that registers a class under the group `otel_feedback_exporter` can be named like one of ours.
    """
    metadata = tmp_path / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[otel_feedback_exporter]\ntheirs = theirs_exporter:Theirs\n")
    (tmp_path / "theirs_exporter.py").write_text(
        "from otel_feedback.testing import InMemoryFeedbackExporter\n"
        "class Theirs(InMemoryFeedbackExporter):\n"
        "    def __init__(self):\n"
        "        super().__init__('theirs')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with of.configure(store="memory:", settings=of.Settings(exporters=("theirs",))) as provider:
        of.record_feedback(HANDLE, "rating", True)

        assert provider.force_flush(10_000)
        assert 1 == provider.stats()["theirs"].delivered


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Exporters, store and settings that are given are used, whatever the environment says.
    """
    monkeypatch.setenv("OTEL_FEEDBACK_EXPORTERS", "nobody")
    monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "nonsense")
    monkeypatch.setenv("OTEL_FEEDBACK_KEY_WAIT_MILLIS", "nonsense")
    store = of.SQLiteStore(tmp_path / "given.db")
    exporter = InMemoryFeedbackExporter("given")

    with of.configure(exporters=[exporter], store=store, settings=SETTINGS) as provider:
        assert f"<FeedbackProvider store='{store.url}' exporters=['given']>" == repr(provider)


def test_what_cannot_be_read_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A setting that cannot be used fails where feedback is recorded, not at import.
    """
    monkeypatch.setenv("OTEL_FEEDBACK_DURABILITY", "eternal")

    with pytest.raises(of.ConfigurationError, match="OTEL_FEEDBACK_DURABILITY"):
        of.record_feedback(HANDLE, "rating", True)


CALLER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
import otel_feedback as of

trace.set_tracer_provider(TracerProvider())

@of.capture(key="message_id")
def answer(message_id):
    return of.current_handle().span_id

print(answer("m-1"))
"""

JUDGE = """
import otel_feedback as of

receipt = of.record_feedback(key="m-1", name="rating", value=True, user_id="u-1")
provider = of.get_feedback_provider()
print(provider.handle_for_key("m-1").span_id, receipt.durability, provider.force_flush(10_000))
"""


def run(program: str, **environment: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ran.stdout.split()


def test_two_processes_join_by_the_environment_alone(tmp_path: Path) -> None:
    """
    One process captures a call, another one judges it by its key; neither configures anything.
    """
    (span_id,) = run(CALLER)
    words = run(JUDGE, OTEL_FEEDBACK_EXPORTERS="console", OTEL_FEEDBACK_DURABILITY="process")

    assert 1 == words.count('"u-1",')
    assert [span_id, "process", "True"] == words[-3:]
    assert "*\n" in (tmp_path / ".otel_feedback" / ".gitignore").read_text()


def test_disabled_by_the_environment_nothing_happens(tmp_path: Path) -> None:
    """
    `OTEL_FEEDBACK_DISABLED` makes every call work and leave nothing, not even a file.
    """
    program = CALLER.replace("return of.current_handle().span_id", "return of.current_handle()") + JUDGE.replace(
        "provider.handle_for_key", "not provider.handle_for_key"
    ).replace(".span_id, receipt", ".is_valid, receipt")
    words = run(program, OTEL_FEEDBACK_DISABLED="true", OTEL_FEEDBACK_EXPORTERS="weave")

    assert ["None", "True", "disabled", "True"] == words
    assert [] == list(tmp_path.iterdir())


# --- the provider that nobody configured -------------------------------------------------------------------------


def test_two_threads_that_record_first_share_one_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where nobody configured anything, threads that record at once make one provider, and lose nothing.
    """
    monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "memory:")
    barrier = threading.Barrier(4)
    receipts: list[of.Receipt] = []

    def record() -> None:
        barrier.wait()
        receipts.append(of.record_feedback(HANDLE, "rating", True))

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    provider = of.get_feedback_provider()
    assert {"pending"} == {provider.status(receipt.id).deliveries["unrouted"].state for receipt in receipts}
    assert 4 == provider.stats()["unrouted"].pending


def test_setting_a_provider_stops_the_one_before_but_never_itself() -> None:
    """
    A provider that is set again goes on; one that is replaced, or taken away, is shut down.
    """
    provider = configure()
    of.set_feedback_provider(provider)
    still_runs = not provider._is_shut_down
    of.set_feedback_provider(None)

    assert still_runs
    assert provider._is_shut_down
    assert _active.get() is None


# --- the functions -----------------------------------------------------------------------------------------------


def test_the_functions_use_the_current_provider() -> None:
    """
    Recording, in each of its forms, binding and taking back are those of the current provider.
    """
    provider = configure()
    of.bind_key(HANDLE, "m-1")
    one = of.record_feedback(key="m-1", name="rating", value=True)
    two = asyncio.run(of.arecord_feedback(key="m-1", name="rating", value=True))
    three, four = of.record_many(
        [of.Feedback(target=HANDLE, name="a", value=True), of.Feedback(key="m-1", name="b", value=0.5)]
    )
    of.retract_feedback(one.id)

    account = provider.stats()["unrouted"]
    assert 4 == len({one.id, two.id, three.id, four.id})
    assert (5, 4, 1) == (account.recorded, account.pending, account.retracted)


def test_recording_does_not_block_the_event_loop() -> None:
    """
    While a judgement waits for its key, other tasks of the loop go on: one of them binds it.
    """
    has_looked: asyncio.Event | None = None
    loop: asyncio.AbstractEventLoop | None = None

    class Store(of.MemoryStore):
        def find(self, kind: str, key: str) -> Sequence[of.FeedbackHandle]:
            assert loop is not None
            assert has_looked is not None
            loop.call_soon_threadsafe(has_looked.set)
            return super().find(kind, key)

    configure(store=Store(), settings=of.Settings(key_wait_millis=30_000))

    async def bind(looked: asyncio.Event) -> None:
        await looked.wait()
        of.bind_key(HANDLE, "m-1")

    async def main() -> of.Receipt:
        nonlocal has_looked, loop
        has_looked, loop = asyncio.Event(), asyncio.get_running_loop()
        recording = of.arecord_feedback(key="m-1", name="rating", value=True)
        receipt, _ = await asyncio.gather(recording, bind(has_looked))
        return receipt

    assert "memory" == asyncio.run(main()).durability


@pytest.mark.parametrize("option", ["connection", "feedback"])
def test_what_is_not_there_yet_is_no_argument(option: str) -> None:
    """
    Arguments of later releases are refused like any unknown one.
    """
    configure()

    with pytest.raises(TypeError, match=option):
        of.record_feedback(HANDLE, "rating", True, **{option: "x"})  # type: ignore[call-overload]  # wrong on purpose


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("coment", r"record_feedback\(\) got an unexpected keyword argument 'coment'; did you mean comment=\?"),
        ("userid", r"record_feedback\(\) .* 'userid'; did you mean user_id=\?"),
        ("connection", r"record_feedback\(\) .* 'connection'; did you mean correction=\?"),
        ("zzz", r"record_feedback\(\) got an unexpected keyword argument 'zzz'$"),
    ],
)
def test_a_misspelt_argument_is_one_of_the_function_that_was_called(option: str, message: str) -> None:
    """
    Not of some class within; where another was probably meant, it is named.
    """
    provider = configure()

    with pytest.raises(TypeError, match=message):
        of.record_feedback(HANDLE, "rating", True, **{option: "x"})  # type: ignore[call-overload]  # wrong on purpose
    with pytest.raises(TypeError, match=message):
        asyncio.run(provider.arecord(HANDLE, "rating", True, **{option: "x"}))  # type: ignore[call-overload]  # the same


def test_what_is_declared_and_filtered_is_the_provider_s() -> None:
    """
    `configure()` hands both on.
    """
    provider = configure(
        exporters=[InMemoryFeedbackExporter("a")],
        feedback={"helpfulness": of.Rating(1, 5)},
        filters={"a": lambda record: record.value != 1},
    )
    receipts = [of.record_feedback(HANDLE, "helpfulness", stars) for stars in (1, 5)]

    assert ["skipped", "pending"] == [receipt.deliveries["a"].state for receipt in receipts]
    with pytest.raises(of.InvalidFeedbackError, match="'helpfulness' takes a number from 1 to 5"):
        of.record_feedback(HANDLE, "helpfulness", 0)
    assert provider.force_flush()


def test_a_string_target_is_only_ever_a_signed_token() -> None:
    """
    Raw ids, a key or a traceparent as a string are refused: a client could have sent them.
    """
    configure()

    for text in ("m-1", HANDLE.trace_id, HANDLE.to_traceparent(), ""):
        with pytest.raises(of.InvalidTokenError, match="from_traceparent"):
            of.record_feedback(text, "rating", True)


def test_every_option_is_declared_once() -> None:
    """
    The keyword arguments of `record_feedback` are the fields of `Feedback`, so that `record_many` takes the same.
    """
    from otel_feedback._record import FeedbackOptions

    fields = set(inspect.signature(of.Feedback).parameters)

    assert fields == {"target", "key", "key_kind", "name", "value", *FeedbackOptions.__annotations__}


def test_a_provider_that_was_shut_down_is_let_go() -> None:
    """
    Nothing that waits for the end of the process, no thread and no processor keeps a replaced provider alive.
    """
    replaced = weakref.ref(configure(exporters=[InMemoryFeedbackExporter()]))
    configure()
    gc.collect()

    assert replaced() is None
