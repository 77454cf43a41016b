"""The metrics: the instruments that an SDK collects, what their attributes may say, and what cannot harm the engine."""

from __future__ import annotations

import gc
import logging
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.metrics import MeterProvider as AnyMeterProvider
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, InMemoryMetricReader, Sum
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._handle import FeedbackHandle
from otel_feedback._metrics import (
    MAX_DESTINATIONS,
    MAX_ERROR_TYPES,
    OTHER,
    SKIP_REASONS,
    STATES,
    Metrics,
    NoOpMetrics,
    OpenTelemetryMetrics,
    error_type_of,
    skip_reason_of,
)
from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import DestinationStats, Settlement
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import FakeClock

NANOS_PER_SECOND = 1_000_000_000
ACCEPTED = "otel_feedback.outbox.record.accepted"
REFUSED = "otel_feedback.outbox.record.refused"
SETTLED = "otel_feedback.outbox.record.settled"
RETRIED = "otel_feedback.outbox.record.retried"
SIZE = "otel_feedback.outbox.record.queue.size"
CAPACITY = "otel_feedback.outbox.record.queue.capacity"
OLDEST_AGE = "otel_feedback.outbox.record.queue.oldest_age"
INFLIGHT = "otel_feedback.exporter.record.inflight"
DURATION = "otel_feedback.exporter.operation.duration"
QUEUE = (SIZE, CAPACITY, OLDEST_AGE)
# The metrics SDK's specification: what an SDK keeps of one instrument before it folds sets of attributes.
SDK_CARDINALITY_LIMIT = 2_000

SCOPE = "otel_feedback"
Attributes = frozenset[tuple[str, Any]]


def said(**attributes: Any) -> Attributes:
    """Write attributes as a test says them: `error_type`, or a name in our namespace."""
    names = {"error_type": "error.type", "skip_reason": "otel_feedback.skip.reason"}
    return frozenset((names.get(name, f"otel_feedback.{name}"), value) for name, value in attributes.items())


