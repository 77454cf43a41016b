"""`FeedbackProvider`: the composition root, the one place that knows every part."""

from __future__ import annotations

import asyncio
import atexit
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random, SystemRandom
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

from opentelemetry import trace

from otel_feedback import _active, processor
from otel_feedback._capture import INVALID
from otel_feedback._correlate import DEFAULT_KINDS, ENDED, ENDS, Call, Correlator, Promise, note_key
from otel_feedback._deliver import Deliverer, DeliveryThread, drain
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import (
    DeliveryStatus,
    Feedback,
    FeedbackRecord,
    Receipt,
    check_key,
    check_one_target,
    judgement_id,
    make_record,
    stand_in_handle,
)
from otel_feedback._retry import RetryPolicy
from otel_feedback._route import DestinationPlan, Router
from otel_feedback._settings import Settings
from otel_feedback._time import NANOS_PER_MILLI, Clock, SystemClock
from otel_feedback.exceptions import (
    ConfigurationError,
    InvalidFeedbackError,
    InvalidTokenError,
    StoreError,
    UnknownTargetError,
)
from otel_feedback.exporters import FeedbackExporter, where
from otel_feedback.stores import APP, TRANSITIONS, UNROUTED, Binding, DestinationStats, Entry, Parked, Store
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.trace import Tracer
    from typing_extensions import Self, Unpack

    from otel_feedback._record import FeedbackOptions, GivenValue

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "otel_feedback_exporter"

# A failing capture says so at its first error and then at every thousandth.
CAPTURE_ERRORS_PER_LINE = 1_000
# How often a judgement that is given in an event loop looks again for its key.
ASYNC_POLL_MILLIS = 100
# How often a flush looks again while something is due later.
FLUSH_POLL_MILLIS = 20
# What a judgement waits for whose giver named no kind: a key of any of the kinds that are looked among by default.
ANY_KIND = "any"

# What a judgement is that waits for its key: not in the outbox yet.
PARKED = DeliveryStatus("parked", "no call is known for its key yet")

_DISABLED = Receipt("", "disabled", {})


@dataclass(frozen=True, slots=True)
class _Engine:
    """What delivers in one process."""

    deliverers: Sequence[Deliverer]
    threads: Sequence[DeliveryThread]

    def wake(self) -> None:
        """Say that something is due."""
        for thread in self.threads:
            thread.wake()


