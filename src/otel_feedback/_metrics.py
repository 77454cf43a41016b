"""Metrics: what was accepted, what became of it, and what waits, told to OpenTelemetry; by default to nobody.

The instruments have the shape of the SDK's own (`otel.sdk.processor.*`, `otel.sdk.exporter.*`) in a namespace of ours.
Everything about their names, units and attributes lives here, as data; this file does not know who delivers.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    MeterProvider,
    NoOpMeter,
    Observation,
    UpDownCounter,
    get_meter_provider,
)

logger = logging.getLogger(__name__)

SCOPE = "otel_feedback"
NANOS_PER_SECOND = 1_000_000_000

# --- instruments and attributes, as data -------------------------------------------------------------------------


class Instrument(NamedTuple):
    """What an instrument is called, what it counts in, and what it says."""

    name: str
    unit: str
    description: str


ACCEPTED = Instrument(
    "otel_feedback.outbox.record.accepted",
    "{record}",
    "The number of records that were accepted, once for each destination.",
)
REFUSED = Instrument(
    "otel_feedback.outbox.record.refused",
    "{record}",
    "The number of records that the store refused, or failed to take.",
)
SETTLED = Instrument(
    "otel_feedback.outbox.record.settled",
    "{record}",
    "The number of records that have come to an end at a destination, by the state they ended in.",
)
RETRIED = Instrument(
    "otel_feedback.outbox.record.retried",
    "{record}",
    "The number of attempts at a record that will be followed by another one.",
)
QUEUE_SIZE = Instrument(
    "otel_feedback.outbox.record.queue.size",
    "{record}",
    "The number of records that wait in the store. Processes that share a store all report it: take the maximum.",
)
QUEUE_CAPACITY = Instrument(
    "otel_feedback.outbox.record.queue.capacity",
    "{record}",
    "The number of records that the store lets wait.",
)
QUEUE_OLDEST_AGE = Instrument(
    "otel_feedback.outbox.record.queue.oldest_age",
    "s",
    "The time since the oldest record that waits was accepted, 0 where none waits.",
)
INFLIGHT = Instrument(
    "otel_feedback.exporter.record.inflight",
    "{record}",
    "The number of records that were passed to the exporter and are not exported yet, neither successfully nor not.",
)
DURATION = Instrument(
    "otel_feedback.exporter.operation.duration",
    "s",
    "The duration of exporting a batch of records.",
)

DESTINATION = "otel_feedback.destination"
STATE = "otel_feedback.state"
SKIP_REASON = "otel_feedback.skip.reason"
ERROR_TYPE = "error.type"  # https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/

# The semantic conventions' word for a value that has no name of its own.
OTHER = "_OTHER"

# Beyond these, values become `OTHER`. One instrument then has at most 21 x (3 + 6 + 51) sets of attributes, which
# stays below the 2,000 at which an SDK begins to fold them by its own rules (Metrics SDK, "Cardinality limits").
MAX_DESTINATIONS = 20
MAX_ERROR_TYPES = 50

# The state in which an event of the outbox ends a delivery.
STATES: Mapping[str, str] = {
    "deliver": "delivered",
    "bury": "dead",
    "skip": "skipped",
    "retract": "retracted",
    "supersede": "superseded",
}

# What a reason for skipping says, and what it is called; the first that fits. Texts of others are never told.
SKIP_REASONS: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile("unsampled"), "unsampled"),
    (re.compile("nothing changed"), "unchanged"),
    (re.compile("nothing to take back"), "nothing_to_retract"),
    (re.compile("can carry nothing"), "not_carried"),
    (re.compile("cannot (be taken|take) back"), "not_retractable"),
)

# Where a reason of ours says what kind of failure it was. What follows it may be a vendor's text, which is never told.
FAILURES: Sequence[re.Pattern[str]] = (
    re.compile(r"\b(HTTP [45]\d\d)\b", re.ASCII),
    re.compile(r"\bno (?:connection|answer) \((\w{1,64})\)", re.ASCII),
    re.compile(r"\bthe exporter (?:raised |failed \()(\w{1,64})", re.ASCII),
)
# What is a kind already: the name of an exception, or a status.
KIND = re.compile(r"[a-z_][\w.]{0,63}|HTTP [1-5]\d\d", re.ASCII | re.IGNORECASE)


def skip_reason_of(reason: str | None) -> str:
    """Name the kind of a reason for skipping, in one of a few words."""
    return next((name for said, name in SKIP_REASONS if said.search(reason or "")), OTHER)


def error_type_of(reason: str | None) -> str:
    """Name the kind of failure that a reason tells of: a status or an exception's name, nothing of a vendor's text."""
    matches = (failure.search(reason or "") for failure in FAILURES)
    return next((match[1] for match in matches if match), OTHER)


def _kind_of(error_type: str) -> str:
    """Take what is a kind of failure as it is, and anything longer as a reason."""
    return error_type if KIND.fullmatch(error_type) else error_type_of(error_type)


class _Capped:
    """Lets the first values pass, up to a limit, and those again; others become `OTHER`.

    It holds no lock: threads that come at the same moment may each bring one value beyond the limit.
    """

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        """Answer the value, or `OTHER`."""
        if value not in self._seen:
            if len(self._seen) >= self._limit:
                return OTHER
            self._seen.add(value)
        return value


# --- the port ----------------------------------------------------------------------------------------------------


class Metrics(Protocol):
    """What the engine tells of its work.

    - No method raises, whatever it is backed by, and none waits for a store. It holds no lock across a fork.
    - Where a record is skipped as it is accepted, it is both: `accepted`, and `settled` by `skip`.
    - Of texts, only kinds go on: a status, an exception's name, one of a few words; never what a vendor wrote.
    """

    def accepted(self, destinations: Sequence[str]) -> None:
        """Count a record that was accepted for these destinations."""
        ...

    def refused(self, error_type: str) -> None:
        """Count a record that was not accepted, by the name of the error that said so."""
        ...

    def exported(self, destination: str, seconds: float, error_type: str | None) -> None:
        """Tell how long the export of one batch took, and what its first failure was: a kind, or a result's reason."""
        ...

    def settled(self, destination: str, event: str, reason: str | None) -> None:
        """Count the end of a lease by its event; a `retry` only where it counts as an attempt."""
        ...

    def inflight(self, destination: str, delta: int) -> None:
        """Tell that so many records more, or fewer, are with the exporter."""
        ...

    def close(self) -> None:
        """Observe the queue no more; idempotent. What is told afterwards is still counted."""
        ...