class Backend:
    """A meter provider of the SDK, and what it has collected."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider(metric_readers=[self.reader], shutdown_on_exit=False)

    def collect(self) -> Mapping[str, Any]:
        """Collect every metric, by name."""
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return {metric.name: metric for scope in scopes for metric in scope.metrics if scope.scope.name == SCOPE}

    def values(self, name: str) -> Mapping[Attributes, Any]:
        """Collect one metric: its values by attributes, of a histogram how often and how much."""
        metric = self.collect().get(name)
        points = metric.data.data_points if metric else []
        return {
            frozenset(point.attributes.items()): (point.count, point.sum) if name == DURATION else point.value
            for point in points
        }


@pytest.fixture
def backend() -> Iterator[Backend]:
    """What collects metrics."""
    backend = Backend()
    yield backend
    backend.reader.shutdown()


def nothing() -> Mapping[str, DestinationStats]:
    return {}


@pytest.fixture
def metrics(backend: Backend, clock: FakeClock) -> OpenTelemetryMetrics:
    """Metrics of a store that never got a record."""
    return OpenTelemetryMetrics(backend.meter_provider, stats=nothing, now=clock.time_unix_nano)


Watch = Callable[..., OpenTelemetryMetrics]


@pytest.fixture
def watch(backend: Backend, clock: FakeClock) -> Iterator[Watch]:
    """Make metrics that observe what is answered for a store's accounts, and keep them open."""
    made: list[OpenTelemetryMetrics] = []

    def make(
        stats: Any, *, meter_provider: AnyMeterProvider = backend.meter_provider, **options: Any
    ) -> OpenTelemetryMetrics:
        read = stats if callable(stats) else lambda: stats
        made.append(OpenTelemetryMetrics(meter_provider, stats=read, now=clock.time_unix_nano, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def tell_everything(metrics: Metrics) -> None:
    """Call every method once, as the engine does."""
    metrics.accepted(["orq"])
    metrics.refused("OutboxFullError")
    metrics.inflight("orq", 1)
    metrics.exported("orq", 0.25, None)
    metrics.settled("orq", "deliver", "HTTP 200")
    metrics.settled("orq", "retry", "HTTP 503")


# --- the instruments ---------------------------------------------------------------------------------------------


class TestTheInstruments:
    @pytest.mark.parametrize(
        ("name", "unit", "kind", "is_monotonic"),
        [
            (ACCEPTED, "{record}", Sum, True),
            (REFUSED, "{record}", Sum, True),
            (SETTLED, "{record}", Sum, True),
            (RETRIED, "{record}", Sum, True),
            (SIZE, "{record}", Sum, False),
            (CAPACITY, "{record}", Sum, False),
            (OLDEST_AGE, "s", Gauge, None),
            (INFLIGHT, "{record}", Sum, False),
            (DURATION, "s", Histogram, None),
        ],
    )
    def test_each_has_its_unit_and_kind(
        self, backend: Backend, watch: Watch, name: str, unit: str, kind: type, is_monotonic: Any
    ) -> None:
        """
        Counts are in records, times in seconds; what may fall is no monotonic sum, an age is a gauge.
        """
        tell_everything(watch({"orq": DestinationStats(pending=1, oldest_unix_nano=0)}, capacity=10))

        metric = backend.collect()[name]
        assert (unit, kind) == (metric.unit, type(metric.data))
        assert is_monotonic == getattr(metric.data, "is_monotonic", None)

    def test_there_are_no_others_and_all_are_described(self, backend: Backend, watch: Watch) -> None:
        """
        Each of the nine says in a sentence what it counts.
        """
        tell_everything(watch({"orq": DestinationStats(pending=1, oldest_unix_nano=0)}, capacity=10))

        collected = backend.collect()
        assert {ACCEPTED, REFUSED, SETTLED, RETRIED, INFLIGHT, DURATION, *QUEUE} == set(collected)
        assert all(metric.description.endswith(".") for metric in collected.values())

    def test_the_counts_go_on_over_collections(self, backend: Backend, metrics: OpenTelemetryMetrics) -> None:
        """
        They are cumulative: a second collection tells the sum.
        """
        metrics.accepted(["orq"])
        backend.collect()
        metrics.accepted(["orq"])

        metric = backend.collect()[ACCEPTED]
        assert AggregationTemporality.CUMULATIVE == metric.data.aggregation_temporality
        assert [2] == [point.value for point in metric.data.data_points]


# --- what is told ------------------------------------------------------------------------------------------------


class TestAcceptance:
    def test_an_accepted_record_counts_once_for_each_destination(
        self, backend: Backend, metrics: OpenTelemetryMetrics
    ) -> None:
        """
        As a store's `recorded` does.
        """
        metrics.accepted(["orq", "weave"])
        metrics.accepted(["orq"])

        assert {said(destination="orq"): 2, said(destination="weave"): 1} == backend.values(ACCEPTED)

    def test_a_refused_record_has_the_name_of_the_error(self, backend: Backend, metrics: OpenTelemetryMetrics) -> None:
        """
        It has no destination, as it was accepted for none.
        """
        metrics.refused("OutboxFullError")
        metrics.refused("StoreError")
        metrics.refused("StoreError")

        assert {said(error_type="OutboxFullError"): 1, said(error_type="StoreError"): 2} == backend.values(REFUSED)


class TestSettling:
    @pytest.mark.parametrize(
        ("event", "reason", "attributes"),
        [
            ("deliver", "HTTP 200", {"state": "delivered"}),
            ("deliver", None, {"state": "delivered"}),
            ("bury", "HTTP 422 (request r-1): no", {"state": "dead", "error_type": "HTTP 422"}),
            ("bury", None, {"state": "dead", "error_type": OTHER}),
            ("skip", "unsampled", {"state": "skipped", "skip_reason": "unsampled"}),
            ("skip", None, {"state": "skipped", "skip_reason": OTHER}),
            ("retract", "there was nothing to take back", {"state": "retracted"}),
            ("supersede", None, {"state": "superseded"}),
            ("an event to come", "why", {"state": OTHER}),
        ],
    )
    def test_an_end_counts_in_its_state(
        self, backend: Backend, metrics: OpenTelemetryMetrics, event: str, reason: Any, attributes: Any
    ) -> None:
        """
        With a kind of failure where it is dead, a kind of reason where it was skipped, and neither elsewhere.
        """
        metrics.settled("orq", event, reason)

        assert {said(destination="orq", **attributes): 1} == backend.values(SETTLED)
        assert {} == backend.values(RETRIED)

    def test_a_retry_is_no_end(self, backend: Backend, metrics: OpenTelemetryMetrics) -> None:
        """
        It is counted apart, by the kind of failure.
        """
        metrics.settled("orq", "retry", "HTTP 503")
        metrics.settled("orq", "retry", "HTTP 503 (request r-2)")
        metrics.settled("orq", "retry", "no answer (ReadTimeout)")

        told = {said(destination="orq", error_type="HTTP 503"): 2, said(destination="orq", error_type="ReadTimeout"): 1}
        assert told == backend.values(RETRIED)
        assert {} == backend.values(SETTLED)

    def test_what_was_accepted_less_what_was_settled_is_what_waits(self, backend: Backend, clock: FakeClock) -> None:
        """
        The counts agree with the account of a store that went through the same.
        """
        store = MemoryStore(clock=clock)
        metrics = OpenTelemetryMetrics(backend.meter_provider, stats=store.stats, now=clock.time_unix_nano)
        chance = random.Random(20260101)
        for number in range(1, 40):
            span = FeedbackHandle(SpanContext(1, number, is_remote=True, trace_flags=TraceFlags(1)))
            record = FeedbackRecord(id=f"00000000-0000-7000-8000-{number:012}", handle=span, name="rating", value=True)
            store.put(record, ["orq"])
            metrics.accepted(["orq"])
            if chance.random() < 0.5:
                event = chance.choice(["deliver", "bury", "skip", "retract"])
                settle_one(store, event)
                metrics.settled("orq", event, None)

        accepted = sum(backend.values(ACCEPTED).values())
        settled = sum(backend.values(SETTLED).values())
        assert (39, store.stats()["orq"].pending) == (accepted, accepted - settled)
        assert {said(destination="orq"): accepted - settled} == backend.values(SIZE)
        metrics.close()


def settle_one(store: MemoryStore, event: Any) -> None:
    """Settle the oldest record that waits."""
    (lease,) = store.lease("orq", limit=1, duration_millis=1_000)
    assert store.settle(lease, Settlement(event, {}))


class TestExporting:
    def test_a_duration_is_told_with_the_first_failure(self, backend: Backend, metrics: OpenTelemetryMetrics) -> None:
        """
        In seconds; a success has no kind of failure.
        """
        metrics.exported("orq", 0.25, None)
        metrics.exported("orq", 0.5, None)
        metrics.exported("orq", 2.0, "HTTP 503")

        told = {said(destination="orq"): (2, 0.75), said(destination="orq", error_type="HTTP 503"): (1, 2.0)}
        assert told == backend.values(DURATION)

    @pytest.mark.parametrize(
        ("error_type", "told"),
        [
            ("HTTP 307", "HTTP 307"),
            ("ReadTimeout", "ReadTimeout"),
            ("httpx.ReadTimeout", "httpx.ReadTimeout"),
            ("HTTP 429 (request r-1): slow down, ann@example.com", "HTTP 429"),
            ("no connection (ConnectError)", "ConnectError"),
            ("a vendor's sentence", OTHER),
            ("", OTHER),
            ("x" * 65, OTHER),
        ],
    )
    def test_a_failure_is_a_kind_or_is_read_as_a_reason(
        self, backend: Backend, metrics: OpenTelemetryMetrics, error_type: str, told: str
    ) -> None:
        """
        Names and statuses go as they are; a text goes as the kind that it names, if any.
        """
        metrics.exported("orq", 1.0, error_type)

        assert {said(destination="orq", error_type=told): (1, 1.0)} == backend.values(DURATION)

    def test_what_is_in_flight_goes_up_and_down(self, backend: Backend, metrics: OpenTelemetryMetrics) -> None:
        """
        By destination, back to zero when all has ended.
        """
        metrics.inflight("orq", 100)
        metrics.inflight("weave", 3)
        metrics.inflight("orq", -100)

        assert {said(destination="orq"): 0, said(destination="weave"): 3} == backend.values(INFLIGHT)


# --- kinds: what may be told of a text ---------------------------------------------------------------------------


class TestKinds:
    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            ("HTTP 422", "HTTP 422"),
            ("HTTP 400 (request abc): metadata is too large", "HTTP 400"),
            ("value: HTTP 200; comment: HTTP 413 (request abc)", "HTTP 413"),
            ("given up after 7 d: HTTP 503", "HTTP 503"),
            ("given up after 7 d: no connection (ConnectTimeout)", "ConnectTimeout"),
            ("no answer (RemoteProtocolError)", "RemoteProtocolError"),
            ("not tried after: no answer (ReadError)", "ReadError"),
            ("the exporter raised ZeroDivisionError", "ZeroDivisionError"),
            ("the exporter failed (KeyError)", "KeyError"),
            ("HTTP 200", OTHER),
            ("HTTP 4220", OTHER),
            ("the span's parent is of no known form", OTHER),
            ("ann@example.com", OTHER),
            ("", OTHER),
            (None, OTHER),
        ],
    )
    def test_a_failure_is_named_by_what_our_reasons_say(self, reason: str | None, kind: str) -> None:
        """
        A status of a failure or an exception's name, wherever it stands; else `_OTHER`.
        """
        assert kind == error_type_of(reason)

    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            ("unsampled", "unsampled"),
            ("nothing changed since the judgement before", "unchanged"),
            ("there was nothing to take back", "nothing_to_retract"),
            ("weave can carry nothing of it", "not_carried"),
            ("Braintrust cannot take back comment", "not_retractable"),
            ("an event that was emitted cannot be taken back", "not_retractable"),
            ("value: Braintrust cannot take back value; comment: x", "not_retractable"),
            ("ann@example.com asked for it", OTHER),
            (None, OTHER),
        ],
    )
    def test_a_reason_for_skipping_is_one_of_a_few_words(self, reason: str | None, kind: str) -> None:
        """
        The words of the table for our reasons, `_OTHER` for an exporter's own.
        """
        assert kind == skip_reason_of(reason)

    @given(st.text())
    def test_no_text_is_told_as_it_is(self, text: str) -> None:
        """
        Whatever a vendor writes, a reason becomes a word of ours, a status or a name of at most 64 letters.
        """
        kinds = {kind for _, kind in SKIP_REASONS}

        assert skip_reason_of(text) in {*kinds, OTHER}
        assert error_type_of(f"{text} HTTP 422 {text}").startswith("HTTP ")
        assert len(error_type_of(f"no answer ({text})")) <= 64

    def test_the_states_are_those_of_a_stores_account(self) -> None:
        """
        A state has the name of the field that counts it.
        """
        assert set(STATES.values()) <= set(DestinationStats.__dataclass_fields__)


