"""For tests of applications, exporters and stores.

`FakeClock` is time as an argument, `InMemoryFeedbackExporter` keeps what it gets. `StoreContract` and
`ExporterContract` hold the ports' contracts as tests: whoever writes a store or an exporter inherits one and gives it
one fixture. They are plain classes, collected by pytest under the name of the class that inherits them; this module
itself does not import pytest, so that an application's own tests need none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import DeliveryStatus, FeedbackRecord, FeedbackValue, Part
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.exceptions import InvalidFeedbackError
from otel_feedback.exporters import FeedbackExporter, Result, Success
from otel_feedback.stores import (
    APP,
    RESPONSE,
    UNROUTED,
    Binding,
    DestinationStats,
    Entry,
    Lease,
    Parked,
    PartState,
    Settlement,
    Store,
)


class FakeClock:
    """A clock that goes only when it is told to.

    Args:
        time_unix_nano: what it shows at first; by default the first second of 2026.
    """

    def __init__(self, time_unix_nano: int = 1_767_225_600_000_000_000) -> None:
        self._time_unix_nano = time_unix_nano
        self._monotonic_nano = 0

    def time_unix_nano(self) -> int:
        """Answer the time of day."""
        return self._time_unix_nano

    def monotonic_nano(self) -> int:
        """Answer the monotonic clock."""
        return self._monotonic_nano

    def advance(self, *, seconds: float = 0, millis: int = 0) -> None:
        """Let time pass, on both clocks."""
        nanos = round(seconds * 1_000_000_000) + millis * 1_000_000
        self._time_unix_nano += nanos
        self._monotonic_nano += nanos

    def jump(self, *, seconds: float) -> None:
        """Set the time of day forward or back, as an operator or NTP does; the monotonic clock stays."""
        self._time_unix_nano += round(seconds * 1_000_000_000)


class InMemoryFeedbackExporter:
    """Keeps what it is given, and fails as it is told to; the counterpart of OpenTelemetry's `InMemorySpanExporter`.

    Args:
        name: how users route to it.

        exports_unsampled: whether it takes feedback on spans that were not sampled.
    """

    def __init__(self, name: str = "memory", *, exports_unsampled: bool = False) -> None:
        self.name = name
        self.exports_unsampled = exports_unsampled
        self._lock = threading.Lock()
        self._exported: list[Part] = []
        self._failures: list[Result] = []

    def __repr__(self) -> str:
        """Name it and count what it has."""
        return f"<InMemoryFeedbackExporter name={self.name!r} exported={len(self._exported)}>"

    @property
    def exported(self) -> Sequence[Part]:
        """The parts that were exported with success, in order."""
        with self._lock:
            return tuple(self._exported)

    @property
    def records(self) -> Sequence[FeedbackRecord]:
        """The records of those parts."""
        return tuple(part.record for part in self.exported)

    def fail_next(self, *results: Result) -> None:
        """Answer the next parts with these results, one each."""
        with self._lock:
            self._failures.extend(results)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._exported.clear()
            self._failures.clear()

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """All of it in one part."""
        return [Part(record=record, kind="value", body={}, carries=frozenset(record.said))]

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        """Keep each part, or fail as told."""
        with self._lock:
            return [self._take(part) for part in parts]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 (nothing to wait for)
        """Answer true: nothing is buffered."""
        return True

    def shutdown(self) -> None:
        """Do nothing: what was exported can still be read."""

    def _take(self, part: Part) -> Result:
        result = self._failures.pop(0) if self._failures else Success()
        if isinstance(result, Success):
            self._exported.append(part)
        return result


# --- the contracts of the ports ----------------------------------------------------------------------------------

LEASE_MILLIS = 60_000


def _equal(expected: object, actual: object) -> None:
    """Fail unless both are equal; said in full, since pytest explains no assertion outside of test files."""
    if expected != actual:
        raise AssertionError(f"expected {expected!r}, got {actual!r}")


def _handle(span_id: int = 1, started_at: int | None = None) -> FeedbackHandle:
    """Make the handle of a sampled call."""
    context = SpanContext(0xABC, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return FeedbackHandle(context, started_at=started_at)


def _record(number: int, *, value: FeedbackValue | None = True, span_id: int = 1, **changes: Any) -> FeedbackRecord:
    """Make a judgement; the same number means the same id."""
    made = FeedbackRecord(
        id=f"00000000-0000-7000-8000-{number:012}", handle=_handle(span_id), name="rating", value=value
    )
    return replace(made, **changes)


class _Unreadable(tuple[str, ...]):
    """Destinations that fail when they are read."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("unreadable")