class NoOpMetrics:
    """Tells nobody."""

    def accepted(self, destinations: Sequence[str]) -> None:
        """Do nothing."""

    def refused(self, error_type: str) -> None:
        """Do nothing."""

    def exported(self, destination: str, seconds: float, error_type: str | None) -> None:
        """Do nothing."""

    def settled(self, destination: str, event: str, reason: str | None) -> None:
        """Do nothing."""

    def inflight(self, destination: str, delta: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


# --- the queue, observed -----------------------------------------------------------------------------------------


class Account(Protocol):
    """What is read of a destination's account; a store's `DestinationStats` has it."""

    @property
    def pending(self) -> int:
        """How many records wait."""
        ...

    @property
    def oldest_unix_nano(self) -> int | None:
        """When the oldest of them was accepted."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """The queue of one destination at one moment; no capacity is no limit."""

    size: int
    capacity: int | None
    oldest_age_seconds: float

    def __add__(self, other: Reading) -> Reading:
        """Take two queues as one."""
        return Reading(
            self.size + other.size,
            None if self.capacity is None or other.capacity is None else self.capacity + other.capacity,
            max(self.oldest_age_seconds, other.oldest_age_seconds),
        )


@dataclass(eq=False)  # no slots: Python 3.10 gives those no weak references
class _Queue:
    """Where the queue is read from, and whose meters are told; no meter provider is the global one."""

    stats: Callable[[], Mapping[str, Account]]
    now: Callable[[], int]
    capacity: int | None
    destination: Callable[[str], str]
    meter_provider: MeterProvider | None
    is_failing: bool = False

    def read(self) -> Iterable[tuple[str, Reading]]:
        """Read each destination's queue; one that cannot be read is not there, which is said once until it can."""
        try:
            readings = [(self.destination(name), self._reading(account)) for name, account in self.stats().items()]
        except Exception as error:  # noqa: BLE001 (the boundary to the store: nothing is raised into an SDK)
            if not self.is_failing:
                logger.warning("the queue is not observed: reading it raised %s", type(error).__name__)
            self.is_failing = True
            return ()
        self.is_failing = False
        return readings

    def _reading(self, account: Account) -> Reading:
        """Read one account; a clock that was set back makes nothing younger than new."""
        oldest = account.oldest_unix_nano
        age_nanos = 0 if oldest is None else max(0, self.now() - oldest)
        return Reading(account.pending, self.capacity, age_nanos / NANOS_PER_SECOND)


# The queues that are observed, by their ids. An SDK keeps the callbacks of the first instrument of a name and drops
# those of every later one, for good. So all callbacks are alike: they look here for what is open when they are called.
# The references are weak, as nothing that is forgotten open may be kept alive by a callback. There is no lock, so none
# is held in a forked child: each step is one operation of a dict, and those are atomic.
_open: dict[int, weakref.ref[_Queue]] = {}


def _open_queue(queue: _Queue) -> None:
    """Let the callbacks find a queue, until it is closed or gone."""
    number = id(queue)
    # What is called with the dead reference is `pop(number, reference)`, which answers it where the queue was closed.
    _open[number] = weakref.ref(queue, partial(_open.pop, number))


def _queues_of(meter_provider: MeterProvider | None) -> Iterator[_Queue]:
    """Find the open queues of whom a meter provider is told; who gave none means the one that is global by now."""
    whose = _resolved(meter_provider)
    for reference in list(_open.values()):
        queue = reference()
        if queue is not None and _resolved(queue.meter_provider) is whose:
            yield queue


def _resolved(meter_provider: MeterProvider | None) -> MeterProvider:
    """Answer a meter provider, in place of none the global one of this moment."""
    return get_meter_provider() if meter_provider is None else meter_provider


def _read(meter_provider: MeterProvider | None) -> Mapping[str, Reading]:
    """Read what waits at each destination, over all queues of a meter provider: no set of attributes comes twice."""
    total: dict[str, Reading] = {}
    for queue in _queues_of(meter_provider):
        for destination, reading in queue.read():
            total[destination] = total[destination] + reading if destination in total else reading
    return total


def _observed(
    meter_provider: MeterProvider | None, value_of: Callable[[Reading], float | None]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """Make the callback that observes one value of each destination's queue, where there is one."""

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, {DESTINATION: destination})
            for destination, reading in _read(meter_provider).items()
            if (value := value_of(reading)) is not None
        ]

    return observe