class TestCardinality:
    def test_the_destinations_beyond_the_limit_are_one(self, backend: Backend, metrics: OpenTelemetryMetrics) -> None:
        """
        Those that came first keep their names, and nothing is left out of the sum.
        """
        for _ in range(2):
            metrics.accepted([f"tenant-{number}" for number in range(MAX_DESTINATIONS + 5)])

        values = backend.values(ACCEPTED)
        assert (2, 10) == (values[said(destination="tenant-0")], values[said(destination=OTHER)])
        assert (MAX_DESTINATIONS + 1, 2 * MAX_DESTINATIONS + 10) == (len(values), sum(values.values()))

    def test_the_queues_of_those_destinations_are_one_queue(
        self, backend: Backend, clock: FakeClock, watch: Watch
    ) -> None:
        """
        Their sizes and capacities add up, and their age is that of the oldest.
        """
        began = clock.time_unix_nano()
        ages = range(MAX_DESTINATIONS + 3)
        watch(
            {
                f"tenant-{age:03}": DestinationStats(pending=1, oldest_unix_nano=began - age * NANOS_PER_SECOND)
                for age in ages
            },
            capacity=10,
        )

        others = [backend.values(name)[said(destination=OTHER)] for name in QUEUE]
        assert [3, 30, float(ages[-1])] == others

    def test_no_instrument_has_more_attributes_than_an_sdk_keeps(
        self, backend: Backend, metrics: OpenTelemetryMetrics
    ) -> None:
        """
        However many destinations, failures and reasons there are.
        """
        texts = ["unsampled", "nothing changed", "nothing to take back", "can carry nothing", "cannot take back", "?"]
        for destination in map(str, range(MAX_DESTINATIONS + 2)):
            for number in range(MAX_ERROR_TYPES + 2):
                for event in ("bury", "retry"):
                    metrics.settled(destination, event, f"the exporter raised Error{number}")
            for event in ("deliver", "retract", "supersede"):
                metrics.settled(destination, event, None)
            for text in texts:
                metrics.settled(destination, "skip", text)

        counts = [len(backend.values(name)) for name in (SETTLED, RETRIED)]
        kinds = MAX_ERROR_TYPES + 1
        assert [(MAX_DESTINATIONS + 1) * (kinds + 3 + len(texts)), (MAX_DESTINATIONS + 1) * kinds] == counts
        assert max(counts) < SDK_CARDINALITY_LIMIT


