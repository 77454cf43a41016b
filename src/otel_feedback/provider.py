"""`FeedbackProvider`: the composition root, the one place that knows every part."""

from __future__ import annotations

import asyncio
import atexit
import importlib.metadata
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from random import Random, SystemRandom
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

from opentelemetry import trace

from otel_feedback import _active, processor
from otel_feedback import environment_variables as env
from otel_feedback._capture import INVALID
from otel_feedback._correlate import DEFAULT_KINDS, ENDED, ENDS, Call, Correlator, Promise, note_key
from otel_feedback._declare import Declaration, Schema
from otel_feedback._deliver import Deliverer, DeliveryThread, Keeper, drain
from otel_feedback._dialects import TO, is_unicode
from otel_feedback._handle import FeedbackHandle
from otel_feedback._metrics import Metrics, NoOpMetrics, OpenTelemetryMetrics
from otel_feedback._record import (
    DeliveryStatus,
    Feedback,
    FeedbackRecord,
    Receipt,
    check_handle,
    check_key,
    check_name,
    check_one_target,
    feedback_of,
    identifier,
    judgement_id,
    make_record,
    normal_id,
    stand_in_handle,
    without_idle_scale,
)
from otel_feedback._retry import DAY_MILLIS, RetryPolicy
from otel_feedback._route import DestinationPlan, Filter, Redact, Router
from otel_feedback._settings import Settings
from otel_feedback._time import NANOS_PER_MILLI, Clock, SystemClock, moment
from otel_feedback._tokens import MAX_TOKEN_CHARS, FeedbackGrant, read_token, write_token
from otel_feedback.exceptions import (
    ConfigurationError,
    InvalidFeedbackError,
    InvalidTokenError,
    StoreError,
    UnknownTargetError,
)
from otel_feedback.exporters import FeedbackExporter, where
from otel_feedback.stores import APP, PARKED, TRANSITIONS, UNROUTED, Binding, DestinationStats, Entry, Parked, Store
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer
    from typing_extensions import Self, Unpack

    from otel_feedback._record import FeedbackOptions, GivenValue

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "otel_feedback_exporter"

# A failing capture, or filter, says so at its first error and then at every thousandth.
ERRORS_PER_LINE = 1_000
# So many undeclared names are told of, each once: more are no names that anybody chose.
MAX_TOLD_NAMES = 100
# How long a token holds by default: people judge an answer days after they got it.
TOKEN_LIFETIME = timedelta(days=30)
# How often a judgement that is given in an event loop looks again for its key.
ASYNC_POLL_MILLIS = 100
# How often a flush looks again while something is due later.
FLUSH_POLL_MILLIS = 20
# What a judgement waits for whose giver named no kind: a key of any of the kinds that are looked among by default.
ANY_KIND = "any"

# What a judgement is that waits for its key: not in the outbox yet.
_PARKED = DeliveryStatus(PARKED, "no call is known for its key yet")

_DISABLED = Receipt("", "disabled", {})


@dataclass(slots=True)
class _Engine:
    """What delivers in one process: for each destination threads, the first of which wakes the others."""

    deliverers: Sequence[Deliverer]
    threads: Mapping[str, Sequence[DeliveryThread]] = field(default_factory=dict)
    # Whether `deliver()` has been called here.
    has_delivered: bool = False
    # Those that were asked to stop; one that hangs in a request may still be there.
    stopped: Sequence[DeliveryThread] = ()

    def wake(self) -> None:
        """Say that something is due."""
        for first, *_ in self.threads.values():
            first.wake()

    @property
    def all_threads(self) -> Sequence[DeliveryThread]:
        """Every thread."""
        return [thread for threads in self.threads.values() for thread in threads]


@dataclass(slots=True)
class _Process:
    """What runs in one process: a fork needs another one."""

    pid: int
    correlator: Correlator
    is_correlating: bool = False
    # Captured calls do not wait for it: it is started behind their back.
    engine: _Engine | None = None