# --- OpenTelemetry -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Instruments:
    """The instruments that are told; those that ask are in the meter's keeping."""

    accepted: Counter
    refused: Counter
    settled: Counter
    retried: Counter
    inflight: UpDownCounter
    duration: Histogram


def _create(meter: Meter, meter_provider: MeterProvider | None) -> _Instruments:
    """Create every instrument of the table."""
    _create_observed(meter, meter_provider)
    return _Instruments(
        accepted=meter.create_counter(**ACCEPTED._asdict()),
        refused=meter.create_counter(**REFUSED._asdict()),
        settled=meter.create_counter(**SETTLED._asdict()),
        retried=meter.create_counter(**RETRIED._asdict()),
        inflight=meter.create_up_down_counter(**INFLIGHT._asdict()),
        duration=meter.create_histogram(**DURATION._asdict()),
    )


def _create_observed(meter: Meter, meter_provider: MeterProvider | None) -> None:
    """Create the instruments of the queue.

    The capacity as well where there is none: a later provider of feedback may have one, and cannot add it.
    """
    size = _observed(meter_provider, lambda reading: reading.size)
    capacity = _observed(meter_provider, lambda reading: reading.capacity)
    oldest_age = _observed(meter_provider, lambda reading: reading.oldest_age_seconds)
    meter.create_observable_up_down_counter(callbacks=[size], **QUEUE_SIZE._asdict())
    meter.create_observable_up_down_counter(callbacks=[capacity], **QUEUE_CAPACITY._asdict())
    meter.create_observable_gauge(callbacks=[oldest_age], **QUEUE_OLDEST_AGE._asdict())