class StoreContract:
    """The contract of `Store`, as tests: inherit it, and define one fixture named `store`.

    The fixture makes an empty store with `self.clock`, opens it, and closes it in the end:

        class TestMyStore(StoreContract):
            @pytest.fixture
            def store(self):
                store = MyStore(clock=self.clock)
                store.open()
                yield store
                store.close()
    """

    clock: FakeClock

    def setup_method(self) -> None:
        """Set up a clock; pytest calls this before it asks for the fixture."""
        self.clock = FakeClock()

    # --- life cycle ---

    def test_opening_an_open_store_does_nothing(self, store: Store) -> None:
        """A store that is open keeps what it has when it is opened again."""
        store.put(_record(1), ["a"])
        store.open()

        _equal(_record(1), store.latest(_record(1).id))

    def test_closing_twice_is_the_same_as_closing_once(self, store: Store) -> None:
        """A second close does nothing."""
        store.close()
        store.close()

    def test_it_names_itself_and_what_it_survives(self, store: Store) -> None:
        """The URL is a text, and the durability one of the three words that a receipt uses."""
        _equal((str, True), (type(store.url), bool(store.url)))
        _equal(True, store.durability in ("disk", "process", "memory"))

    def test_threads_may_share_a_store(self, store: Store) -> None:
        """What several threads put at once is all there, and no two of them lease the same."""

        def put_and_lease(number: int) -> list[str]:
            for each in range(10):
                store.put(_record(number * 10 + each), ["a"])
            return [lease.record.id for lease in _lease(store, "a", limit=10)]

        with ThreadPoolExecutor(4) as pool:
            leased = [record_id for ids in pool.map(put_and_lease, range(4)) for record_id in ids]

        _equal(sorted(_record(number).id for number in range(40)), sorted(leased))

    # --- the index ---

    def test_an_unknown_key_names_no_call(self, store: Store) -> None:
        """A key that nobody bound is found nowhere."""
        _equal([], list(store.find(APP, "m-1")))

    def test_kinds_of_keys_never_mix(self, store: Store) -> None:
        """The same text as a key of another kind is another key."""
        store.bind([Binding(APP, "m-1", _handle(1)), Binding(RESPONSE, "m-1", _handle(2))])

        _equal([[1], [2]], [_spans(store.find(kind, "m-1")) for kind in (APP, RESPONSE)])

    def test_of_several_calls_the_newest_comes_first(self, store: Store) -> None:
        """All the calls that a key names are kept, ordered by their start and not by when they were bound."""
        for span_id, started_at in ((1, 20), (2, 30), (3, 10), (4, None)):
            store.bind([Binding(APP, "m-1", _handle(span_id, started_at))])

        _equal([2, 1, 3, 4], _spans(store.find(APP, "m-1")))

    def test_of_calls_that_started_together_the_last_bound_comes_first(self, store: Store) -> None:
        """Where the start does not decide, the order of binding does."""
        store.bind([Binding(APP, "m-1", _handle(span_id, 10)) for span_id in (2, 1, 3)])

        _equal([3, 1, 2], _spans(store.find(APP, "m-1")))

    def test_binding_a_call_again_updates_it(self, store: Store) -> None:
        """The same call under the same key is there once, in its place, with what is known of it last."""
        ended = replace(_handle(1, 10), ended_at=20, attributes={"gen_ai.request.model": "m"})
        store.bind([Binding(APP, "m-1", _handle(1, 10)), Binding(APP, "m-1", _handle(2, 10))])
        store.bind([Binding(APP, "m-1", ended)])

        _equal([_handle(2, 10), ended], list(store.find(APP, "m-1")))

    # --- put ---

    def test_a_record_is_read_as_it_was_put(self, store: Store) -> None:
        """Every field of a record survives the store."""
        full = _record(
            1,
            value=("a", "b"),
            comment="Größe \N{THUMBS UP SIGN}",
            correction={"x": [1, None, 2.5]},
            tags=("t",),
            user_id="u-1",
            source="llm",
            metadata={"k": {"n": 1}},
            native={"weave": {"creator": "c"}},
            time_unix_nano=1_767_225_600_123_456_789,
            recorded_at_unix_nano=1_767_225_600_987_654_321,
            stands=_record(2, value=False),
        )
        store.put(full, ["a"])

        _equal((full, full), (store.latest(full.id), _lease(store, "a")[0].record))

    def test_a_record_has_one_delivery_for_each_destination(self, store: Store) -> None:
        """Each destination has its own state; one that is named twice gets it once."""
        store.put(_record(1), ["a", "b", "a"])
        _settle(store, _lease(store, "a")[0], "deliver")

        _equal({"a": "delivered", "b": "pending"}, _states(store, 1))

    def test_a_record_may_go_nowhere(self, store: Store) -> None:
        """A record without destinations is kept and has no delivery."""
        store.put(_record(1), [])

        _equal((_record(1), {}), (store.latest(_record(1).id), _states(store, 1)))

    def test_what_is_skipped_at_once_is_never_offered(self, store: Store) -> None:
        """A destination where a record is skipped keeps the reason; the others get it."""
        store.put(_record(1), ["a", "b"], skipped={"a": "unsampled"})

        _equal(DeliveryStatus("skipped", "unsampled"), (store.status(_record(1).id) or {})["a"])
        _equal([0, 1], [len(_lease(store, destination)) for destination in "ab"])

    def test_several_are_accepted_all_or_none(self, store: Store) -> None:
        """When one entry cannot be put, none of them is there."""
        try:
            store.put_many([Entry(_record(1), ["a"]), Entry(_record(2), _Unreadable())])
        except RuntimeError:
            pass
        else:
            raise AssertionError("an entry that cannot be read was put")

        _equal((None, None, {}), (store.latest(_record(1).id), store.latest(_record(2).id), dict(store.stats())))

    def test_revisions_are_counted_by_id(self, store: Store) -> None:
        """Records with the same id are numbered in the order in which they were put; other ids are not counted."""
        store.put_many([Entry(_record(1), ["a"]), Entry(_record(2), ["a"]), Entry(_record(1, value=False), ["a"])])

        _equal(
            (_record(1, value=False, revision=1), _record(2)),
            (store.latest(_record(1).id), store.latest(_record(2).id)),
        )

    def test_a_newer_judgement_supersedes_the_pending_older_one(self, store: Store) -> None:
        """Only the newer of two revisions is offered; the older one is accounted for as superseded."""
        store.put(_record(1), ["a"])
        store.put(_record(1, value=False), ["a"])

        _equal([False], [lease.record.value for lease in _lease(store, "a")])
        _equal(DestinationStats(recorded=2, pending=1, superseded=1), _account(store, "a"))

    def test_a_judgement_supersedes_no_other_id_and_no_other_destination(self, store: Store) -> None:
        """Two people never replace each other's, and a judgement for one destination leaves the others' alone."""
        store.put(_record(1), ["a", "b"])
        store.put(_record(2), ["a"])
        store.put(_record(1, value=False), ["a"])

        _equal(
            ([_record(2).id, _record(1).id], [True]),
            (_ids(_lease(store, "a")), [lease.record.value for lease in _lease(store, "b")]),
        )

    def test_a_retraction_takes_the_pending_one_back(self, store: Store) -> None:
        """A pending judgement that is retracted is never offered; the retraction is."""
        store.put(_record(1), ["a"])
        store.put(_retraction(1), ["a"])

        _equal([True], [lease.record.retracts for lease in _lease(store, "a")])
        _equal(DestinationStats(recorded=2, pending=1, retracted=1), _account(store, "a"))

    # --- lease ---

    def test_what_is_due_is_offered_oldest_first(self, store: Store) -> None:
        """The one that has been due for longest comes first, at most as many as asked for."""
        for number in (3, 1, 2):
            store.put(_record(number), ["a"])
            self.clock.advance(millis=1)

        _equal([_record(3).id, _record(1).id], _ids(_lease(store, "a", limit=2)))
        _equal([_record(2).id], _ids(_lease(store, "a", limit=2)))

    def test_nothing_is_offered_twice_while_a_lease_lasts(self, store: Store) -> None:
        """A leased record is offered to nobody else until the lease has run out."""
        store.put(_record(1), ["a"])
        _lease(store, "a")
        self.clock.advance(millis=LEASE_MILLIS - 1)

        _equal([], _lease(store, "a"))

    def test_an_expired_lease_is_offered_again_with_a_new_fence(self, store: Store) -> None:
        """A record whose lease ran out is leased to the next worker, under another fence."""
        store.put(_record(1), ["a"])
        first = _lease(store, "a")[0]
        self.clock.advance(millis=LEASE_MILLIS)
        second = _lease(store, "a")[0]

        _equal((first.record, True), (second.record, first.fence != second.fence))

    def test_a_lease_says_when_it_ends_and_when_the_record_was_accepted(self, store: Store) -> None:
        """The times of a lease are the clock's."""
        accepted_at = self.clock.time_unix_nano()
        store.put(_record(1), ["a"])
        self.clock.advance(seconds=5)
        lease = _lease(store, "a")[0]

        _equal(
            ("a", accepted_at, self.clock.time_unix_nano() + LEASE_MILLIS * NANOS_PER_MILLI, 0, {}, []),
            (
                lease.destination,
                lease.accepted_at_unix_nano,
                lease.expires_at_unix_nano,
                lease.attempts,
                dict(lease.parts),
                list(lease.earlier),
            ),
        )

    def test_nothing_of_a_judgement_is_offered_while_an_older_revision_is_leased(self, store: Store) -> None:
        """A newer revision waits for the older one's end, at that destination; nothing else does."""
        store.put(_record(1), ["a", "b"])
        older = _lease(store, "a")[0]
        store.put(_record(1, value=False), ["a", "b"])
        store.put(_record(2), ["a"])

        _equal(([_record(2).id], [_record(1).id]), (_ids(_lease(store, "a")), _ids(_lease(store, "b"))))
        _settle(store, older, "deliver")
        _equal([False], [lease.record.value for lease in _lease(store, "a")])

    def test_of_an_expired_lease_and_a_newer_revision_the_older_goes_first(self, store: Store) -> None:
        """A judgement stays in order when a worker dies."""
        store.put(_record(1), ["a"])
        _lease(store, "a")
        store.put(_record(1, value=False), ["a"])
        self.clock.advance(millis=LEASE_MILLIS)

        _equal([True], [lease.record.value for lease in _lease(store, "a")])

    def test_a_lease_tells_the_earlier_revisions(self, store: Store) -> None:
        """The lease of a newer revision says, oldest first, what the destination may have of the older ones."""
        delivered, unclear = {"value": PartState("delivered", "fine")}, {"value": PartState("unclear", "timeout")}
        for value, parts in ((True, delivered), (False, unclear)):
            store.put(_record(1, value=value), ["a"])
            _settle(store, _lease(store, "a")[0], "deliver", parts=parts)
        store.put(_record(1), ["a", "b"])
        lease = _lease(store, "a")[0]

        _equal([(0, delivered), (1, unclear)], [(each.record.revision, dict(each.parts)) for each in lease.earlier])
        _equal([], list(_lease(store, "b")[0].earlier))

    # --- settle ---

    def test_each_event_ends_a_lease_in_its_state(self, store: Store) -> None:
        """A lease ends in the state that the table says, with its reason, its parts and the attempt counted."""
        ends = {"deliver": "delivered", "bury": "dead", "skip": "skipped", "retract": "retracted", "retry": "pending"}
        for number, event in enumerate(ends):
            store.put(_record(number), ["a"])
            _settle(store, _lease(store, "a")[0], event, reason=event, due_unix_nano=1 << 62)

        _equal(
            [DeliveryStatus(state, event, 1) for event, state in ends.items()],
            [(store.status(_record(number).id) or {})["a"] for number in range(len(ends))],
        )

    def test_a_retry_is_offered_when_it_is_due_with_its_parts(self, store: Store) -> None:
        """A record that is to be tried again comes at its time, and brings what was settled of it."""
        parts = {"comment": PartState("delivered"), "value": PartState("unclear", "timeout")}
        store.put(_record(1), ["a"])
        due = self.clock.time_unix_nano() + 1_000 * NANOS_PER_MILLI
        _settle(store, _lease(store, "a")[0], "retry", parts=parts, due_unix_nano=due)

        self.clock.advance(millis=999)
        _equal([], _lease(store, "a"))
        self.clock.advance(millis=1)
        _equal([(parts, 1)], [(dict(lease.parts), lease.attempts) for lease in _lease(store, "a")])

    def test_being_held_back_is_no_attempt(self, store: Store) -> None:
        """A settlement that does not count leaves the number of attempts."""
        store.put(_record(1), ["a"])
        _settle(store, _lease(store, "a")[0], "retry", counts=False)

        _equal([0], [lease.attempts for lease in _lease(store, "a")])

    def test_a_late_worker_settles_nothing(self, store: Store) -> None:
        """Once a record was leased anew, the old lease has no effect and is told so; neither has a settled one."""
        store.put(_record(1), ["a"])
        late = _lease(store, "a")[0]
        self.clock.advance(millis=LEASE_MILLIS)
        newest = _lease(store, "a")[0]

        _equal(False, _settle(store, late, "bury"))
        _equal({"a": "leased"}, _states(store, 1))
        _equal([True, False], [_settle(store, newest, "deliver"), _settle(store, newest, "bury")])
        _equal({"a": "delivered"}, _states(store, 1))

    def test_an_expired_lease_that_nobody_took_still_settles(self, store: Store) -> None:
        """It is the newest fence that counts, not the time."""
        store.put(_record(1), ["a"])
        lease = _lease(store, "a")[0]
        self.clock.advance(millis=LEASE_MILLIS * 2)

        _equal((True, {"a": "delivered"}), (_settle(store, lease, "deliver"), _states(store, 1)))

    def test_a_lease_of_what_the_store_does_not_know_settles_nothing(self, store: Store) -> None:
        """A lease that came from elsewhere has no effect and raises nothing."""
        store.put(_record(1), ["a"])
        lease = _lease(store, "a")[0]

        _equal(
            [False, False],
            [
                _settle(store, replace(lease, sequence=lease.sequence + 100), "deliver"),
                _settle(store, replace(lease, destination="b"), "deliver"),
            ],
        )

    def test_a_leased_older_revision_may_still_be_delivered(self, store: Store) -> None:
        """What is on its way when a newer judgement comes goes on."""
        store.put(_record(1), ["a"])
        older = _lease(store, "a")[0]
        store.put(_record(1, value=False), ["a"])
        _settle(store, older, "deliver")

        _equal(DestinationStats(recorded=2, pending=1, delivered=1), _account(store, "a"))

    def test_a_retry_after_a_newer_judgement_is_superseded(self, store: Store) -> None:
        """An older revision is not tried again once a newer one is there."""
        store.put(_record(1), ["a"])
        older = _lease(store, "a")[0]
        store.put(_record(1, value=False), ["a"])
        _settle(store, older, "retry")

        _equal([False], [lease.record.value for lease in _lease(store, "a")])
        _equal(DestinationStats(recorded=2, pending=1, superseded=1), _account(store, "a"))

    def test_a_retry_after_a_retraction_is_retracted(self, store: Store) -> None:
        """What was taken back is not tried again."""
        store.put(_record(1), ["a"])
        older = _lease(store, "a")[0]
        store.put(_retraction(1), ["a"])
        _settle(store, older, "retry")

        _equal([True], [lease.record.retracts for lease in _lease(store, "a")])
        _equal(DestinationStats(recorded=2, pending=1, retracted=1), _account(store, "a"))

    # --- when something is due ---

    def test_nothing_waits_nothing_is_due(self, store: Store) -> None:
        """A destination where nothing waits has no next time, whether it is known or not."""
        store.put(_record(1), ["a"])
        _settle(store, _lease(store, "a")[0], "deliver")

        _equal([None, None], [store.next_due("a"), store.next_due("b")])

    def test_what_is_next_due_is_the_earliest(self, store: Store) -> None:
        """The next time is that of a pending record, or of a lease's end."""
        now = self.clock.time_unix_nano()
        store.put(_record(1), ["a"])
        _equal(now, store.next_due("a"))
        _lease(store, "a")
        _equal(now + LEASE_MILLIS * NANOS_PER_MILLI, store.next_due("a"))
        self.clock.advance(seconds=1)
        store.put(_record(2), ["a"])
        _equal(self.clock.time_unix_nano(), store.next_due("a"))

    def test_what_waits_for_an_older_revision_is_not_due_before_it(self, store: Store) -> None:
        """A revision that would not be offered is not due: the end of the older one's lease is."""
        store.put(_record(1), ["a"])
        lease = _lease(store, "a")[0]
        store.put(_record(1, value=False), ["a"])

        _equal(lease.expires_at_unix_nano, store.next_due("a"))

    def test_a_paused_destination_is_due_when_its_pause_ends(self, store: Store) -> None:
        """The next time is never before the end of a pause."""
        until = self.clock.time_unix_nano() + 1
        store.put(_record(1), ["a"])
        store.pause("a", reason="401", until_unix_nano=until)

        _equal([until, None], [store.next_due("a"), store.next_due("b")])

    def test_nothing_of_a_paused_destination_is_offered(self, store: Store) -> None:
        """A pause keeps one destination's records until it ends; the account says why."""
        store.put(_record(1), ["a", "b"])
        store.pause("a", reason="401", until_unix_nano=self.clock.time_unix_nano() + NANOS_PER_MILLI)

        _equal(([], [_record(1).id]), (_lease(store, "a"), _ids(_lease(store, "b"))))
        _equal(["401", None], [_account(store, destination).paused for destination in "ab"])
        self.clock.advance(millis=1)
        _equal((None, [_record(1).id]), (_account(store, "a").paused, _ids(_lease(store, "a"))))

    def test_a_pause_may_be_ended(self, store: Store) -> None:
        """What is resumed is offered again at once; the newest pause is the one that counts."""
        store.put(_record(1), ["a"])
        store.pause("a", reason="401", until_unix_nano=self.clock.time_unix_nano() + 1)
        store.pause("a", reason="403", until_unix_nano=self.clock.time_unix_nano() + NANOS_PER_MILLI * 5)
        self.clock.advance(millis=1)

        _equal(("403", []), (_account(store, "a").paused, _lease(store, "a")))
        store.resume("a")
        _equal([_record(1).id], _ids(_lease(store, "a")))

    def test_what_is_held_is_released(self, store: Store) -> None:
        """A release makes due what waits for its span and nothing that waits for another try or is elsewhere."""
        for number, destination in enumerate("aab", start=1):
            store.put(_record(number), [destination])
        later = self.clock.time_unix_nano() + NANOS_PER_MILLI
        held, failed = _lease(store, "a")
        _settle(store, held, "retry", due_unix_nano=later, held=True)
        _settle(store, failed, "retry", due_unix_nano=later)
        _settle(store, _lease(store, "b")[0], "retry", due_unix_nano=later, held=True)
        store.release("a")

        _equal(([held.record.id], []), (_ids(_lease(store, "a")), _ids(_lease(store, "b"))))

    # --- requeue ---

    def test_a_dead_letter_is_requeued_as_if_it_were_new(self, store: Store) -> None:
        """A requeued delivery is due now and has no attempts; its dead parts are tried again, no others."""
        fine, unclear, dead = PartState("delivered"), PartState("unclear"), PartState("dead", "422")
        store.put(_record(1), ["a", "b"])
        parts = {"comment": fine, "value": dead, "tags": unclear}
        _settle(store, _lease(store, "a")[0], "bury", parts=parts)
        self.clock.advance(seconds=9)

        _equal(True, store.requeue(_record(1).id, "a"))
        lease = _lease(store, "a")[0]
        _equal({"comment": fine, "tags": unclear}, dict(lease.parts))
        _equal((0, self.clock.time_unix_nano()), (lease.attempts, lease.accepted_at_unix_nano))

    def test_only_what_is_dead_is_requeued(self, store: Store) -> None:
        """A delivery that is pending, leased or delivered, or not there, is left as it is."""
        store.put(_record(1), ["a", "b", "c"])
        _lease(store, "b")
        _settle(store, _lease(store, "c")[0], "deliver")

        _equal([False] * 4, [store.requeue(_record(1).id, destination) for destination in "abcd"])
        _equal({"a": "pending", "b": "leased", "c": "delivered"}, _states(store, 1))

    def test_a_requeue_after_a_newer_judgement_is_superseded(self, store: Store) -> None:
        """A dead letter never comes after what replaced it; what took it back retracts it."""
        newer = {1: _record(1, value=False), 2: _retraction(2)}
        for number, record in newer.items():
            store.put(_record(number), ["a"])
            _settle(store, _lease(store, "a")[0], "bury")
            store.put(record, ["a"])
            _settle(store, _lease(store, "a")[0], "deliver")

        _equal([True, True], [store.requeue(_record(number).id, "a") for number in newer])
        _equal(([], DestinationStats(recorded=4, delivered=2, superseded=1, retracted=1)), _left(store, "a"))

    # --- route ---

    def test_what_waits_unrouted_is_given_to_its_destinations(self, store: Store) -> None:
        """Unrouted records become pending where they are routed to, with the time at which they were accepted."""
        accepted_at = self.clock.time_unix_nano()
        store.put_many([Entry(_record(1), [UNROUTED]), Entry(_record(2), [UNROUTED])])
        self.clock.advance(seconds=1)

        _equal([2, 0], [store.route(["a", "b", "a"]), store.route(["a"])])
        _equal((["a", "b"], {"a": "pending", "b": "pending"}), (sorted(store.stats()), _states(store, 1)))
        _equal(
            [(_record(1).id, accepted_at), (_record(2).id, accepted_at)],
            [(lease.record.id, lease.accepted_at_unix_nano) for lease in _lease(store, "a")],
        )

    def test_routing_to_nobody_loses_nothing(self, store: Store) -> None:
        """Without a destination the records go on waiting."""
        store.put(_record(1), [UNROUTED])

        _equal((0, {UNROUTED: "pending"}), (store.route([]), _states(store, 1)))

    def test_only_pending_records_are_routed(self, store: Store) -> None:
        """What was superseded while it waited stays in the account of the unrouted."""
        store.put(_record(1), [UNROUTED])
        store.put(_record(1, value=False), [UNROUTED])

        _equal((1, ["a", UNROUTED]), (store.route(["a"]), sorted(store.stats())))
        _equal(DestinationStats(recorded=1, superseded=1), _account(store, UNROUTED))

    def test_a_routed_record_never_comes_after_a_newer_one(self, store: Store) -> None:
        """Where a newer judgement went directly, the routed one is superseded, or retracted where it takes it back."""
        store.put_many([Entry(_record(number), [UNROUTED]) for number in (1, 2, 3)])
        store.put_many([Entry(_record(1, value=False), ["a"]), Entry(_retraction(2), ["a"])])
        store.route(["a"])

        _equal([_record(1).id, _record(2).id, _record(3).id], sorted(_ids(_lease(store, "a"))))
        _equal(DestinationStats(recorded=5, pending=3, superseded=1, retracted=1), _account(store, "a"))

    def test_a_routed_record_supersedes_what_is_pending(self, store: Store) -> None:
        """Where an older revision is still pending, the routed one takes its place, or takes it back."""
        store.put_many([Entry(_record(1), ["a"]), Entry(_record(1, value=False), [UNROUTED])])
        store.put_many([Entry(_record(2), ["a"]), Entry(_retraction(2), [UNROUTED])])
        store.route(["a"])

        _equal([False, None], [lease.record.value for lease in _lease(store, "a")])
        _equal(DestinationStats(recorded=4, pending=2, superseded=1, retracted=1), _account(store, "a"))

    def test_a_record_is_not_routed_to_where_it_goes_already(self, store: Store) -> None:
        """A destination that has a record keeps its one delivery of it."""
        store.put(_record(1), [UNROUTED, "a"])
        _settle(store, _lease(store, "a")[0], "deliver")

        _equal((1, {"a": "delivered", "b": "pending"}), (store.route(["a", "b"]), _states(store, 1)))

    # --- what is known ---

    def test_an_unknown_id_is_known_nowhere(self, store: Store) -> None:
        """Of an id that was never put there is no record and no status, and nothing to requeue or join."""
        unknown = _record(1)

        _equal((None, None), (store.latest(unknown.id), store.status(unknown.id)))
        _equal((False, False), (store.requeue(unknown.id, "a"), store.unpark(unknown.id, Entry(unknown, ["a"]))))

    def test_the_status_is_that_of_the_newest_record(self, store: Store) -> None:
        """Where the newest revision did not go, the status is silent."""
        store.put(_record(1), ["a", "b"])
        store.put(_record(1, value=False), ["b"])

        _equal({"b": DeliveryStatus("pending")}, store.status(_record(1).id))

    def test_a_retraction_is_leased_with_what_stands_then(self, store: Store) -> None:
        """What somebody else says is read at each lease: between two tries it may have changed."""
        store.put(_record(1), ["a"])
        store.put(_record(2), ["b"])
        store.put(_retraction(2), ["b"])
        (first,) = _lease(store, "b")
        _settle(store, first, "retry")
        store.put(_retraction(1), ["a"])
        (second,) = _lease(store, "b")

        _equal([_record(1), None], [lease.record.stands for lease in (first, second)])

    def test_the_destinations_of_a_judgement_are_those_of_all_its_revisions(self, store: Store) -> None:
        """Wherever any revision was put for is named, once; nothing for an unknown id."""
        store.put(_record(1), ["a", "b"])
        store.put(_record(1, value=False), ["b", "c"])
        store.put(_record(2), ["d"])

        _equal(["a", "b", "c"], sorted(store.destinations(_record(1).id)))
        _equal([], list(store.destinations(_record(9).id)))

    def test_what_stands_has_a_value(self, store: Store) -> None:
        """A newer comment of somebody else, under the same name, leaves the value that stands."""
        store.put(_record(1), ["a"])
        store.put(_record(2, value=None, comment="c"), ["a"])

        _equal(_record(1).id, _standing(store, 9))

    def test_what_stands_is_the_newest_of_somebody_else(self, store: Store) -> None:
        """The last that was put counts, whatever the clock said; not one's own, nor of another span or name."""
        store.put(_record(1, recorded_at_unix_nano=9), ["a"])
        store.put(_record(2, recorded_at_unix_nano=5), ["a"])
        store.put(_record(3, span_id=2), ["a"])
        store.put(_record(4, name="other"), ["a"])
        store.put(_record(5), ["a"])

        _equal([_record(2).id, _record(5).id], [_standing(store, number) for number in (5, 2)])
        _equal([None, None], [_standing(store, 3, span_id=2), _standing(store, 4, name="other")])

    def test_what_was_taken_back_or_changed_does_not_stand(self, store: Store) -> None:
        """Only the newest revision under an id says what its holder says, and a retraction says nothing."""
        store.put_many([Entry(_record(number), ["a"]) for number in (1, 2, 3)])
        store.put(_retraction(3), ["a"])
        store.put(_record(2, name="other"), ["a"])

        _equal(_record(1).id, _standing(store, 9))
        store.put(_record(2, value=False), ["a"])
        _equal(_record(2, value=False, revision=2), store.standing(_record(9)))

    def test_an_empty_store_has_no_accounts(self, store: Store) -> None:
        """A destination appears with its first record."""
        _equal({}, dict(store.stats()))

    def test_the_account_of_a_destination_adds_up(self, store: Store) -> None:
        """Recorded is the sum of the states, a leased record is pending, and skips are counted by reason."""
        accepted_at = self.clock.time_unix_nano()
        for number, event in enumerate(("deliver", "bury", "skip", "retract")):
            store.put(_record(number), ["a"])
            _settle(store, _lease(store, "a")[0], event, reason=event)
        store.put(_record(4), ["a"], skipped={"a": "unsampled"})
        store.put(_record(5), ["a"], skipped={"a": "unsampled"})
        store.put(_record(6), ["a"])
        _lease(store, "a")
        self.clock.advance(seconds=1)
        store.put(_record(7), ["a"])
        account = store.stats()["a"]

        _equal(
            DestinationStats(
                recorded=8,
                pending=2,
                delivered=1,
                dead=1,
                retracted=1,
                skipped={"skip": 1, "unsampled": 2},
                oldest_unix_nano=accepted_at,
            ),
            replace(account, skipped=dict(account.skipped)),
        )
        _equal(True, account.is_conserved)

    # --- judgements that wait for their key ---

    def test_parked_judgements_wait_for_their_key_oldest_first(self, store: Store) -> None:
        """A parked judgement is found under its key and kind, as it was parked, and is in no account."""
        waiting = [
            Parked(_record(2, comment="c"), APP, "m-1", ("a", "b")),
            Parked(_record(1), APP, "m-1"),
            Parked(_record(3), RESPONSE, "m-1"),
            Parked(_record(4), APP, "m-2", ()),
        ]
        for parked in waiting:
            store.park(parked)

        _equal(waiting[:2], list(store.parked(APP, "m-1")))
        _equal([waiting[2:3], waiting[3:]], [list(store.parked(RESPONSE, "m-1")), list(store.parked(APP, "m-2"))])
        _equal(({}, None, {}), (store.status(_record(1).id), store.latest(_record(1).id), dict(store.stats())))

    def test_parking_under_the_same_id_replaces(self, store: Store) -> None:
        """Of two judgements parked under one id the newer waits, behind those that were there."""
        for record in (_record(1), _record(2), _record(1, value=False)):
            store.park(Parked(record, APP, "m-1"))

        _equal([_record(2), _record(1, value=False)], [parked.record for parked in store.parked(APP, "m-1")])

    def test_a_joined_judgement_is_found_by_its_parked_id(self, store: Store) -> None:
        """Once its key turned up, the parked id means the record, whose own id may be another."""
        store.park(Parked(_record(1), APP, "m-1"))

        _equal(True, store.unpark(_record(1).id, Entry(_record(2), ["a"])))
        _equal([], list(store.parked(APP, "m-1")))
        _equal((_record(2), {"a": "pending"}), (store.latest(_record(1).id), _states(store, 1)))
        _settle(store, _lease(store, "a")[0], "bury")
        _equal((True, {"a": "pending"}), (store.requeue(_record(1).id, "a"), _states(store, 2)))

    def test_a_parked_judgement_is_joined_once(self, store: Store) -> None:
        """The second of two that join it is told so, and puts nothing."""
        store.park(Parked(_record(1), APP, "m-1"))

        _equal([True, False], [store.unpark(_record(1).id, Entry(_record(1), ["a"])) for _ in range(2)])
        _equal(1, _account(store, "a").recorded)

    def test_a_judgement_may_be_parked_again_after_it_was_joined(self, store: Store) -> None:
        """A change of mind by the same key waits anew, and is the next revision when it is joined."""
        store.park(Parked(_record(1), APP, "m-1"))
        store.unpark(_record(1).id, Entry(_record(1), ["a"]))
        store.park(Parked(_record(1, value=False), APP, "m-1"))

        _equal([False], [parked.record.value for parked in store.parked(APP, "m-1")])
        _equal(True, store.unpark(_record(1).id, Entry(_record(1, value=False), ["a"])))
        _equal(_record(1, value=False, revision=1), store.latest(_record(1).id))