@dataclass(slots=True)
class _Process:
    """What runs in one process: a fork needs another one."""

    pid: int
    correlator: Correlator
    is_correlating: bool = False
    # Captured calls do not wait for it: it is started behind their back.
    engine: _Engine | None = None


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

        redact: sees every judgement before it is validated and stored, and answers the one to keep.

        settings: instead of the environment.

        retry: when to try again.

        clock: what tells the time.

        rng: where ids and jitter come from.
    """

    def __init__(
        self,
        *,
        exporters: Sequence[FeedbackExporter] | None = None,
        store: Store | str | None = None,
        tracer_provider: Any = None,
        redact: Callable[[Feedback], Feedback] | None = None,
        settings: Settings | None = None,
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self.settings = Settings.from_environment() if settings is None else settings
        self._clock = clock or SystemClock()
        self._rng = rng or SystemRandom()
        self._retry = retry or RetryPolicy()
        self._redact = redact
        self._tracer_provider = tracer_provider
        if self.is_disabled:
            exporters, store = (), "memory:"
        exporters = _load(self.settings.exporters) if exporters is None else exporters
        if not isinstance(exporters, (list, tuple)):
            raise ConfigurationError("exporters is a list of exporters, as in [OrqExporter()]", setting="exporters")
        self._router = Router(exporters, exports_unsampled=self.settings.on_unsampled == "export")
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
        self._process: _Process | None = None
        self._is_shut_down = False
        self._finalizer: Any = None
        self._lock = threading.RLock()
        self._pid = os.getpid()

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
        """
        if self.is_disabled:
            return True
        engine = self._running()
        deadline = self._clock.monotonic_nano() + timeout_millis * NANOS_PER_MILLI
        is_flushed = self._here().correlator.flush()
        self._release(deadline)
        for deliverer in engine.deliverers:
            deliverer.release()
            is_flushed &= self._flush(deliverer, deadline)
        for exporter in self._exporters.values():
            is_flushed &= bool(_ask(exporter, "force_flush", self._millis_until(deadline)))
        return is_flushed and self._store.next_due(UNROUTED) is None

    def shutdown(self, timeout_millis: int | None = None) -> None:
        """Make one pass over what is due, at most `exit_timeout_millis` long, and stop; the rest stays in the store.

        It is idempotent. What is recorded later is accepted and waits for the next process.
        """
        atexit.unregister(self.shutdown)
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None
        self._leave_parent()
        limit = self.settings.exit_timeout_millis if timeout_millis is None else timeout_millis
        deadline = self._clock.monotonic_nano() + limit * NANOS_PER_MILLI
        process, self._is_shut_down = self._process, True
        if process is None or (process.pid == self._pid and self._stop(process, deadline)):
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
        threads = () if engine is None else engine.threads
        for thread in threads:
            thread.stop(deadline_nano=deadline)
        is_written = process.correlator.shutdown(self._millis_until(deadline))
        have_ended = [thread.join() for thread in threads]
        if not (is_written and all(have_ended)):
            return False
        if engine is not None and threads:
            self._tell_what_waits(engine)
        return True

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
        for exporter in self._exporters.values():
            _ask(exporter, "shutdown")
        self._store.close()

    def _leave_parent(self) -> None:
        """In a forked child, let go of the parent's lock: a thread that does not exist here may hold it."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()

    def _here(self) -> _Process:
        """Answer what runs in this process: at first use, and after a fork, there is nothing yet."""
        process = self._process
        if process is not None and process.pid == os.getpid():
            return process
        self._leave_parent()
        with self._lock:
            if self._process is None or self._process.pid != self._pid:
                self._process = _Process(self._pid, self._make_correlator())
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
        deliverers = [self._deliverer(exporter) for exporter in self._exporters.values()]
        threads: list[DeliveryThread] = []
        if self._delivers and not self._is_shut_down:
            for deliverer in deliverers:
                _start_exporter(deliverer.exporter)
                self._store.resume(deliverer.name)
            threads = [DeliveryThread(deliverer, clock=self._clock) for deliverer in deliverers]
        self._route()
        for thread in threads:
            thread.start()
        return _Engine(deliverers, threads)

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
        )

    def _route(self) -> None:
        """Give what waited for an exporter to the ones that there are now, or say that there is none."""
        logger.info("feedback is kept in %s and goes to %s", self._store.url, list(self._exporters) or "nobody")
        if not self._exporters:
            logger.warning(
                "no exporter is configured: feedback waits as unrouted in %s; set OTEL_FEEDBACK_EXPORTERS",
                self._store.url,
            )
        elif (count := self._store.route(list(self._exporters))) > 0:
            logger.info("%d judgements that had waited unrouted go to %s", count, list(self._exporters))

    def _flush(self, deliverer: Deliverer, deadline: int) -> bool:
        """Deliver to one destination until nothing waits or time is up."""
        pause = threading.Event()
        while True:
            if self._delivers:
                drain(deliverer, deadline_nano=deadline, clock=self._clock)
            due_millis = deliverer.next_due_millis()
            if due_millis is None:
                return True
            left_millis = self._millis_until(deadline)
            # Where others deliver, what they have leased is due when the lease expires, and gone any moment.
            if not left_millis or (self._delivers and due_millis >= left_millis):
                return False
            pause.wait(min(max(due_millis, 1), FLUSH_POLL_MILLIS) / 1_000)

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
        return self.record_many([Feedback(target=target, name=name, value=value, **options)])[0]

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
        feedback = Feedback(target=target, name=name, value=value, **options)
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
        if entries := [each.what for each in accepted if isinstance(each.what, Entry)]:
            self._store.put_many(entries)
        for each in accepted:
            if isinstance(each.what, Parked):
                self._park(each.what)
        engine.wake()
        return [self._receipt(each) for each in accepted]

    def retract(self, record_id: str) -> Receipt:
        """Take a judgement back at every destination that can; a part not yet delivered is never sent.

        Raises:
            UnknownTargetError: when no judgement is known under the id.
        """
        if self.is_disabled:
            return _DISABLED
        record_id = str(record_id).lower()
        engine = self._running()
        if self._store.status(record_id) is None:
            raise self._unknown_id(record_id)
        latest = self._store.latest(record_id)
        if latest is None:
            return self._retract_parked(record_id)
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
        self._store.put_many([entry])
        engine.wake()
        return self._receipt(_Accepted(entry, {}))

    def _retract_parked(self, record_id: str) -> Receipt:
        """Take back a judgement that still waits for its key: it goes nowhere."""
        retraction = FeedbackRecord(id=record_id, handle=INVALID, name="", retracts=True)
        if not self._store.unpark(record_id, Entry(retraction, ())):
            return self.retract(record_id)  # it was joined a moment ago
        return Receipt(record_id, self._store.durability, {})

    def status(self, record_id: str) -> Receipt:
        """Answer the receipt of a judgement as it would be now.

        Raises:
            UnknownTargetError: when no judgement is known under the id.
        """
        if self.is_disabled:
            return _DISABLED
        record_id = str(record_id).lower()
        deliveries = self._store.status(record_id)
        if deliveries is None:
            raise self._unknown_id(record_id)
        latest = self._store.latest(record_id)
        if latest is None:
            deliveries = dict.fromkeys(self._exporters or (UNROUTED,), PARKED)
        missing = {} if latest is None else _missing(self._router.plan(latest, tuple(deliveries)))
        return Receipt(record_id, self._store.durability, deliveries, missing)

    def stats(self) -> Mapping[str, DestinationStats]:
        """Answer the account of each destination."""
        return self._store.stats()

    def plan(self, feedback: Feedback | FeedbackRecord) -> Mapping[str, DestinationPlan]:
        """Say what each destination would get of a judgement, without recording it."""
        if isinstance(feedback, FeedbackRecord):
            return self._router.plan(feedback, tuple(self._exporters))
        if self.is_disabled:
            return {}
        self._running()
        accepted = self._accept(feedback)
        return self._router.plan(accepted.what.record, self._router.destinations(feedback))

    def _accept(self, feedback: Feedback, *, waits: bool = True) -> _Accepted:
        """Check a judgement, join it to its call, and say where it goes; nothing is stored yet."""
        if self._redact is not None:
            feedback = self._redact(feedback)
        if not isinstance(feedback, Feedback):
            raise InvalidFeedbackError(
                f"a judgement is an otel_feedback.Feedback, not {type(feedback).__name__}",
                field="feedback",
                value=feedback,
            )
        check_one_target(feedback)
        if isinstance(feedback.target, str):
            raise InvalidTokenError(
                "a string as the target is only ever a signed token, which this release does not take yet; raw ids go "
                "through FeedbackHandle.from_traceparent()",
                reason="unsigned",
            )
        destinations = self._router.destinations(feedback)
        key, kind = str(feedback.key), feedback.key_kind or ANY_KIND
        # All of it is checked before a key is looked up, which may take a while.
        record = make_record(
            feedback,
            stand_in_handle(kind, key) if feedback.target is None else feedback.target,
            now_unix_nano=self._clock.time_unix_nano(),
            rng=self._rng,
        )
        missing = _missing(self._router.plan(record, destinations))
        if feedback.target is None:
            handle = self._handle_of_key(feedback, waits=waits)
            if handle is None:
                return _Accepted(Parked(record, kind, key, destinations or None), missing)
            record = _joined(record, handle)
        if feedback.id is not None:
            self._check_id(record)
        return _Accepted(self._router.entry(record, destinations), missing)

    def _check_id(self, record: FeedbackRecord) -> None:
        """Refuse an id under which another call was judged: an id is one judgement, and stays on its call."""
        earlier = self._store.latest(record.id)
        if earlier is not None and (earlier.handle.trace_id, earlier.handle.span_id, earlier.name) != (
            record.handle.trace_id,
            record.handle.span_id,
            record.name,
        ):
            raise InvalidFeedbackError(
                "this id belongs to a judgement of another call or name; retract that one, or take a new id",
                field="id",
                value=record.id,
            )

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
            deliveries = dict(joined) if joined else dict.fromkeys(what.to or (UNROUTED,), PARKED)
        return Receipt(what.record.id, self._store.durability, deliveries, accepted.not_carried)

    # --- judgements that wait for their key ---

    def _park(self, parked: Parked) -> None:
        """Keep a judgement for its key, and look once more: the key may have come meanwhile."""
        self._store.park(parked)
        for kind in DEFAULT_KINDS if parked.kind == ANY_KIND else (parked.kind,):
            for handle in self._store.find(kind, parked.key)[:1]:
                self._unpark(parked, handle)

    def _join_parked(self, bindings: Iterable[Binding]) -> None:
        """Join the judgements that waited for keys that have just been bound."""
        for binding in bindings:
            for kind in (binding.kind, ANY_KIND) if binding.kind in DEFAULT_KINDS else (binding.kind,):
                self._join(kind, binding.key, binding.handle)
        engine = self._here().engine
        if engine is not None:
            engine.wake()

    def _join(self, kind: str, key: str, handle: FeedbackHandle) -> None:
        """Join the judgements that wait for one key."""
        for parked in self._store.parked(kind, key):
            self._unpark(parked, handle)

    def _unpark(self, parked: Parked, handle: FeedbackHandle) -> None:
        """Record a parked judgement on the call that its key has turned out to mean."""
        destinations = tuple(self._exporters) if parked.to is None else parked.to
        self._store.unpark(parked.record.id, self._router.entry(_joined(parked.record, handle), destinations))

    # --- capture ---

    @property
    def is_disabled(self) -> bool:
        """Whether everything is a no-op."""
        return self.settings.disabled

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
        if self._capture_errors % CAPTURE_ERRORS_PER_LINE == 1:
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


def _missing(plans: Mapping[str, DestinationPlan]) -> dict[str, tuple[str, ...]]:
    """Name, for each destination, what it cannot carry."""
    return {name: plan.not_carried for name, plan in plans.items() if plan.not_carried}


def _first_status(skipped: str | None) -> DeliveryStatus:
    """Say how a delivery begins."""
    return DeliveryStatus(TRANSITIONS["recorded", "accept" if skipped is None else "skip"], skipped)


def _ask(whom: object, what: str, *arguments: object) -> object:
    """Call what is not ours, which may fail at it: then the answer is none, and no other one's fault."""
    try:
        return getattr(whom, what)(*arguments)
    except Exception as error:  # noqa: BLE001 (the boundary to exporters and tracer providers)
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
        return MemoryStore(clock=clock)
    scheme, separator, path = store.partition(":///")
    if scheme == "sqlite" and separator and path and path != ":memory:" and "\0" not in path:
        return SQLiteStore(path, durability=settings.durability, clock=clock)
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
    return None if engine is None else replace(engine, threads=())


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


_active.set_default(start_from_environment)