class OpenTelemetryMetrics:
    """Tells OpenTelemetry.

    It needs the API alone. A global meter provider that is set later gets everything from then on.

    Args:
        meter_provider: whom to tell; by default the global one.

        stats: reads the account of each destination, as a store's `stats`; it is called from the threads that collect.

        now: tells the time in Unix nanoseconds.

        capacity: how many records may wait at a destination; `None` for no limit.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        *,
        stats: Callable[[], Mapping[str, Account]],
        now: Callable[[], int],
        capacity: int | None = None,
    ) -> None:
        self._destination = _Capped(MAX_DESTINATIONS)
        self._error_type = _Capped(MAX_ERROR_TYPES)
        self._is_failing = False
        self._queue = _Queue(stats, now, capacity, self._destination, meter_provider)
        self._instruments = self._connect()

    def accepted(self, destinations: Sequence[str]) -> None:
        """Count a record that was accepted for these destinations."""
        for destination in destinations:
            self._tell(self._instruments.accepted.add, 1, {DESTINATION: self._destination(destination)})

    def refused(self, error_type: str) -> None:
        """Count a record that was not accepted."""
        self._tell(self._instruments.refused.add, 1, self._failed(_kind_of(error_type)))

    def exported(self, destination: str, seconds: float, error_type: str | None) -> None:
        """Tell how long the export of one batch took, and what its first failure was."""
        failed = {} if error_type is None else self._failed(_kind_of(error_type))
        attributes = {DESTINATION: self._destination(destination), **failed}
        self._tell(self._instruments.duration.record, seconds, attributes)

    def settled(self, destination: str, event: str, reason: str | None) -> None:
        """Count the end of a lease by its event."""
        attributes = {DESTINATION: self._destination(destination), **self._why(event, reason)}
        if event == "retry":
            self._tell(self._instruments.retried.add, 1, attributes)
        else:
            self._tell(self._instruments.settled.add, 1, {**attributes, STATE: STATES.get(event, OTHER)})

    def inflight(self, destination: str, delta: int) -> None:
        """Tell that so many records more, or fewer, are with the exporter."""
        self._tell(self._instruments.inflight.add, delta, {DESTINATION: self._destination(destination)})

    def close(self) -> None:
        """Observe the queue no more."""
        _open.pop(id(self._queue), None)

    def _connect(self) -> _Instruments:
        """Create the instruments and open the queue to them; a meter provider that fails at it is told nothing."""
        try:
            # The global one is not held on to: what is it now may be a proxy of the real one.
            if self._queue.meter_provider is get_meter_provider():
                self._queue.meter_provider = None
            meter_provider = self._queue.meter_provider
            instruments = _create(_resolved(meter_provider).get_meter(SCOPE), meter_provider)
        except Exception as error:  # noqa: BLE001 (the boundary to the meter provider)
            logger.warning("there are no metrics: the meter provider raised %s", type(error).__name__)
            return _create(NoOpMeter(SCOPE), None)
        _open_queue(self._queue)
        return instruments

    def _why(self, event: str, reason: str | None) -> Mapping[str, str]:
        """Say in an attribute why a record was skipped, buried or has to be tried again."""
        if event == "skip":
            return {SKIP_REASON: skip_reason_of(reason)}
        return self._failed(error_type_of(reason)) if event in ("bury", "retry") else {}

    def _failed(self, kind: str) -> Mapping[str, str]:
        """Say in an attribute what kind of failure it was."""
        return {ERROR_TYPE: self._error_type(kind)}

    def _tell(
        self, instrument: Callable[[float, Mapping[str, str]], None], amount: float, attributes: Mapping[str, str]
    ) -> None:
        """Tell an instrument; one that raises harms nothing, and is complained of once."""
        try:
            instrument(amount, attributes)
        except Exception as error:  # noqa: BLE001 (the boundary to the meter provider)
            if not self._is_failing:
                logger.warning("metrics are lost: an instrument raised %s", type(error).__name__)
            self._is_failing = True