# --- the queue ---------------------------------------------------------------------------------------------------


class TestTheQueue:
    def test_it_is_read_when_it_is_collected(self, backend: Backend, clock: FakeClock, watch: Watch) -> None:
        """
        Size, capacity and the age of the oldest, in seconds, for each destination of that moment.
        """
        accounts: dict[str, DestinationStats] = {}
        watch(lambda: accounts, capacity=1_000)
        before = [backend.values(name) for name in QUEUE]
        accounts["orq"] = DestinationStats(pending=3, oldest_unix_nano=clock.time_unix_nano())
        accounts["weave"] = DestinationStats(delivered=7)
        clock.advance(seconds=90)

        orq, weave = said(destination="orq"), said(destination="weave")
        assert [{}, {}, {}] == before
        assert {orq: 3, weave: 0} == backend.values(SIZE)
        assert {orq: 1_000, weave: 1_000} == backend.values(CAPACITY)
        assert {orq: 90.0, weave: 0.0} == backend.values(OLDEST_AGE)

    def test_without_a_limit_there_is_no_capacity(self, backend: Backend, watch: Watch) -> None:
        """
        The size is observed all the same.
        """
        watch({"orq": DestinationStats(pending=3)})

        assert ({said(destination="orq"): 3}, {}) == (backend.values(SIZE), backend.values(CAPACITY))

    def test_a_clock_that_was_set_back_makes_no_negative_age(
        self, backend: Backend, clock: FakeClock, watch: Watch
    ) -> None:
        """
        What was accepted in what is now the future is as old as new.
        """
        watch({"orq": DestinationStats(pending=1, oldest_unix_nano=clock.time_unix_nano() + NANOS_PER_SECOND)})

        assert {said(destination="orq"): 0.0} == backend.values(OLDEST_AGE)

    def test_after_closing_nothing_is_observed(self, backend: Backend, watch: Watch) -> None:
        """
        The store is not even asked; counting goes on; closing again does nothing.
        """
        asked: list[str] = []
        metrics = watch(lambda: asked.append("stats") or {"orq": DestinationStats(pending=3)})
        assert {said(destination="orq"): 3} == backend.values(SIZE)
        metrics.close()
        metrics.close()
        asked.clear()
        metrics.accepted(["orq"])

        collected = backend.collect()
        assert ({ACCEPTED}, []) == (set(collected), asked)

    def test_what_is_forgotten_open_is_not_kept_alive(self, backend: Backend, clock: FakeClock) -> None:
        """
        The instruments stay, and hold neither the metrics nor the store.
        """
        asked: list[str] = []

        def stats() -> Mapping[str, DestinationStats]:
            asked.append("stats")
            return {"orq": DestinationStats(pending=3)}

        metrics = OpenTelemetryMetrics(backend.meter_provider, stats=stats, now=clock.time_unix_nano)
        del metrics
        gc.collect()

        assert ({}, []) == (backend.values(SIZE), asked)

    def test_a_later_one_is_observed_as_well(self, backend: Backend, watch: Watch) -> None:
        """
        Though an SDK drops the callbacks of an instrument that it has already.
        """
        watch({"orq": DestinationStats(pending=3)}).close()
        watch({"orq": DestinationStats(pending=4)}, capacity=10)

        orq = said(destination="orq")
        assert ({orq: 4}, {orq: 10}) == (backend.values(SIZE), backend.values(CAPACITY))

    @pytest.mark.parametrize(("capacities", "told"), [((10, 20), 30), ((10, None), None), ((None, 20), None)])
    def test_two_at_once_are_one_queue(
        self, backend: Backend, clock: FakeClock, watch: Watch, capacities: Any, told: Any
    ) -> None:
        """
        Their sizes add up; so do their limits, if both have one.
        """
        began = clock.time_unix_nano()
        watch({"orq": DestinationStats(pending=3, oldest_unix_nano=began)}, capacity=capacities[0])
        watch({"orq": DestinationStats(pending=4, oldest_unix_nano=began - NANOS_PER_SECOND)}, capacity=capacities[1])

        orq = said(destination="orq")
        assert ({orq: 7}, {orq: 1.0}) == (backend.values(SIZE), backend.values(OLDEST_AGE))
        assert ({} if told is None else {orq: told}) == backend.values(CAPACITY)

    def test_each_meter_provider_observes_its_own(self, backend: Backend, watch: Watch) -> None:
        """
        Two stores that are told to two backends do not mix.
        """
        other = Backend()
        watch({"orq": DestinationStats(pending=3)})
        watch({"weave": DestinationStats(pending=4)}, meter_provider=other.meter_provider)

        assert {said(destination="orq"): 3} == backend.values(SIZE)
        assert {said(destination="weave"): 4} == other.values(SIZE)