@dataclass(frozen=True, slots=True)
class _Checked:
    """A judgement that is good, where it goes, what will be missing there, and the kind and key that it waits for."""

    record: FeedbackRecord
    destinations: tuple[str, ...]
    not_carried: Mapping[str, tuple[str, ...]]
    waits_for: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A judgement that is good and not stored yet: where it goes or what it waits for, and what will be missing."""

    what: Entry | Parked
    not_carried: Mapping[str, tuple[str, ...]]


class FeedbackProvider:
    """The whole pipeline as an object, without any global; a context manager, sync and async.

    Args:
        exporters: the destinations; by default those that `OTEL_FEEDBACK_EXPORTERS` names.

        store: a store or its URL; by default `OTEL_FEEDBACK_STORE_URL`.

        tracer_provider: whose spans are seen and who opens ours; by default OpenTelemetry's global one.

        feedback: what is taken under which name, as in `{"helpfulness": Rating(1, 5), "thumb": Thumb()}`. A judgement
            is checked against it as it is given; of names that are not there `OTEL_FEEDBACK_UNDECLARED` decides.

        redact: sees every judgement once it was checked against `feedback`, before it is stored, and answers the one to
            keep; or, by exporter's name, what does so for that destination alone, after the judgement was joined. What
            it answers is not checked against `feedback` again.

        filters: by exporter's name, what says whether a judgement goes there, of the `FeedbackRecord` as that
            destination would get it: joined to its call and redacted. One that is refused is skipped there, as
            `filtered`; what the destination has of an earlier judgement under the same id stays. A filter that raises,
            or answers no `bool`, is a `ConfigurationError`, and nothing is recorded; what had waited for its key waits
            on. What had waited for an exporter is not filtered, and a retraction never is.

        settings: instead of the environment.

        retry: when to try again.

        meter_provider: who is told of what is accepted, delivered and waits; by default OpenTelemetry's global one.

        clock: what tells the time.

        rng: where ids and jitter come from.
    """

    def __init__(
        self,
        *,
        exporters: Sequence[FeedbackExporter] | None = None,
        store: Store | str | None = None,
        tracer_provider: Any = None,
        feedback: Mapping[str, Declaration] | None = None,
        redact: Redact | Mapping[str, Redact] | None = None,
        filters: Mapping[str, Filter] | None = None,
        settings: Settings | None = None,
        retry: RetryPolicy | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        if settings is not None and not isinstance(settings, Settings):
            raise ConfigurationError("settings is an otel_feedback.Settings", setting="settings")
        self.settings = Settings.from_environment() if settings is None else settings
        self._clock = clock or SystemClock()
        self._rng = rng or SystemRandom()
        self._retry = retry or RetryPolicy()
        by_name = redact if isinstance(redact, Mapping) else {}
        self._redact = None if isinstance(redact, Mapping) else redact
        if not all(map(callable, by_name.values())) or not (self._redact is None or callable(self._redact)):
            raise ConfigurationError("redact is a function, or functions by exporter's name", setting="redact")
        filters = {} if filters is None else filters
        if not isinstance(filters, Mapping) or not all(map(callable, filters.values())):
            raise ConfigurationError("filters are functions by exporter's name", setting="filters")
        self._schema = Schema() if feedback is None else Schema(feedback)
        self._has_schema = feedback is not None
        self._told_names: set[str] = set()
        self._told_strangers: set[str] = set()
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._metrics: Metrics = NoOpMetrics()
        if self.is_disabled:
            exporters, store = (), "memory:"
        exporters = _load(self.settings.exporters) if exporters is None else exporters
        if not isinstance(exporters, (list, tuple)):
            raise ConfigurationError("exporters is a list of exporters, as in [OrqExporter()]", setting="exporters")
        self._router = Router(
            exporters,
            exports_unsampled=self.settings.on_unsampled == "export",
            redact={} if self.is_disabled else by_name,
            filters={} if self.is_disabled else filters,
        )
        self._router.check_declared(self._schema)
        self._exporters = self._router.exporters
        self._store = _store_of(self.settings.store_url if store is None else store, self.settings, self._clock)
        self._span_attributes = _span_attributes(exporters)
        self._tracer: Tracer | None = None
        self._sees_spans = False
        # A tracer provider that has no traces, and of which that has been told.
        self._traceless: object = None
        # Spans that ended before this one in the order of ends.
        self._released_until = 0
        self._capture_errors = 0
        self._filter_errors = 0
        self._process: _Process | None = None
        self._is_shut_down = False
        self._finalizer: Any = None
        self._shutting_down = threading.Lock()
        self._shut_down_by: int | None = None
        self._lock = threading.RLock()
        _PROVIDERS.add(self)

    def __repr__(self) -> str:
        """Name the store and the destinations."""
        return f"<FeedbackProvider store={self._store.url!r} exporters={list(self._exporters)!r}>"

    # --- life cycle ---

    def start(self) -> Self:
        """Open the store and start to deliver; does nothing when it is started.

        Raises:
            StoreError: when the store cannot be used.

            ConfigurationError: when this process delivers and an exporter lacks something.
        """
        if not self.is_disabled:
            self._running()
        return self

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down."""
        self.shutdown()

    async def __aenter__(self) -> Self:
        """Start, without blocking the event loop."""
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down, without blocking the event loop."""
        await asyncio.to_thread(self.shutdown)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Deliver what is due, and what will be due in time, and say whether nothing waits.

        It answers false as soon as it is clear that something will still wait when time is up: because it is held, is
        tried again later, or another process is delivering it. `status()` says why.

        The tracer provider is flushed first, so that what is held until its span has arrived may go when the span
        ended in this process. Where another process delivers, this one only waits for it.

        Raises:
            StoreError: when the store cannot be used.

            ConfigurationError: when an exporter lacks something.
        """
        if self.is_disabled:
            return True
        engine = self._running()
        deadline = self._clock.monotonic_nano() + timeout_millis * NANOS_PER_MILLI
        is_flushed = self._here().correlator.flush()
        self._release(deadline)
        for deliverer in engine.deliverers:
            deliverer.release()
        # All at once: while one destination is slow, the others are not waited for.
        asked = [(thread, thread.ask()) for thread in engine.all_threads]
        for thread, number in asked:
            is_flushed &= thread.wait_for(number, self._millis_until(deadline))
        for deliverer in engine.deliverers:
            is_flushed &= self._flush(deliverer, engine, deadline)
        for exporter in self._exporters.values():
            is_flushed &= bool(_ask(exporter, "force_flush", self._millis_until(deadline)))
        return is_flushed and not self._waits()

    def deliver(self, timeout_millis: int = 30_000) -> Mapping[str, DestinationStats]:
        """Make one pass over what is due, in this thread, and answer the account.

        For a program that drives delivery itself, with `delivery="none"`: a job that runs now and then, a serverless
        function. The pass ends for a destination when nothing is due there, when it fails, or when time is up; what has
        begun by then is not cut short.

        Raises:
            StoreError: when the store cannot be used.

            ConfigurationError: when an exporter lacks something.
        """
        if self.is_disabled:
            return {}
        engine = self._running()
        deadline = self._clock.monotonic_nano() + timeout_millis * NANOS_PER_MILLI
        for deliverer in engine.deliverers:
            _start_exporter(deliverer.exporter)
            if not engine.has_delivered:  # what it was paused for may have been mended since
                self._store.resume(deliverer.name)
        engine.has_delivered = True
        drain(self._keeper(), deadline_nano=deadline, clock=self._clock)
        for deliverer in engine.deliverers:
            drain(deliverer, deadline_nano=deadline, clock=self._clock)
        return self.stats()

    def shutdown(self, timeout_millis: int | None = None) -> None:
        """Make one pass over what is due, at most `exit_timeout_millis` long, and stop; the rest stays in the store.

        It is idempotent. What is recorded later is accepted and waits for the next process.
        """
        limit = self.settings.exit_timeout_millis if timeout_millis is None else timeout_millis
        deadline = self._clock.monotonic_nano() + limit * NANOS_PER_MILLI
        if self._shut_down_by == threading.get_ident():
            return  # a signal's handler has come in the middle of it, which goes on after it
        if not self._shutting_down.acquire(timeout=self._millis_until(deadline) / 1_000):
            return  # another thread is at it
        try:
            self._shut_down_by = threading.get_ident()
            self._shut_down(deadline)
        finally:
            self._shut_down_by = None
            self._shutting_down.release()

    def _shut_down(self, deadline: int) -> None:
        """Stop, and give back what was opened, unless something still uses it."""
        atexit.unregister(self.shutdown)
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None
        process, self._is_shut_down = self._process, True
        # What was opened before a fork is the parent's to give back.
        if process is None or (process.pid == os.getpid() and self._stop(process, deadline)):
            self._close()

    def _stop(self, process: _Process, deadline: int) -> bool:
        """Stop what runs; say whether all of it has ended."""
        # Whoever starts to deliver may wait for a locked store meanwhile; then that is what has not ended.
        if not self._lock.acquire(timeout=self._millis_until(deadline) / 1_000):
            return process.correlator.shutdown(0)
        try:
            engine, process.engine = process.engine, _without_threads(process.engine)
        finally:
            self._lock.release()
        threads = () if engine is None else (*engine.all_threads, *engine.stopped)
        for thread in threads:
            thread.stop(deadline_nano=deadline)
        is_written = process.correlator.shutdown(self._millis_until(deadline))
        have_ended = [thread.join() for thread in threads]
        if engine is not None and engine.threads:
            self._tell_what_waits(engine)
        return is_written and all(have_ended)

    def _tell_what_waits(self, engine: _Engine) -> None:
        """Say what was not delivered, and what becomes of it."""
        try:
            waiting = [each.name for each in engine.deliverers if each.next_due_millis() is not None]
        except StoreError:
            return  # of which the threads have told
        if waiting:
            fate = "is lost with this process" if self._store.durability == "memory" else "waits for the next process"
            logger.warning("feedback for %s %s, in %s", ", ".join(waiting), fate, self._store.url)

    def _close(self) -> None:
        """Give back what was opened."""
        self._metrics.close()
        # One that another provider has been given, as when a notebook's cell runs again, is that one's now.
        running = [other for other in list(_PROVIDERS) if other is not self and not other._is_shut_down]  # noqa: SLF001 (of this class)
        used = [id(exporter) for other in running for exporter in other._exporters.values()]  # noqa: SLF001 (the same)
        for exporter in self._exporters.values():
            if id(exporter) not in used:
                _ask(exporter, "shutdown")
        self._store.close()

    def _leave_parent(self) -> None:
        """In a forked child, let go of the parent's lock, which one of its threads may hold."""
        self._lock = threading.RLock()
        self._shutting_down, self._shut_down_by = threading.Lock(), None
        self._metrics.close()
        self._metrics = NoOpMetrics()

    def _here(self) -> _Process:
        """Answer what runs in this process: at first use, and after a fork, there is nothing yet."""
        process = self._process
        if process is not None and process.pid == os.getpid():
            return process
        with self._lock:
            if self._process is None or self._process.pid != os.getpid():
                self._process = _Process(os.getpid(), self._make_correlator())
            return self._process

    def _make_correlator(self) -> Correlator:
        """Make what takes keys, for a store that need not be open."""
        correlator = Correlator(
            self._store,
            key_wait_millis=self.settings.key_wait_millis,
            on_bound=self._join_parked,
            open_store=self._open_behind,
        )
        if self._is_shut_down:
            correlator.shutdown()  # what is bound from now on is written at once
        return correlator

    def _correlating(self) -> Correlator:
        """Answer this process's correlator, with its thread running."""
        process = self._here()
        if not process.is_correlating:
            with self._lock:
                if not (process.is_correlating or self._is_shut_down):
                    process.correlator.start()
                    self._finalizer = _at_exit(self.shutdown)
                process.is_correlating = True
        return process.correlator

    def _open_behind(self) -> None:
        """Start behind a captured call's back; a process that cannot deliver keeps its keys all the same.

        Raises:
            StoreError: when the store cannot be used.
        """
        try:
            self._running()
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 (the boundary to exporters)
            why = error if isinstance(error, ConfigurationError) else where(error)
            # At the end of a process no thread can be started any more (from Python 3.12 on): the next one delivers.
            level = logging.ERROR if threading.main_thread().is_alive() else logging.DEBUG
            logger.log(level, "nothing is delivered from this process: %s", why)
            self._store.open()

    def _running(self) -> _Engine:
        """Answer what delivers in this process, starting it when there is nothing.

        Raises:
            StoreError: when the store cannot be used.

            ConfigurationError: when this process delivers and an exporter lacks something.
        """
        process = self._here()
        with self._lock:
            if process.engine is None:
                try:
                    process.engine = self._start_engine()
                except BaseException:
                    self._close()
                    raise
                self._correlating()
            return process.engine

    def _start_engine(self) -> _Engine:
        """Open the store and start what delivers in this process."""
        self._store.open()
        self._metrics.close()
        self._metrics = OpenTelemetryMetrics(
            self._meter_provider,
            stats=self._store.stats,
            now=self._clock.time_unix_nano,
            capacity=self.settings.max_queue_size,
        )
        deliverers = [self._deliverer(exporter) for exporter in self._exporters.values()]
        threads: dict[str, Sequence[DeliveryThread]] = {}
        if self._delivers and not self._is_shut_down:
            for deliverer in deliverers:
                _start_exporter(deliverer.exporter)
                self._store.resume(deliverer.name)
            threads = {deliverer.name: self._threads(deliverer) for deliverer in deliverers}
            # Under a name that no exporter can have.
            threads[UNROUTED] = [DeliveryThread(self._keeper(), clock=self._clock, helpers=())]
        self._route()
        engine = _Engine(deliverers, threads)
        for first, *_ in threads.values():
            first.start()
        return engine

    def _threads(self, deliverer: Deliverer) -> Sequence[DeliveryThread]:
        """Make the threads of one destination."""
        helpers = [DeliveryThread(deliverer, clock=self._clock) for _ in range(self.settings.concurrency - 1)]
        return [DeliveryThread(deliverer, clock=self._clock, helpers=helpers), *helpers]

    def _keeper(self) -> Keeper:
        """Make what keeps the store in order."""
        return Keeper(
            self._store,
            destinations=list(self._exporters),
            join=self._join_overlooked,
            retention_millis=self.settings.retention_days * DAY_MILLIS,
            clock=self._clock,
        )

    @property
    def _delivers(self) -> bool:
        """Whether this process delivers, or leaves it to another one."""
        return self.settings.delivery == "thread"

    def _deliverer(self, exporter: FeedbackExporter) -> Deliverer:
        return Deliverer(
            self._store,
            exporter,
            policy=self._retry,
            clock=self._clock,
            rng=self._rng,
            is_released=self._is_released,
            batch_size=self.settings.max_export_batch_size,
            metrics=self._metrics,
        )

    def _route(self) -> None:
        """Give what waited for an exporter to the ones that there are now, or say that there is none."""
        logger.info("feedback is kept in %s and goes to %s", self._store.url, list(self._exporters) or "nobody")
        if not self._exporters:
            logger.warning(
                "no exporter is configured: feedback waits as unrouted in %s; set OTEL_FEEDBACK_EXPORTERS",
                self._store.url,
            )
        for name, stats in self._store.stats().items() if self._delivers else ():  # else they wait for another process
            if stats.pending and name not in (*self._exporters, UNROUTED, PARKED):
                logger.warning(
                    "%d judgements wait for %s in %s, and there is no exporter of that name here",
                    stats.pending,
                    name,
                    self._store.url,
                )
        if self._exporters and (count := self._store.route(list(self._exporters))) > 0:
            logger.info("%d judgements that had waited unrouted go to %s", count, list(self._exporters))

    def _flush(self, deliverer: Deliverer, engine: _Engine, deadline: int) -> bool:
        """Wait until nothing waits for one destination, or time is up."""
        threads = engine.threads.get(deliverer.name, ())
        pause = threading.Event()
        while True:
            if self._delivers and not threads:  # after the shutdown
                drain(deliverer, deadline_nano=deadline, clock=self._clock)
            before = deliverer.rounds
            due_millis = deliverer.next_due_millis()
            if due_millis is None:
                return True
            left_millis = self._millis_until(deadline)
            # What is leased is due when the lease expires, and gone any moment: here, while a round goes on, and where
            # others deliver.
            is_still = before[0] == before[1] and before == deliverer.rounds
            if not left_millis or (self._delivers and is_still and due_millis >= left_millis):
                return False
            pause.wait(min(max(due_millis, 1), FLUSH_POLL_MILLIS) / 1_000)
            if not all(thread.wait_for(thread.ask(), left_millis) for thread in threads):
                return False

    def _waits(self) -> bool:
        """Tell whether something waits that no exporter here can deliver: for an exporter, or for its key."""
        return any(stats.pending for name, stats in self._store.stats().items() if name not in self._exporters)

    def _release(self, deadline: int) -> None:
        """Flush the tracer provider; what had ended before has then been exported."""
        until = next(ENDS)
        tracer_provider = self._tracer_provider or trace.get_tracer_provider()
        if hasattr(tracer_provider, "force_flush") and _ask(
            tracer_provider, "force_flush", self._millis_until(deadline)
        ):
            self._released_until = until

    def _is_released(self, handle: FeedbackHandle) -> bool:
        """Tell whether a span is known to have been exported."""
        return ENDED.get(handle.context.span_id, self._released_until) < self._released_until

    def _millis_until(self, deadline: int) -> int:
        """Say how much time is left."""
        return max(0, deadline - self._clock.monotonic_nano()) // NANOS_PER_MILLI

    # --- record ---

    @overload
    def record(
        self,
        target: FeedbackHandle | str,
        name: str,
        value: GivenValue | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> Receipt: ...

    @overload
    def record(
        self,
        *,
        key: str,
        name: str,
        value: GivenValue | None = None,
        key_kind: str | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> Receipt: ...

    def record(self, target: Any = None, name: Any = None, value: Any = None, **options: Any) -> Receipt:
        """Accept one judgement; see `record_feedback`."""
        return self.record_many([feedback_of(target, name, value, options)])[0]

    @overload
    async def arecord(
        self,
        target: FeedbackHandle | str,
        name: str,
        value: GivenValue | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> Receipt: ...

    @overload
    async def arecord(
        self,
        *,
        key: str,
        name: str,
        value: GivenValue | None = None,
        key_kind: str | None = None,
        **options: Unpack[FeedbackOptions],
    ) -> Receipt: ...

    async def arecord(self, target: Any = None, name: Any = None, value: Any = None, **options: Any) -> Receipt:
        """Accept one judgement without blocking the event loop.

        While it waits for a key it holds no thread, so that made-up keys do not keep other judgements waiting.
        """
        feedback = feedback_of(target, name, value, options)
        polls = self.settings.key_wait_millis // ASYNC_POLL_MILLIS
        while True:
            try:
                (receipt,) = await asyncio.to_thread(partial(self._record_many, [feedback], waits=False))
            except UnknownTargetError:
                if polls == 0:
                    raise
            else:
                return receipt
            polls -= 1
            await asyncio.sleep(ASYNC_POLL_MILLIS / 1_000)

    def record_many(self, feedback: Iterable[Feedback]) -> list[Receipt]:
        """Accept several judgements in one transaction, all or none; one receipt for each, in order.

        Raises:
            InvalidFeedbackError: when one is no judgement.

            UnknownTargetError: when no call is known for a key.

            InvalidTokenError: when a string is given as a target and is no signed token.

            StoreError: when the store cannot take them; `OutboxFullError` when it is full.
        """
        return self._record_many(feedback, waits=True)

    def _record_many(self, feedback: Iterable[Feedback], *, waits: bool) -> list[Receipt]:
        """Accept several judgements, waiting for unknown keys or not."""
        if self.is_disabled:
            return [_DISABLED for _ in feedback]
        engine = self._running()
        accepted = [self._accept(each, waits=waits) for each in feedback]
        about: dict[str, tuple[str, str, str]] = {}
        for each in accepted:
            record = each.what.record
            if about.setdefault(record.id, _about(record)) != _about(record):
                raise _taken(record)
        self._put([each.what for each in accepted])
        for each in accepted:
            if isinstance(each.what, Parked):
                self._look_once_more(each.what)
        engine.wake()
        return [self._receipt(each) for each in accepted]

    def _put(self, entries: Sequence[Entry | Parked]) -> None:
        """Store what was accepted, and tell of it."""
        try:
            self._store.put_many(entries)
        except StoreError as error:
            for _ in entries:
                self._metrics.refused(type(error).__name__)
            raise
        for each in entries:
            if isinstance(each, Entry):
                self._metrics.accepted(each.destinations)
                for name, reason in each.skipped.items():
                    self._metrics.settled(name, "skip", reason)
            else:
                self._metrics.accepted((PARKED,))

    def retract(
        self, record_id: str, *, target: FeedbackHandle | str | None = None, user_id: str | None = None
    ) -> Receipt:
        """Take a judgement back at every destination that can; a part not yet delivered is never sent.

        Args:
            record_id: the judgement's id, from its receipt.

            target: where somebody else asks for it: the call that they may judge, as a handle or as their token. Then
                only what was said of that call, under a name that the token grants, by the same user.

            user_id: who asks; a token's user is known.

        Raises:
            UnknownTargetError: when no judgement is known under the id, or it is not theirs.

            InvalidTokenError: when the token is none.
        """
        if self.is_disabled:
            return _DISABLED
        record_id = normal_id(record_id)
        engine = self._running()
        if self._status(record_id) is None:
            raise self._unknown_id(record_id)
        if target is not None and not self._is_granted(record_id, target, user_id):
            raise self._unknown_id(record_id)
        # What waits for its key goes nowhere, whatever was recorded and taken back under its id before.
        nowhere = Entry(FeedbackRecord(id=record_id, handle=INVALID, name="", retracts=True), ())
        if self._store.unpark(record_id, nowhere):
            return Receipt(record_id, self._store.durability, {})
        latest = self._store.latest(record_id)
        if latest is None:  # it was pruned a moment ago
            raise self._unknown_id(record_id)
        retraction = FeedbackRecord(
            id=latest.id,
            handle=latest.handle,
            name=latest.name,
            user_id=latest.user_id,
            source=latest.source,
            recorded_at_unix_nano=self._clock.time_unix_nano(),
            retracts=True,
        )
        entry = Entry(retraction, tuple(self._store.destinations(latest.id)))
        self._put([entry])
        engine.wake()
        return self._receipt(_Accepted(entry, {}))

    def status(self, record_id: str) -> Receipt:
        """Answer the receipt of a judgement as it would be now.

        Raises:
            UnknownTargetError: when no judgement is known under the id.
        """
        if self.is_disabled:
            return _DISABLED
        record_id = normal_id(record_id)
        deliveries = self._status(record_id)
        if deliveries is None:
            raise self._unknown_id(record_id)
        latest = self._store.latest(record_id)
        if latest is None:
            deliveries = dict.fromkeys(self._exporters or (UNROUTED,), _PARKED)
        missing = {} if latest is None else self._router.missing(latest, tuple(deliveries))
        return Receipt(record_id, self._store.durability, deliveries, missing)

    def stats(self) -> Mapping[str, DestinationStats]:
        """Answer the account of each destination, and of what waits for an exporter or for its key."""
        return {} if self.is_disabled else self._store.stats()

    def forget(self, *, user_id: str) -> int:
        """Erase from the store what one person judged, and every key that names them; say how many judgements it was.

        What they judged and was not delivered yet never will be. What a vendor has stays there: to take it back,
        `retract` it first. A damaged file that was put aside is not touched.
        """
        return 0 if self.is_disabled else self._store.forget(str(user_id))

    def plan(self, feedback: Feedback | FeedbackRecord) -> Mapping[str, DestinationPlan]:
        """Say what each destination would get of a judgement, what it cannot carry, and why it would be skipped.

        Nothing is recorded and nothing sent. Where a judgement would wait for its key it is planned on a call that
        stands in for the one to come, and nothing is skipped yet.

        Raises:
            InvalidFeedbackError: when `record` would refuse it.

            UnknownTargetError: when no call is known for the key.

            ConfigurationError: when a filter fails.
        """
        if isinstance(feedback, FeedbackRecord):
            return self._router.plan(feedback, self._router.asked_by(feedback.handle) or tuple(self._exporters))
        if self.is_disabled:
            return {}
        self._running()
        given = self._checked(feedback)
        return self._router.plan(given.record, given.destinations, is_joined=given.waits_for is None)

    def _accept(self, feedback: Feedback, *, waits: bool) -> _Accepted:
        """Check a judgement, and say where it goes or what it waits for; nothing is stored yet."""
        given = self._checked(feedback, waits=waits)
        if given.waits_for is None:
            return _Accepted(self._router.entry(given.record, given.destinations), given.not_carried)
        kept = self._router.most_redacted(given.record)
        return _Accepted(Parked(kept, *given.waits_for, given.destinations or None), given.not_carried)

    def _checked(self, feedback: Feedback, *, waits: bool = True) -> _Checked:
        """Check a judgement, and join it to its call."""
        self._check_declared(_checked_type(feedback))
        check_one_target(feedback)
        # Before redaction, which is to see the user that a token names.
        feedback, handle = self._granted(feedback)
        if self._redact is not None:
            scale = feedback.scale
            feedback = without_idle_scale(_checked_type(self._redact(feedback)), scale)
            check_one_target(feedback)
            # The hook may have named another call: then that is meant, and no key that is not there any more.
            feedback, handle = self._granted(feedback)
        destinations = self._router.destinations(feedback)
        key, kind = str(feedback.key), feedback.key_kind or ANY_KIND
        # All of it is checked before a key is looked up, which may take a while.
        record = make_record(
            self._schema.completed(feedback),
            stand_in_handle(kind, key, feedback.to) if handle is None else handle,
            now_unix_nano=self._clock.time_unix_nano(),
            rng=self._rng,
            is_thumb=self._schema.is_thumb(feedback.name),
            lower_is_better=self._schema.lower_is_better(feedback.name),
        )
        missing = self._router.missing(record, destinations)
        if handle is None:
            handle = self._handle_of_key(feedback, waits=waits)
            if handle is not None:
                record = self._with_id_of_earlier(_joined(record, handle), parked_id=record.id)
        if feedback.id is not None:
            self._check_id(record, kind, key)
        if handle is not None and feedback.to is None:
            destinations = self._router.asked_by(handle) or destinations
            self._tell_of_strangers(destinations)
        missing = {name: fields for name, fields in missing.items() if name in destinations}
        return _Checked(record, destinations, missing, (kind, key) if handle is None else None)

    def _granted(self, feedback: Feedback) -> tuple[Feedback, FeedbackHandle | None]:
        """Answer the call that a judgement is about, and put in the place of a token what it grants, if it grants this.

        Raises:
            InvalidTokenError: when it is no valid token, or grants another name or another user.
        """
        if not isinstance(feedback.target, str):
            return feedback, feedback.target
        grant = self.verify_token(feedback.target)
        if grant.names is not None and feedback.name not in grant.names:
            raise InvalidTokenError("the token does not grant feedback under this name", reason="name")
        if None not in (feedback.user_id, grant.user_id) and feedback.user_id != grant.user_id:
            raise InvalidTokenError("the token was issued to another user", reason="user")
        return replace(feedback, target=grant.handle, user_id=grant.user_id or feedback.user_id), grant.handle

    def _check_declared(self, feedback: Feedback) -> None:
        """Check a judgement against what was declared; of an undeclared name the setting decides."""
        self._schema.check(feedback)
        undeclared = self.settings.undeclared
        if undeclared == "allow" or self._schema.of(feedback.name) is not None:
            return
        name = check_name(feedback.name)
        if undeclared == "refuse" and self._has_schema:
            raise InvalidFeedbackError(
                f"{name!r} is not declared: declare it in configure(feedback=...), or give one of "
                f"{', '.join(self._schema.declared) or 'none'}",
                field="name",
                value=name,
            )
        told = self._told_names
        if not self._has_schema and not told:
            told.add(name)
            logger.warning("nothing is declared in configure(feedback=...), so that no name is refused or told of")
        elif self._has_schema and name not in told and len(told) < MAX_TOLD_NAMES:
            told.add(name)
            logger.warning("feedback was given under %r, which is not declared in configure(feedback=...)", name)

    def _tell_of_strangers(self, destinations: Iterable[str]) -> None:
        """Say once of each destination that a call asked for that this process, which delivers, has none of the name.

        It may be misspelt, and another process may have it.
        """
        strangers = set(destinations) - set(self._exporters) - self._told_strangers if self._delivers else set()
        for name in sorted(strangers)[: MAX_TOLD_NAMES - len(self._told_strangers)]:
            self._told_strangers.add(name)
            logger.warning("a span asks for the exporter %r (%s), and there is none of that name here", name, TO)

    def _with_id_of_earlier(self, record: FeedbackRecord, parked_id: str) -> FeedbackRecord:
        """Give a judgement the id of the same person's that waited for its key, where it kept the one that it had then.

        Which is so where redaction has left nobody whose id could be derived on the call.
        """
        if self.settings.on_unknown_key != "park" or record.id == parked_id:
            return record
        earlier = self._store.latest(parked_id)
        if earlier is None or earlier.id != parked_id or _about(earlier) != _about(record):
            return record
        return replace(record, id=parked_id)

    def _check_id(self, record: FeedbackRecord, kind: str, key: str) -> None:
        """Refuse an id under which another call was judged: an id is one judgement, and stays on its call."""
        earlier = self._store.latest(record.id)
        if earlier is None:  # it is new, or waits for its key, which may be this one
            waiting = [each.record for each in self._store.parked(kind, key) if each.record.id == record.id]
            is_its_own = self._store.status(record.id) is None or any(each.name == record.name for each in waiting)
        else:  # one that was taken back before its key turned up was on no call
            is_its_own = not earlier.handle.is_valid or _about(earlier) == _about(record)
        if not is_its_own:
            raise _taken(record)

    def _handle_of_key(self, feedback: Feedback, *, waits: bool) -> FeedbackHandle | None:
        """Look a key up; a key that is not there is an error, unless it shall be parked."""
        key, kind = str(feedback.key), feedback.key_kind
        found = self._here().correlator.find(key, kind, waits=waits)
        is_parking = self.settings.on_unknown_key == "park"
        if found and is_parking:
            # An earlier word on the same call comes first, where the process that bound the key has not joined it yet.
            self._join(kind or ANY_KIND, key, found[0])
        if not found and not is_parking:
            raise self._unknown_key(key, kind)
        return found[0] if found else None

    def _unknown_key(self, key: str, kind: str | None) -> UnknownTargetError:
        return UnknownTargetError(
            f"no trace is known for key {key!r} in {self._store.url}; was the call captured, with an OpenTelemetry SDK "
            "set up, does it use the same store, and has the correlation expired?",
            key=key,
            key_kind=kind,
            store=self._store.url,
        )

    def _status(self, record_id: str) -> Mapping[str, DeliveryStatus] | None:
        """Ask the store for a judgement; no store is asked for an id that none can have."""
        return self._store.status(record_id) if is_unicode(record_id) else None

    def _unknown_id(self, record_id: str) -> UnknownTargetError:
        return UnknownTargetError(
            f"no feedback is known under the id {record_id!r} in {self._store.url}", store=self._store.url
        )

    def _receipt(self, accepted: _Accepted) -> Receipt:
        """Write the receipt of what was just stored."""
        what = accepted.what
        if isinstance(what, Entry):
            deliveries = {name: _first_status(what.skipped.get(name)) for name in what.destinations}
        else:
            joined = self._store.status(what.record.id)
            deliveries = dict(joined) if joined else dict.fromkeys(what.to or (UNROUTED,), _PARKED)
        return Receipt(what.record.id, self._store.durability, deliveries, accepted.not_carried)

    # --- tokens ---

    def issue_token(
        self,
        handle: FeedbackHandle,
        *,
        names: Sequence[str] | None = None,
        user_id: str | None = None,
        expires_in: timedelta = TOKEN_LIFETIME,
    ) -> str:
        """Sign a token with which a browser may judge one call; it asks no store and no server.

        Whoever holds it can read it: the ids, the names, the user, and where the feedback goes.

        Args:
            handle: the call; a stream's is there before its first item (`handle_of`, `current_handle`).

            names: the names that may be judged under; by default any.

            user_id: who judges; feedback under this token is theirs, and nobody else's.

            expires_in: how long it holds.

        Returns:
            The token: letters, digits, `-` and `_`. An empty text where everything is switched off.

        Raises:
            InvalidFeedbackError: when the handle names no span, or an argument is none.

            ConfigurationError: when there is no key to sign with.
        """
        if self.is_disabled:
            return ""
        check_handle(handle)
        grant = FeedbackGrant(
            handle,
            _expiry(self._clock.time_unix_nano(), expires_in),
            None if names is None else _granted_names(names),
            None if user_id is None else identifier(user_id, "user_id"),
        )
        if not self.settings.signing_keys:
            raise ConfigurationError(
                "there is no key to sign tokens with: set OTEL_FEEDBACK_SIGNING_KEYS to a long random text, the same "
                "in every process",
                setting=env.OTEL_FEEDBACK_SIGNING_KEYS,
            )
        token = write_token(grant, self.settings.signing_keys[0])
        if len(token) > MAX_TOKEN_CHARS:
            raise InvalidFeedbackError(
                f"the token would be longer than {MAX_TOKEN_CHARS} characters: name fewer names", field="names"
            )
        return token

    def _is_granted(self, record_id: str, target: FeedbackHandle | str, user_id: str | None) -> bool:
        """Tell whether a judgement is somebody's to take back, who may judge a call.

        What waits for its key is nobody's yet: which call it is about is not known.

        Raises:
            InvalidTokenError: when the token is none, or was issued to another user.
        """
        latest = self._store.latest(record_id)
        if latest is None:
            return False
        asked, handle = self._granted(Feedback(target=target, name=latest.name, user_id=user_id))
        return (
            handle is not None
            and _about(latest) == (handle.trace_id, handle.span_id, latest.name)
            and (latest.user_id == asked.user_id)
        )

    def verify_token(self, token: str) -> FeedbackGrant:
        """Read a token of ours: which call its holder may judge, under which names, as whom, and until when.

        Raises:
            InvalidTokenError: when it is none. `error.reason` is `no_keys`, `malformed`, `signature` or `expired`.
        """
        if not self.settings.signing_keys:
            raise InvalidTokenError(
                "tokens are refused: this process has no OTEL_FEEDBACK_SIGNING_KEYS; a string as the target is only "
                "ever a token, and raw ids go through FeedbackHandle.from_traceparent()",
                reason="no_keys",
            )
        return read_token(token, self.settings.signing_keys, now=moment(self._clock.time_unix_nano()))

    # --- judgements that wait for their key ---

    def _look_again(self, parked: Parked) -> None:
        """Look once more for the key of a judgement that was parked: it may have come meanwhile."""
        for kind in DEFAULT_KINDS if parked.kind == ANY_KIND else (parked.kind,):
            for handle in self._store.find(kind, parked.key)[:1]:
                self._unpark(parked, handle)

    def _look_once_more(self, parked: Parked) -> None:
        """Look for the key of a judgement that was accepted just now; where that fails it is looked for again later."""
        try:
            self._look_again(parked)
        except StoreError as error:  # it is accepted: nothing is raised any more
            logger.error("a judgement waits for its key, which could not be looked up: %s", error)  # noqa: TRY400 (it says all)

    def _join_overlooked(self) -> None:
        """Join what waits for keys that are bound: who bound them was killed before it came to that."""
        for kind, key in self._store.overlooked(ANY_KIND, DEFAULT_KINDS):
            for parked in self._store.parked(kind, key):
                self._look_again(parked)

    def _join_parked(self, bindings: Iterable[Binding]) -> None:
        """Join the judgements that waited for keys that have just been bound."""
        handles: dict[tuple[str, str], FeedbackHandle] = {}
        for binding in bindings:
            for kind in (binding.kind, ANY_KIND) if binding.kind in DEFAULT_KINDS else (binding.kind,):
                handles.setdefault((kind, binding.key), binding.handle)
        for kind, key in self._store.awaited(list(handles)):
            self._join(kind, key, handles[kind, key])
        engine = self._here().engine
        if engine is not None:
            engine.wake()

    def _join(self, kind: str, key: str, handle: FeedbackHandle) -> None:
        """Join the judgements that wait for one key."""
        for parked in self._store.parked(kind, key):
            self._unpark(parked, handle)

    def _unpark(self, parked: Parked, handle: FeedbackHandle) -> None:
        """Record a parked judgement on the call that its key has turned out to mean."""
        # What the judgement asked for holds, then what the call asks for.
        asked = () if self._router.asked_by(parked.record.handle) else self._router.asked_by(handle)
        destinations = asked or (tuple(self._exporters) if parked.to is None else parked.to)
        try:
            entry = self._router.entry(_joined(parked.record, handle), destinations, is_redacted=True)
        except ConfigurationError as error:  # it is accepted: it waits until the filter is mended
            self._filter_errors += 1
            if self._filter_errors % ERRORS_PER_LINE == 1:
                logger.error("a judgement that waited for its key waits on (%d so far): %s", self._filter_errors, error)  # noqa: TRY400 (it says all)
            return
        self._store.unpark(parked.record.id, entry)

    # --- capture ---

    @property
    def is_disabled(self) -> bool:
        """Whether everything is a no-op."""
        return self.settings.disabled

    @property
    def exporters(self) -> Mapping[str, FeedbackExporter]:
        """The destinations, by name."""
        return MappingProxyType(self._exporters)

    @property
    def clock(self) -> Clock:
        """What tells when a call began whose span does not know it."""
        return self._clock

    @property
    def is_tracing(self) -> bool:
        """Whether a span could have a trace: an OpenTelemetry SDK is set up, or something in its place."""
        if self._sees_spans:
            return True
        tracer_provider = self._tracer_provider or trace.get_tracer_provider()
        if tracer_provider is self._traceless:
            return False
        self.see_spans()
        if isinstance(tracer_provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            self._traceless = tracer_provider
            logger.warning("calls are not captured, and their keys name nothing: no OpenTelemetry SDK is set up")
            return False
        return True

    @property
    def tracer(self) -> Tracer:
        """What opens the spans of captured calls."""
        self._correlating()
        if self._tracer is None:
            self._tracer = trace.get_tracer("otel_feedback", tracer_provider=self._tracer_provider)
        return self._tracer

    @property
    def span_attributes(self) -> Mapping[str, str]:
        """What the destinations want to see on captured spans."""
        return self._span_attributes

    @property
    def span_processor(self) -> processor.FeedbackSpanProcessor:
        """A span processor of this provider, for a pipeline that you build by hand."""
        return processor.FeedbackSpanProcessor(self)

    def bind_key(self, handle: FeedbackHandle, key: str, kind: str = APP) -> None:
        """Bind a key to a call, so that `record_feedback(key=…)` finds it; an invalid handle is not bound.

        Raises:
            InvalidFeedbackError: when no judgement could name such a key.
        """
        check_key(key, kind)
        if handle.is_valid and not self.is_disabled:
            self._correlating().bind(Binding(kind, str(key), handle))
            if kind == APP:
                note_key(handle, str(key))

    def promise_key(self, call: Call, key: str) -> Promise:
        """Bind a key to a captured call that has just begun, whose handle is made when the key is written."""
        check_key(key)
        promise = Promise(key, call)
        self._correlating().bind(promise)
        return promise

    def later(self, action: Callable[[], None]) -> bool:
        """Have something done soon, in a thread of ours, if there is one; a finaliser may ask."""
        process = self._process
        return process is not None and process.pid == os.getpid() and process.correlator.later(action)

    def handle_for_key(self, key: str, *, key_kind: str | None = None) -> FeedbackHandle:
        """Answer the newest call that a key names.

        Raises:
            InvalidFeedbackError: when it can be nobody's key.

            UnknownTargetError: when there is none.
        """
        if self.is_disabled:
            return INVALID
        check_one_target(Feedback(name="", key=key, key_kind=key_kind))
        self._running()
        found = self._here().correlator.find(str(key), key_kind)
        if not found:
            raise self._unknown_key(str(key), key_kind)
        return found[0]

    def capture_failed(self, error: BaseException) -> None:
        """Count what went wrong in capture, and say so once in a while."""
        self._capture_errors += 1
        if self._capture_errors % ERRORS_PER_LINE == 1:
            logger.error(
                "capture failed (%d so far), the application was not disturbed: %s", self._capture_errors, where(error)
            )

    def see_spans(self) -> None:
        """Let the tracer provider's spans be seen by whichever provider is the current one, as soon as there are any.

        `configure()` and `set_feedback_provider()` do it. A provider that is not the current one sees the spans of the
        pipelines that its `span_processor` is in.
        """
        if not self._sees_spans and not self.is_disabled:
            self._sees_spans = processor.install(self._tracer_provider or trace.get_tracer_provider())


# --- composition -------------------------------------------------------------------------------------------------


def _joined(record: FeedbackRecord, handle: FeedbackHandle) -> FeedbackRecord:
    """Join a record to the call that its key has turned out to mean; a person's id of it follows."""
    joined = replace(record, handle=handle)
    if record.user_id is None or record.id != _personal_id(record):
        return joined
    return replace(joined, id=_personal_id(joined))


def _personal_id(record: FeedbackRecord) -> str:
    """Derive the id that a person's judgement has on its call."""
    return judgement_id(record.handle, record.name, record.source, record.user_id or "")


def _expiry(now_unix_nano: int, expires_in: timedelta) -> datetime:
    """Say when a token ends, in whole seconds."""
    if not isinstance(expires_in, timedelta) or expires_in <= timedelta(0):
        raise InvalidFeedbackError(
            "expires_in is a timedelta, longer than nothing", field="expires_in", value=expires_in
        )
    try:
        ends = moment(now_unix_nano) + expires_in + timedelta(seconds=1, microseconds=-1)
    except OverflowError:
        raise InvalidFeedbackError(
            "expires_in is longer than there are dates", field="expires_in", value=expires_in
        ) from None
    return ends.replace(microsecond=0)


def _granted_names(names: Sequence[str]) -> tuple[str, ...]:
    """Check the names that a token grants."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise InvalidFeedbackError("names is a list of names, or None for any", field="names", value=names)
    return tuple(dict.fromkeys(map(check_name, names)))


def _about(record: FeedbackRecord) -> tuple[str, str, str]:
    """Tell what a judgement is about: the call, and under which name."""
    return record.handle.trace_id, record.handle.span_id, record.name


def _taken(record: FeedbackRecord) -> InvalidFeedbackError:
    """Say that an id is another judgement's."""
    return InvalidFeedbackError(
        "this id belongs to a judgement of another call or name; retract that one, or take a new id",
        field="id",
        value=record.id,
    )


def _checked_type(feedback: object) -> Feedback:
    """Refuse what is no judgement, as a dictionary or what a redaction forgot to answer."""
    if not isinstance(feedback, Feedback):
        raise InvalidFeedbackError(
            f"a judgement is an otel_feedback.Feedback, not {type(feedback).__name__}",
            field="feedback",
            value=feedback,
        )
    return feedback


def _first_status(skipped: str | None) -> DeliveryStatus:
    """Say how a delivery begins."""
    return DeliveryStatus(TRANSITIONS["recorded", "accept" if skipped is None else "skip"], skipped)


def _ask(whom: object, what: str, *arguments: object) -> object:
    """Call what is not ours, which may fail at it: then the answer is none, and no other one's fault."""
    try:
        return getattr(whom, what)(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (the boundary to exporters and tracer providers)
        logger.error("%s of %s failed: %s", what, type(whom).__name__, where(error))  # noqa: TRY400 (its text may hold a key)
        return None


def start_from_environment(
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    exporters: Sequence[FeedbackExporter] | None = None,
    exporter_options: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    tracer_provider: Any = None,
) -> FeedbackProvider:
    """Make the provider that the environment describes; it starts when it is used, or behind a captured call's back.

    Args:
        given: fields of `Settings` that win over the environment.

        exporters: the destinations, instead of those that are named.

        exporter_options: what the constructors of those that are named take, by their names.

        tracer_provider: whose spans are seen; by default OpenTelemetry's global one.
    """
    settings = replace(Settings.from_environment(), **given)
    if exporters is None and exporter_options:
        exporters = [
            type(each)(**exporter_options[each.name]) if each.name in exporter_options else each
            for each in _load(settings.exporters)
        ]
    provider = FeedbackProvider(exporters=exporters, settings=settings, tracer_provider=tracer_provider)
    provider.see_spans()
    return provider


def _load(names: Iterable[str]) -> list[FeedbackExporter]:
    """Make the exporters that are registered under names, ours and anybody's alike."""
    if not names:
        return []
    known = {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"OTEL_FEEDBACK_EXPORTERS: no exporter is registered as {name!r}; there are {', '.join(sorted(known))}",
                setting="OTEL_FEEDBACK_EXPORTERS",
            )
    return [known[name].load()() for name in names]


def _store_of(store: Store | str, settings: Settings, clock: Clock) -> Store:
    """Make the store that a URL names."""
    if not isinstance(store, str) and all(hasattr(store, name) for name in ("open", "put_many", "lease", "find")):
        return store
    store = str(store)
    if store in ("memory:", "memory://"):
        return MemoryStore(max_queue_size=settings.max_queue_size, clock=clock)
    scheme, separator, path = store.partition(":///")
    if scheme == "sqlite" and separator and path and path != ":memory:" and "\0" not in path:
        return SQLiteStore(path, durability=settings.durability, max_queue_size=settings.max_queue_size, clock=clock)
    raise ConfigurationError(
        "the store's URL must be sqlite:///path (four slashes for an absolute path) or memory:",
        setting="OTEL_FEEDBACK_STORE_URL",
    )


def _at_exit(shutdown: Callable[[], None]) -> Any:
    """Call a function when the process ends; answer what else would call it.

    A child of multiprocessing leaves without atexit's functions, and runs finalizers of its own, which begin with none
    of its parent's (`_bootstrap` in multiprocessing/process.py).
    """
    atexit.register(shutdown)
    util = sys.modules.get("multiprocessing.util")
    return None if util is None else util.Finalize(None, shutdown, exitpriority=100)


def _without_threads(engine: _Engine | None) -> _Engine | None:
    """Answer what is left of an engine when its threads are gone: what is recorded from now on waits."""
    return None if engine is None else replace(engine, threads={}, stopped=[*engine.all_threads, *engine.stopped])


def _start_exporter(exporter: FeedbackExporter) -> None:
    """Let an exporter make ready, if it has something to make ready."""
    start = getattr(exporter, "start", None)
    if start is not None:
        start()


def _span_attributes(exporters: Iterable[FeedbackExporter]) -> Mapping[str, str]:
    """Gather what the destinations want to see on captured spans; the first word counts."""
    found: dict[str, str] = {}
    for exporter in exporters:
        found = {**getattr(exporter, "span_attributes", {}), **found}
    return found


# Every provider of this process: a forked child lets go of what is its parent's before any thread can use it there.
_PROVIDERS: weakref.WeakSet[FeedbackProvider] = weakref.WeakSet()


def _leave_parent() -> None:
    """In a forked child, before anything else runs there."""
    for provider in list(_PROVIDERS):
        provider._leave_parent()  # noqa: SLF001 (the hook is one for the process, and part of the class)


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows forks nothing)
    os.register_at_fork(after_in_child=_leave_parent)

_active.set_default(start_from_environment)