def _lease(store: Store, destination: str, *, limit: int = 100) -> list[Lease]:
    """Lease what is due."""
    return list(store.lease(destination, limit=limit, duration_millis=LEASE_MILLIS))


def _settle(store: Store, lease: Lease, event: Any, **how: Any) -> bool:
    """End a lease."""
    return store.settle(lease, Settlement(event, **{"parts": {}, **how}))


def _retraction(number: int) -> FeedbackRecord:
    return _record(number, value=None, retracts=True)


def _spans(handles: Sequence[FeedbackHandle]) -> list[int]:
    return [handle.context.span_id for handle in handles]


def _ids(leases: Sequence[Lease]) -> list[str]:
    return [lease.record.id for lease in leases]


def _states(store: Store, number: int) -> dict[str, str]:
    found = store.status(_record(number).id) or {}
    return {destination: status.state for destination, status in found.items()}


def _account(store: Store, destination: str) -> DestinationStats:
    """Answer an account without its time, which most tests do not ask for."""
    return replace(store.stats()[destination], oldest_unix_nano=None)


def _left(store: Store, destination: str) -> tuple[list[str], DestinationStats]:
    return _ids(_lease(store, destination)), _account(store, destination)


def _standing(store: Store, number: int, **changes: Any) -> str | None:
    found = store.standing(_record(number, **changes))
    return None if found is None else found.id