# --- the global meter provider -----------------------------------------------------------------------------------

# It can be set once in a process, so each of these is a program.
PRELUDE = """
from opentelemetry import metrics as api
from otel_feedback._metrics import OpenTelemetryMetrics
from otel_feedback.stores import DestinationStats

SIZE = "otel_feedback.outbox.record.queue.size"

def watch(pending, meter_provider=None):
    stats = {"orq": DestinationStats(pending=pending)}
    return OpenTelemetryMetrics(meter_provider, stats=lambda: stats, now=lambda: 0)

def install():
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    reader = InMemoryMetricReader()
    meter_provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    return reader, meter_provider

def collect(reader):
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    return {metric.name: [point.value for point in metric.data.data_points] for metric in scope.metrics}
"""


def printed_by(program: str, **environment: str) -> tuple[int, str, str]:
    """Run a program; answer how it ended and what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:.*multi-threaded:DeprecationWarning", "-c", PRELUDE + program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class TestTheGlobalMeterProvider:
    def test_one_that_is_set_later_gets_everything_from_then_on(self) -> None:
        """
        The API's proxies become real: counts and the queue, and also those of metrics that are made after it was set.
        """
        program = """
            early = watch(3)
            early.accepted(["orq"])
            reader, meter_provider = install()
            api.set_meter_provider(meter_provider)
            early.accepted(["orq"])
            print(collect(reader)["otel_feedback.outbox.record.accepted"], collect(reader)[SIZE])
            late = watch(4)
            print(collect(reader)[SIZE])
            early.close()
            print(collect(reader)[SIZE])
            """

        assert (0, "[1] [3]\n[7]\n[4]\n") == printed_by(textwrap.dedent(program))[:2]  # early SDKs log what they drop

    def test_one_that_was_given_and_is_set_later_is_one(self) -> None:
        """
        Whichever way it was come by, each queue is observed once: given before, waited for, taken from the API.
        """
        program = """
            reader, meter_provider = install()
            given, waiting, proxied = watch(1, meter_provider), watch(10), watch(100, api.get_meter_provider())
            api.set_meter_provider(meter_provider)
            taken = watch(1000, api.get_meter_provider())
            print(collect(reader)[SIZE])
            """

        assert (0, "[1111]\n") == printed_by(textwrap.dedent(program))[:2]  # early SDKs log what they drop

    def test_without_one_nothing_is_asked_and_no_sdk_is_loaded(self) -> None:
        """
        The module needs the API alone.
        """
        program = """
            import sys
            metrics = watch(3)
            metrics.accepted(["orq"])
            metrics.close()
            print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
            """

        assert (0, "[]\n", "") == printed_by(textwrap.dedent(program))

    def test_one_that_cannot_be_loaded_is_told_nothing(self) -> None:
        """
        The API loads what its variable names, which may not be there: the engine goes on and the log says why.
        """
        program = """
            metrics = watch(3)
            metrics.accepted(["orq"])
            metrics.close()
            print("fine")
            """

        returned, out, err = printed_by(textwrap.dedent(program), OTEL_PYTHON_METER_PROVIDER="nowhere")
        assert (0, "fine\n", True) == (returned, out, "there are no metrics: the meter provider raised " in err)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_waits_for_no_thread_of_its_parent() -> None:
    """
    A fork while another thread reads the queue leaves the child everything: counting, closing and metrics of its own.
    """
    program = """
        import os, signal, threading
        is_reading, is_done = threading.Event(), threading.Event()

        def stats():
            is_reading.set()
            is_done.wait(30)
            return {"orq": DestinationStats(pending=3)}

        reader, meter_provider = install()
        metrics = OpenTelemetryMetrics(meter_provider, stats=stats, now=lambda: 0)
        thread = threading.Thread(target=reader.get_metrics_data)
        thread.start()
        is_reading.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            metrics.accepted(["orq"])
            metrics.refused("StoreError")
            metrics.inflight("orq", 1)
            metrics.exported("orq", 1.0, None)
            metrics.settled("orq", "deliver", None)
            metrics.close()
            reader, meter_provider = install()
            own = watch(5, meter_provider)
            print(collect(reader)[SIZE], flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        is_done.set()
        thread.join()
        print(collect(reader)[SIZE])
        """

    assert (0, "[5]\n0\n[3]\n", "") == printed_by(textwrap.dedent(program))


# --- what cannot harm --------------------------------------------------------------------------------------------


class Raising(AnyMeterProvider):
    """Raises when it is asked for a meter."""

    def get_meter(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("the key is sk-secret")


class Unmakeable(AnyMeterProvider):
    """Gives a meter that raises at the instrument of some kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_meter(self, *_: Any, **__: Any) -> Any:
        meter = NoOpMeter("unmakeable")
        setattr(meter, f"create_{self.kind}", self.refuse)
        return meter

    def refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("the key is sk-secret")


class Untellable(AnyMeterProvider):
    """Gives instruments that raise when they are told something."""

    def get_meter(self, *_: Any, **__: Any) -> Any:
        meter: Any = NoOpMeter("untellable")
        meter.create_counter = meter.create_up_down_counter = meter.create_histogram = lambda **_: self
        return meter

    def add(self, *_: Any) -> None:
        raise RuntimeError("the key is sk-secret")

    record = add


HOSTILE = [
    Raising(),
    *(
        Unmakeable(kind)
        for kind in (
            "counter",
            "up_down_counter",
            "histogram",
            "observable_gauge",
            "observable_up_down_counter",
        )
    ),
]


class TestHostileBackends:
    @pytest.mark.parametrize("meter_provider", HOSTILE, ids=lambda hostile: getattr(hostile, "kind", "meter"))
    def test_a_meter_provider_that_fails_is_told_nothing(
        self, watch: Watch, meter_provider: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Nothing is raised then or later, and one line says so with the error's name, not its text.
        """
        tell_everything(watch({"orq": DestinationStats()}, meter_provider=meter_provider))

        (line,) = caplog.messages
        assert line.startswith("there are no metrics: the meter provider raised ")
        assert "sk-secret" not in caplog.text

    def test_instruments_that_raise_are_complained_of_once(
        self, watch: Watch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        The engine hears nothing of it, however often it tells them.
        """
        metrics = watch({"orq": DestinationStats()}, meter_provider=Untellable())
        tell_everything(metrics)
        tell_everything(metrics)

        assert ["metrics are lost: an instrument raised RuntimeError"] == caplog.messages

    def test_a_meter_provider_that_was_shut_down_is_no_failure(self, watch: Watch) -> None:
        """
        Metrics that are made after it are told to nobody.
        """
        late = Backend()
        late.meter_provider.shutdown()
        tell_everything(watch({"orq": DestinationStats(pending=3)}, meter_provider=late.meter_provider))

        assert {} == late.collect()

    def test_what_is_told_after_the_shutdown_harms_nothing(
        self, backend: Backend, watch: Watch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        The engine may outlive the meter provider, and that is nothing to complain of.
        """
        metrics = watch({"orq": DestinationStats(pending=3)})
        backend.meter_provider.shutdown()
        tell_everything(metrics)
        metrics.close()

        assert [] == [record for record in caplog.records if record.name.startswith("otel_feedback")]


class TestHostileStores:
    def test_a_store_that_raises_is_not_observed_until_it_can_be_read(
        self, backend: Backend, watch: Watch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Nothing is raised into the SDK, which logs what it catches; one line a failure says so, without its text.
        """
        answers: dict[str, Any] = {}

        def stats() -> Mapping[str, DestinationStats]:
            if not answers:
                raise StoreError("the disk of ann@example.com is full", store="sqlite:///x")
            return answers

        watch(stats)
        failed = [backend.values(name) for name in QUEUE]
        answers["orq"] = DestinationStats(pending=3)
        recovered = backend.values(SIZE)
        answers.clear()
        backend.collect()

        line = "the queue is not observed: reading it raised StoreError"
        assert ([{}, {}, {}], {said(destination="orq"): 3}) == (failed, recovered)
        assert [(logging.WARNING, line)] * 2 == [(record.levelno, record.getMessage()) for record in caplog.records]

    @pytest.mark.parametrize("answer", [None, [], {"orq": None}, {"orq": {"pending": 3}}])
    def test_a_store_that_answers_with_anything_else_is_not_observed(
        self, backend: Backend, watch: Watch, caplog: pytest.LogCaptureFixture, answer: Any
    ) -> None:
        """
        As if it had raised.
        """
        watch(answer)

        assert [{}, {}, {}] == [backend.values(name) for name in QUEUE]
        assert 1 == len(caplog.messages)

    def test_a_clock_that_raises_is_taken_as_a_store_that_does(
        self, backend: Backend, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        The age cannot be told, and nothing is.
        """
        accounts = {"orq": DestinationStats(pending=1, oldest_unix_nano=0)}
        metrics = OpenTelemetryMetrics(backend.meter_provider, stats=lambda: accounts, now=iter(()).__next__)

        assert {} == backend.values(OLDEST_AGE)
        assert ["the queue is not observed: reading it raised StopIteration"] == caplog.messages
        metrics.close()

    def test_one_that_raises_hides_no_other(self, backend: Backend, watch: Watch) -> None:
        """
        Of two stores that are told to one backend, the sound one is observed.
        """
        watch(lambda: {}["nothing"])
        watch({"orq": DestinationStats(pending=3)})

        assert {said(destination="orq"): 3} == backend.values(SIZE)


# --- nobody ------------------------------------------------------------------------------------------------------


def test_nobody_takes_everything() -> None:
    """
    The metrics that tell nobody answer nothing to all that can be told, and can be closed.
    """
    metrics: Metrics = NoOpMetrics()
    tell_everything(metrics)

    assert metrics.close() is None