# A thumb, a number, a label, labels, a correction, a comment, tags, and everything at once.
JUDGEMENTS: tuple[FeedbackRecord, ...] = (
    _record(1),
    _record(2, value=False, user_id="u-1"),
    _record(3, value=4, scale=(1, 5), name="stars"),
    _record(4, value=0.25, name="relevance", source="llm"),
    _record(5, value="spelling", name="defects"),
    _record(6, value=("spelling", "off_topic"), name="defects"),
    _record(7, value=None, correction={"text": "42"}),
    _record(8, value=None, comment="Spot on"),
    _record(9, value=None, tags=("billing", "german")),
    _record(10, comment="No.", correction="42", tags=("x",), user_id="u-1", metadata={"app": "chat"}, source="code"),
)


class ExporterContract:
    """The contract of `FeedbackExporter`, as tests: inherit it, and define one fixture named `exporter`.

    The fixture makes an exporter whose vendor accepts whatever it gets, starts it where it has a `start()`, and shuts
    it down in the end:

        class TestMyExporter(ExporterContract):
            @pytest.fixture
            def exporter(self):
                exporter = MyExporter(transport=accept_everything)
                yield exporter
                exporter.shutdown()

    `judgements` are the records that it is tried with; replace them where a record needs something of its own.
    """

    judgements: Sequence[FeedbackRecord] = JUDGEMENTS

    # --- the name and the options ---

    def test_it_has_a_name_that_stays(self, exporter: FeedbackExporter) -> None:
        """Deliveries are kept under the name, which is a text, not that of the unrouted, and always the same."""
        before = exporter.name
        self._export(exporter)

        _equal((True, before), (isinstance(before, str) and before not in ("", UNROUTED), exporter.name))

    def test_its_options_are_what_the_engine_reads(self, exporter: FeedbackExporter) -> None:
        """The optional attributes are a boolean and a mapping of texts, where they are there."""
        attributes: Mapping[object, object] = getattr(exporter, "span_attributes", {})

        _equal(True, isinstance(getattr(exporter, "exports_unsampled", False), bool))
        _equal(True, all(isinstance(text, str) for item in attributes.items() for text in item))

    # --- parts ---

    def test_parts_are_the_same_each_time(self, exporter: FeedbackExporter) -> None:
        """What a record looks like at the vendor is a function of the record, and of nothing that export changes."""
        before = list(self._parts(exporter))
        self._export(exporter)

        _equal(before, list(self._parts(exporter)))

    def test_parts_need_no_connection(self, exporter: FeedbackExporter) -> None:
        """Saying what is to be sent does no I/O, so that it works when everything is shut down."""
        before = list(self._parts(exporter))
        exporter.shutdown()

        _equal(before, list(self._parts(exporter)))

    def test_a_part_is_told_by_its_kind(self, exporter: FeedbackExporter) -> None:
        """No two parts of one judgement are of the same kind."""
        kinds = [[part.kind for part in parts] for parts in self._parts(exporter)]

        _equal([list(dict.fromkeys(each)) for each in kinds], kinds)

    def test_a_part_says_whose_it_is_and_what_it_carries(self, exporter: FeedbackExporter) -> None:
        """A part belongs to its record, asks for creation, and carries no field that was not said."""
        for record, parts in zip(self.judgements, self._parts(exporter), strict=True):
            for part in parts:
                _equal((record, "create", None), (part.record, part.action, part.replaces))
                _equal(frozenset(), part.carries - frozenset(record.said))

    # --- export ---

    def test_each_part_that_is_exported_has_its_result(self, exporter: FeedbackExporter) -> None:
        """A vendor that accepts everything makes every part a success, one result for each."""
        parts = [part for each in self._parts(exporter) for part in each]

        _equal([Success] * len(parts), [type(result) for result in exporter.export(parts)])

    def test_exporting_nothing_answers_nothing(self, exporter: FeedbackExporter) -> None:
        """No parts, no results."""
        _equal([], list(exporter.export([])))

    def test_a_part_may_come_again(self, exporter: FeedbackExporter) -> None:
        """Exporting a part a second time under the same id is as good as the first."""
        self._export(exporter)

        _equal(True, all(isinstance(result, Success) for result in self._export(exporter)))

    def test_a_part_may_be_replaced_and_taken_back(self, exporter: FeedbackExporter) -> None:
        """Every action is answered with a result; what the vendor cannot do is one as well."""
        self._export(exporter)
        parts = [part for each in self._parts(exporter) for part in each]
        replaced = exporter.export([replace(part, action="replace", replaces=part) for part in parts])
        retracted = exporter.export([replace(part, action="retract") for part in parts])

        _equal([len(parts)] * 2, [len(replaced), len(retracted)])
        _equal(True, all(isinstance(result, Result) for result in (*replaced, *retracted)))

    # --- life cycle ---

    def test_a_flush_says_whether_all_of_it_went(self, exporter: FeedbackExporter) -> None:
        """With a vendor that accepts everything, a flush has sent all there is."""
        self._export(exporter)

        _equal(True, exporter.force_flush(timeout_millis=30_000))

    def test_shutting_down_twice_is_the_same_as_once(self, exporter: FeedbackExporter) -> None:
        """A second shutdown does nothing, whether something was exported or not."""
        self._export(exporter)
        exporter.shutdown()
        exporter.shutdown()

    def _parts(self, exporter: FeedbackExporter) -> Iterator[Sequence[Part]]:
        """Ask for the parts of each judgement; one that the exporter refuses as it may has none."""
        for record in self.judgements:
            try:
                yield exporter.parts(record)
            except InvalidFeedbackError:
                yield []

    def _export(self, exporter: FeedbackExporter) -> Sequence[Result]:
        """Export everything."""
        return exporter.export([part for each in self._parts(exporter) for part in each])
