"""For tests of applications, exporters and stores.

`FakeClock` is time as an argument, `InMemoryFeedbackExporter` keeps what it gets. `StoreContract` and
`ExporterContract` hold the ports' contracts as tests: whoever writes a store or an exporter inherits one and gives it
one fixture. They are plain classes, collected by pytest under the name of the class that inherits them; this module
itself does not import pytest, so that an application's own tests need none.
"""

from __future__ import annotations

import logging
import threading
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._dialects import USER_ID
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import DeliveryStatus, FeedbackRecord, FeedbackValue, Part
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.exceptions import InvalidFeedbackError, OutboxFullError
from otel_feedback.exporters import (
    FeedbackExporter,
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    Success,
    Unclear,
)
from otel_feedback.stores import (
    APP,
    PARKED,
    PROBE_MILLIS,
    RESPONSE,
    SET_BACK_MILLIS,
    STATES,
    TRANSITIONS,
    UNROUTED,
    Binding,
    DestinationStats,
    Entry,
    Event,
    Lease,
    Parked,
    PartState,
    Settlement,
    Standing,
    State,
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

    The fixture makes an empty store with `self.clock`, opens it, and closes it in the end. Another one,
    `limited_store`, makes one that lets three records wait at a destination:

        class TestMyStore(StoreContract):
            @pytest.fixture
            def store(self):
                with closing(MyStore(clock=self.clock)) as store:
                    store.open()
                    yield store

            @pytest.fixture
            def limited_store(self):
                with closing(MyStore(max_queue_size=3, clock=self.clock)) as store:
                    store.open()
                    yield store
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

    def test_a_destination_may_keep_a_variant(self, store: Store) -> None:
        """It gets, and is told as standing, the variant; everybody else gets the record."""
        variant = _record(1, comment="redacted")
        store.put_many([Entry(_record(1, comment="secret"), ["a", "b"], variants={"a": variant})])
        leases = [_lease(store, destination)[0] for destination in "ab"]
        for lease in leases:
            _settle(store, lease, "deliver", standing={"comment": Standing(lease.record)})
        store.put(_record(1), ["a", "b"])

        _equal(["redacted", "secret"], [lease.record.comment for lease in leases])
        _equal(
            [leases[0].record, leases[1].record], [_lease(store, name)[0].standing["comment"].record for name in "ab"]
        )

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
            ("a", accepted_at, self.clock.time_unix_nano() + LEASE_MILLIS * NANOS_PER_MILLI, 0, {}, {}, False, False),
            (
                lease.destination,
                lease.accepted_at_unix_nano,
                lease.expires_at_unix_nano,
                lease.attempts,
                dict(lease.parts),
                dict(lease.standing),
                lease.lapsed,
                lease.is_probe,
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

    def test_a_lease_tells_what_stands_of_the_earlier_revisions(self, store: Store) -> None:
        """What a revision was settled with as standing is told to the next one, at that destination and no other."""
        standing = {"value": Standing(_record(1)), "comment": Standing(_record(1), is_unclear=True, others=(3, 2))}
        store.put(_record(1), ["a", "b"])
        _settle(store, _lease(store, "a")[0], "deliver", standing=standing)
        store.put(_record(1, value=False), ["a", "b"])

        _equal([standing, {}], [dict(_lease(store, destination)[0].standing) for destination in "ab"])

    def test_what_stands_is_what_the_newest_settled_revision_said(self, store: Store) -> None:
        """A revision that was never settled says nothing of what stands; a retry says it as any settlement does."""
        store.put(_record(1), ["a"])
        _settle(store, _lease(store, "a")[0], "deliver", standing={"value": Standing(_record(1))})
        store.put(_record(1, value=False), ["a"])
        second = Standing(_record(1, value=False, revision=1), is_unclear=True, others=(0,))
        _settle(store, _lease(store, "a")[0], "retry", standing={"value": second})
        store.put_many([Entry(_record(1), ["a"]), Entry(_record(1, value=False), ["a"])])

        _equal([{"value": second}], [dict(lease.standing) for lease in _lease(store, "a")])

    def test_a_retry_is_told_what_stands_of_the_revisions_before_it(self, store: Store) -> None:
        """What a revision was settled with itself is for the next one; its own lease still tells the earlier ones."""
        store.put(_record(1), ["a"])
        first = {"value": Standing(_record(1))}
        _settle(store, _lease(store, "a")[0], "deliver", standing=first)
        store.put(_record(1, value=False), ["a"])
        _settle(store, _lease(store, "a")[0], "retry", standing={"value": Standing(_record(1, revision=1), True)})

        _equal([first], [dict(lease.standing) for lease in _lease(store, "a")])

    def test_a_lease_that_follows_one_that_ran_out_is_lapsed(self, store: Store) -> None:
        """A worker that said nothing may have sent everything; one that asked for a retry has said so."""
        store.put_many([Entry(_record(1), ["a"]), Entry(_record(2), ["a"])])
        first, _ = _lease(store, "a")
        _settle(store, first, "retry", due_unix_nano=self.clock.time_unix_nano())
        self.clock.advance(millis=LEASE_MILLIS)

        _equal(
            {_record(1).id: False, _record(2).id: True}, {each.record.id: each.lapsed for each in _lease(store, "a")}
        )

    def test_by_call_all_judgements_of_a_span_stand_in_one_line(self, store: Store) -> None:
        """While an older judgement of a span waits or is leased, nothing after it goes; other spans are free."""
        for number, span_id in ((1, 1), (2, 1), (3, 2)):
            store.put(_record(number, span_id=span_id), ["a"])
            self.clock.advance(millis=1)
        first, other = _lease(store, "a", by_call=True)

        _equal([_record(1).id, _record(3).id], [first.record.id, other.record.id])
        _equal([], _lease(store, "a", by_call=True))
        later = self.clock.time_unix_nano() + NANOS_PER_MILLI
        _settle(store, first, "retry", due_unix_nano=later)
        _equal(([], later), (_lease(store, "a", by_call=True), store.next_due("a", by_call=True)))
        self.clock.advance(millis=1)
        _settle(store, _lease(store, "a", by_call=True)[0], "deliver")
        _equal([_record(2).id], _ids(_lease(store, "a", by_call=True)))

    def test_by_call_a_line_goes_in_the_order_in_which_it_was_put(self, store: Store) -> None:
        """An older judgement whose time came later is offered first all the same."""
        store.put_many([Entry(_record(1), ["a", "b"]), Entry(_record(2), ["a"])])
        older, _ = _lease(store, "a")
        _settle(store, older, "retry", due_unix_nano=self.clock.time_unix_nano() + NANOS_PER_MILLI)
        self.clock.advance(millis=LEASE_MILLIS)

        _equal([_record(1).id], _ids(_lease(store, "a", by_call=True, limit=1)))

    def test_a_time_far_ahead_has_come(self, store: Store) -> None:
        """What a clock noted that has been set back since is offered, whether it was pending or leased."""
        store.put_many([Entry(_record(1), ["a"]), Entry(_record(2), ["b"])])
        _lease(store, "b")
        self.clock.jump(seconds=-SET_BACK_MILLIS / 1_000 - LEASE_MILLIS / 1_000 - 1)
        now = self.clock.time_unix_nano()

        _equal([now, now], [store.next_due("a"), store.next_due("b")])
        _equal([[_record(1).id], [_record(2).id]], [_ids(_lease(store, destination)) for destination in "ab"])

    def test_what_a_clock_has_put_far_ahead_keeps_to_the_limit(self, store: Store) -> None:
        """Beside what is due there is room for the rest of the limit, and no more."""
        store.put_many([Entry(_record(number), ["a"]) for number in (1, 2)])
        self.clock.jump(seconds=-SET_BACK_MILLIS / 1_000 - 1)
        store.put(_record(3), ["a"])

        _equal([[_record(3).id, _record(1).id], [_record(2).id]], [_ids(_lease(store, "a", limit=2)) for _ in range(2)])

    def test_a_time_within_the_longest_wait_has_not_come(self, store: Store) -> None:
        """A wait of an hour is one, and so is one that another machine's clock puts a little further ahead."""
        store.put(_record(1), ["a"])
        due = self.clock.time_unix_nano() + SET_BACK_MILLIS * NANOS_PER_MILLI
        _settle(store, _lease(store, "a")[0], "retry", due_unix_nano=due)

        _equal(([], due), (_lease(store, "a"), store.next_due("a")))

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
        parts = {"comment": PartState("delivered"), "value": PartState("unclear", "timeout", removed=(2, 0))}
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

    def test_of_several_newer_judgements_the_newest_says_what_becomes_of_a_retry(self, store: Store) -> None:
        """What was taken back in the end is retracted, what was said anew in the end is superseded."""
        store.put_many([Entry(_record(1), ["a"]), Entry(_record(2), ["b"])])
        leases = [*_lease(store, "a"), *_lease(store, "b")]
        store.put_many([Entry(_record(1, value=False), ["a"]), Entry(_retraction(1), ["a"])])
        store.put_many([Entry(_retraction(2), ["b"]), Entry(_record(2, value=False), ["b"])])
        for lease in leases:
            _settle(store, lease, "retry")

        _equal(DestinationStats(recorded=3, pending=1, retracted=2), _account(store, "a"))
        _equal(DestinationStats(recorded=3, pending=1, superseded=2), _account(store, "b"))

    def test_several_leases_end_at_once(self, store: Store) -> None:
        """Each as if it were settled alone; one that is not the newest is told so."""
        store.put_many([Entry(_record(number), ["a"]) for number in range(3)])
        first, second, third = _lease(store, "a")
        _settle(store, second, "deliver")
        ends = [(first, Settlement("deliver", {})), (second, Settlement("bury", {})), (third, Settlement("skip", {}))]

        _equal([True, False, True], list(store.settle_many(ends)))
        _equal(["delivered", "delivered", "skipped"], [_states(store, number)["a"] for number in range(3)])

    # --- the table of states ---

    def test_every_arrow_of_the_table_is_walked_and_no_other(self, store: Store) -> None:
        """Whatever is done to a delivery in a state, it goes where the table says; where that is silent it stays."""
        number = 0
        for state in STATES:
            for event in ARROWS:
                number += 1
                record = _record(number, span_id=number)
                lease = _reach(store, state, record)
                ARROWS[event](store, lease, self.clock)
                expected = TRANSITIONS.get((state, event), state)
                if (actual := _state_of(store, record)) != expected:
                    raise AssertionError(f"{event} in {state}: expected {expected}, got {actual}")

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
        _equal(("401", [_record(1).id]), (_account(store, "a").paused, _ids(_lease(store, "a"))))

    def test_a_pause_that_has_ended_lets_one_record_a_second_through(self, store: Store) -> None:
        """From the end of a pause until it is resumed one record at a time is offered, to whoever asks, as a probe."""
        store.put_many([Entry(_record(number), ["a"]) for number in range(3)])
        store.pause("a", reason="401", until_unix_nano=self.clock.time_unix_nano())
        (probe,) = _lease(store, "a")

        _equal((True, []), (probe.is_probe, _lease(store, "a")))
        _equal(self.clock.time_unix_nano() + PROBE_MILLIS * NANOS_PER_MILLI, store.next_due("a"))
        self.clock.advance(millis=PROBE_MILLIS)
        _equal([True], [lease.is_probe for lease in _lease(store, "a")])
        store.resume("a")
        _equal(([False], None), ([lease.is_probe for lease in _lease(store, "a")], _account(store, "a").paused))

    def test_asking_where_nothing_is_due_uses_up_no_probe(self, store: Store) -> None:
        """A probe is a record that is offered, not a question."""
        store.pause("a", reason="401", until_unix_nano=self.clock.time_unix_nano())
        _lease(store, "a")
        store.put(_record(1), ["a"])

        _equal([_record(1).id], _ids(_lease(store, "a")))

    def test_a_pause_far_ahead_has_ended(self, store: Store) -> None:
        """What a clock noted that has been set back since does not keep a destination for ever."""
        until = self.clock.time_unix_nano() + (SET_BACK_MILLIS + 1) * NANOS_PER_MILLI
        store.put(_record(1), ["a"])
        store.pause("a", reason="401", until_unix_nano=until)

        _equal([_record(1).id], _ids(_lease(store, "a")))

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

    def test_what_may_have_arrived_is_unclear_after_a_requeue(self, store: Store) -> None:
        """A dead part that was unclear before is tried again as such."""
        store.put(_record(1), ["a"])
        _settle(store, _lease(store, "a")[0], "bury", parts={"value": PartState("dead", "422", was_unclear=True)})
        store.requeue(_record(1).id, "a")

        _equal({"value": PartState("unclear", "422")}, dict(_lease(store, "a")[0].parts))

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

    def test_of_several_dead_revisions_the_newest_is_requeued(self, store: Store) -> None:
        """The older ones stay dead: they would only be superseded."""
        for value in (True, False):
            store.put(_record(1, value=value), ["a"])
            _settle(store, _lease(store, "a")[0], "bury")

        _equal(True, store.requeue(_record(1).id, "a"))
        _equal(DestinationStats(recorded=2, pending=1, dead=1), _account(store, "a"))

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

    def test_routing_goes_in_steps_oldest_first(self, store: Store) -> None:
        """No more than the limit is routed at once."""
        store.put_many([Entry(_record(number), [UNROUTED]) for number in (3, 1, 2)])

        _equal([2, 1, 0], [store.route(["a"], limit=2) for _ in range(3)])

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
        store.put(_record(1), ["b"])
        _settle(store, _lease(store, "b")[0], "deliver")
        store.put(_record(2), ["b"])
        store.put(_retraction(2), ["b"])
        (first,) = _lease(store, "b")
        _settle(store, first, "retry")
        store.put(_retraction(1), ["b"])
        second = next(lease for lease in _lease(store, "b") if lease.record.id == _record(2).id)

        _equal([_record(1), None], [lease.record.stands for lease in (first, second)])

    def test_what_stands_is_what_that_destination_was_given(self, store: Store) -> None:
        """A judgement that went elsewhere, was skipped or is dead does not stand; of a variant the variant does."""
        variant = _record(1, comment="redacted")
        variants = {"a": variant, "A": _record(1, comment="also redacted")}
        entry = Entry(_record(1, comment="secret"), ["A", "a"], variants=variants)
        store.put_many([entry, Entry(_record(2), ["b"])])
        store.put(_record(3), ["a"], skipped={"a": "unsampled"})
        store.put(_record(4), ["a"])
        _settle(store, next(each for each in _lease(store, "a") if each.record.id == _record(4).id), "bury")

        _equal(variant, store.standing(_record(9), "a"))

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
        _equal(_record(2, value=False, revision=2), store.standing(_record(9), "a"))

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

    def test_what_is_tried_again_is_counted(self, store: Store) -> None:
        """Each attempt that another one follows counts as retried; one that a newer judgement follows does not."""
        store.put(_record(1), ["a"])
        _settle(store, _lease(store, "a")[0], "retry")
        _settle(store, _lease(store, "a")[0], "retry")
        _settle(store, _lease(store, "a")[0], "retry", counts=False)
        lease = _lease(store, "a")[0]
        store.put(_record(1, value=False), ["a"])
        _settle(store, lease, "retry")

        _equal(DestinationStats(recorded=2, pending=1, superseded=1, retried=2), _account(store, "a"))

    # --- what is limited, pruned and forgotten ---

    def test_a_full_store_refuses_and_puts_nothing(self, limited_store: Store) -> None:
        """What would make more than three wait at a destination is refused as a whole; other destinations are free."""
        limited_store.put_many([Entry(_record(number), ["a"]) for number in range(3)])
        _refused(limited_store, [Entry(_record(8), ["b"]), Entry(_record(9), ["a", "b"])])

        _equal((None, ["a"]), (limited_store.latest(_record(8).id), list(limited_store.stats())))
        limited_store.put(_record(9), ["b"])
        _settle(limited_store, _lease(limited_store, "a")[0], "deliver")
        limited_store.put(_record(9), ["a"])
        _equal(3, limited_store.stats()["a"].pending)

    def test_a_full_destination_fills_no_other(self, limited_store: Store) -> None:
        """Each destination is counted by itself, whichever of them is the full one."""
        limited_store.put_many([Entry(_record(1), ["a", "c"]), *[Entry(_record(n), ["b"]) for n in (2, 3, 4)]])

        for name in ("a", "c"):
            limited_store.put(_record(5), [name])
        _refused(limited_store, [Entry(_record(6), ["b"])])
        _equal([2, 3, 2], [limited_store.stats()[name].pending for name in ("a", "b", "c")])

    def test_a_full_store_takes_a_change_of_mind(self, limited_store: Store) -> None:
        """What takes the place of a pending judgement makes nothing more wait; what is skipped does not wait."""
        limited_store.put_many([Entry(_record(number), ["a"]) for number in range(3)])
        limited_store.put(_record(1, value=False), ["a"])
        limited_store.put(_record(9), ["a"], skipped={"a": "unsampled"})

        _equal((3, 1), (limited_store.stats()["a"].pending, limited_store.stats()["a"].superseded))

    def test_a_full_store_refuses_what_waits_for_its_key(self, limited_store: Store) -> None:
        """Of judgements that are parked there may be as many; one that was parked already may change."""
        limited_store.put_many([Parked(_record(number), APP, "m-1") for number in range(3)])
        limited_store.put_many([Parked(_record(1, value=False), APP, "m-1")])
        _refused(limited_store, [Parked(_record(9), APP, "m-2")])

        _equal([], list(limited_store.parked(APP, "m-2")))

    def test_what_is_old_and_done_is_pruned_and_stays_in_the_accounts(self, store: Store) -> None:
        """A judgement goes with all its revisions and its key; what waits, is dead or is younger stays."""
        store.bind([Binding(APP, "m-1", _handle(1))])
        for number, event in enumerate(("deliver", "bury", "retry", "deliver")):
            store.put(_record(number, span_id=number + 1), ["a"])
            _settle(store, _lease(store, "a")[0], event, due_unix_nano=self.clock.time_unix_nano() + NANOS_PER_MILLI)
        self.clock.advance(seconds=1)
        store.put(_record(3, value=False, span_id=4), ["b"])
        store.bind([Binding(APP, "m-2", _handle(2))])
        now = self.clock.time_unix_nano()

        _equal([2, 0], [store.prune(now), store.prune(now)])
        _equal([None, 1, 2, 3], [(found := store.latest(_record(n).id)) and int(found.id[-3:]) for n in range(4)])
        _equal([0, 1], [len(store.find(APP, key)) for key in ("m-1", "m-2")])
        _equal(DestinationStats(recorded=4, pending=1, delivered=2, dead=1, retried=1), _account(store, "a"))
        _equal((None, None), (store.status(_record(0).id), store.standing(_record(9), "a")))

    def test_what_was_put_just_then_is_not_pruned(self, store: Store) -> None:
        """Neither a judgement nor a key: only what is older goes."""
        store.bind([Binding(APP, "m-1", _handle(1))])
        store.put(_record(1), [])
        now = self.clock.time_unix_nano()

        _equal([0, 2], [store.prune(before) for before in (now, now + 1)])

    def test_a_key_that_is_bound_again_is_as_young_as_that(self, store: Store) -> None:
        """Where a call binds its key once more, it is kept for as long from then on."""
        store.bind([Binding(APP, "m-1", _handle(1)), Binding(APP, "m-2", _handle(2))])
        self.clock.advance(seconds=1)
        store.bind([Binding(APP, "m-1", _handle(1))])
        store.prune(self.clock.time_unix_nano())

        _equal([1, 0], [len(store.find(APP, key)) for key in ("m-1", "m-2")])

    def test_a_judgement_after_a_pruned_one_begins_anew(self, store: Store) -> None:
        """The same id starts again at its first revision, and nothing stands before it."""
        store.put(_record(1), ["a"])
        _settle(store, _lease(store, "a")[0], "deliver", standing={"value": Standing(_record(1))})
        store.prune(self.clock.time_unix_nano() + 1)
        store.put(_record(1, value=False), ["a"])
        (lease,) = _lease(store, "a")

        _equal((0, {}), (lease.record.revision, dict(lease.standing)))

    def test_a_parked_judgement_is_pruned_with_its_record(self, store: Store) -> None:
        """One that waits for its key stays, however old it is; one that was joined goes with what it became."""
        store.put_many([Parked(_record(1), APP, "m-1"), Parked(_record(2), APP, "m-1")])
        store.unpark(_record(1).id, Entry(_record(3), ["a"], skipped={"a": "unsampled"}))

        _equal(1, store.prune(self.clock.time_unix_nano() + 1))
        _equal((None, {}), (store.status(_record(1).id), store.status(_record(2).id)))

    def test_pruning_goes_in_steps(self, store: Store) -> None:
        """No more than the limit of each sort is removed at once."""
        store.put_many([Entry(_record(number), []) for number in range(3)])

        _equal([2, 1, 0], [store.prune(self.clock.time_unix_nano() + 1, limit=2) for _ in range(3)])

    def test_a_person_is_forgotten(self, store: Store) -> None:
        """What they judged goes with all its revisions, whatever became of it; what waited counts as retracted."""
        theirs = [_record(number, user_id="u-1", span_id=number) for number in (1, 2)]
        store.put_many([Entry(theirs[0], ["a"]), Entry(theirs[1], ["a"]), Entry(_record(3, user_id="u-2"), ["a"])])
        _settle(store, _lease(store, "a", limit=1)[0], "deliver")
        store.put(replace(theirs[0], value=False), ["a"])
        store.put_many([Parked(_record(4, user_id="u-1"), APP, "m-9")])

        _equal(4, store.forget("u-1"))
        _equal([None, None, 3], [(r := store.latest(_record(n).id)) and int(r.id[-3:]) for n in (1, 2, 3)])
        _equal(([], 0), (list(store.parked(APP, "m-9")), store.forget("u-1")))
        _equal(DestinationStats(recorded=4, pending=1, delivered=1, retracted=2), _account(store, "a"))

    def test_a_late_worker_settles_nothing_that_was_forgotten(self, store: Store) -> None:
        """What is on its way when its person is forgotten is told so at the end."""
        store.put(_record(1, user_id="u-1"), ["a"])
        (lease,) = _lease(store, "a")
        store.forget("u-1")

        _equal((False, [], 0), (_settle(store, lease, "deliver"), _lease(store, "a"), store.forget("u-1")))
        _equal(DestinationStats(recorded=1, retracted=1), _account(store, "a"))

    def test_calls_no_longer_name_who_was_forgotten(self, store: Store) -> None:
        """Keys of their calls are removed; what others said of these calls stays, without their name."""
        call = replace(_handle(1), attributes={USER_ID: "u-1", "gen_ai.request.model": "m"})
        other = replace(_handle(2), attributes={USER_ID: "u-2", "gen_ai.request.model": "u-1"})
        store.bind([Binding(APP, "m-1", call), Binding(APP, "m-2", other)])
        store.put_many(
            [Entry(replace(_record(1), handle=call), ["a"]), Entry(replace(_record(2), handle=other), ["a"])]
        )

        _equal(0, store.forget("u-1"))
        _equal([[], [other]], [list(store.find(APP, key)) for key in ("m-1", "m-2")])
        _equal(
            [{"gen_ai.request.model": "m"}, dict(other.attributes)],
            [dict(lease.record.handle.attributes) for lease in _lease(store, "a")],
        )

    def test_who_is_named_in_a_variant_alone_is_forgotten(self, store: Store) -> None:
        """A person whom one destination knows under a name of its own is forgotten by that name, too."""
        variant = _record(1, user_id="alias")
        store.put_many([Entry(_record(1, user_id="u-1"), ["a", "b"], variants={"a": variant})])

        _equal((1, None), (store.forget("alias"), store.latest(variant.id)))
        _equal(([], []), (_lease(store, "a"), _lease(store, "b")))

    def test_a_variant_no_longer_names_who_was_forgotten(self, store: Store) -> None:
        """What a destination got instead of the record is written anew as well, there and nowhere else."""
        call = replace(_handle(1), attributes={USER_ID: "u-1", "gen_ai.request.model": "m"})
        record = replace(_record(1), handle=call)
        variants = {name: replace(record, comment=name) for name in ("a", "b")}
        store.put_many([Entry(record, ["a", "b", "c"], variants=variants), Entry(_record(2), ["a", "b", "c"])])

        _equal(0, store.forget("u-1"))
        known = {"gen_ai.request.model": "m"}
        for name, comment in (("a", "a"), ("b", "b"), ("c", None)):
            said = [(lease.record.comment, dict(lease.record.handle.attributes)) for lease in _lease(store, name)]
            _equal([(comment, known), (None, {})], said)

    # --- judgements that wait for their key ---

    def test_parked_judgements_wait_for_their_key_oldest_first(self, store: Store) -> None:
        """A parked judgement is found under its key and kind, as it was parked, and is in an account of its own."""
        waiting = [
            Parked(_record(2, comment="c"), APP, "m-1", ("a", "b")),
            Parked(_record(1), APP, "m-1"),
            Parked(_record(3), RESPONSE, "m-1"),
            Parked(_record(4), APP, "m-2", ()),
        ]
        store.put_many(waiting)

        _equal(waiting[:2], list(store.parked(APP, "m-1")))
        _equal([waiting[2:3], waiting[3:]], [list(store.parked(RESPONSE, "m-1")), list(store.parked(APP, "m-2"))])
        _equal(({}, None), (store.status(_record(1).id), store.latest(_record(1).id)))
        _equal({PARKED: DestinationStats(recorded=4, pending=4, oldest_unix_nano=0)}, dict(store.stats()))

    def test_records_and_parked_judgements_are_accepted_all_or_none(self, store: Store) -> None:
        """When one of both cannot be put, none is there."""
        try:
            store.put_many([Parked(_record(1), APP, "m-1"), Entry(_record(2), _Unreadable())])
        except RuntimeError:
            pass
        else:
            raise AssertionError("an entry that cannot be read was put")

        _equal(([], {}), (list(store.parked(APP, "m-1")), dict(store.stats())))

    def test_what_waits_for_a_key_that_is_bound_was_overlooked(self, store: Store) -> None:
        """Named once for each key, until it is joined; what waits for any kind waits for those that are given."""
        store.bind(
            [Binding(APP, "m-1", _handle(1)), Binding(RESPONSE, "m-2", _handle(2)), Binding(APP, "m-3", _handle(3))]
        )
        store.put_many(
            [
                *[Parked(_record(number), APP, "m-1") for number in (1, 2)],
                Parked(_record(3), APP, "m-2"),
                Parked(_record(4), "any", "m-2"),
                Parked(_record(5), "any", "m-4"),
                Parked(_record(6), RESPONSE, "m-3"),
            ]
        )

        _equal({(APP, "m-1"), ("any", "m-2")}, set(store.overlooked("any", [APP, RESPONSE])))
        _equal([(APP, "m-1")], list(store.overlooked("any", [APP])))
        store.unpark(_record(1).id, Entry(_record(11), ["a"]))
        _equal([(APP, "m-1")], list(store.overlooked("any", [])))
        store.unpark(_record(2).id, Entry(_record(12), ["a"]))
        _equal([], list(store.overlooked("any", [])))

    def test_what_is_waited_for_is_told_of_many_keys_at_once(self, store: Store) -> None:
        """Each kind and key once, and only while something waits for it; none of none."""
        names = [(kind, f"m-{number}") for number in range(1_500) for kind in (APP, RESPONSE)]
        waiting = [
            *[Parked(_record(number), APP, "m-1") for number in (1, 2)],
            Parked(_record(3), RESPONSE, "m-1"),
            Parked(_record(4), APP, "m-1499"),
            Parked(_record(5), "any", "m-3"),
        ]
        store.put_many(waiting)

        _equal([(APP, "m-1"), (APP, "m-1499"), (RESPONSE, "m-1")], sorted(store.awaited(names)))
        _equal([("any", "m-3")], list(store.awaited([("any", "m-3"), ("any", "m-1")])))
        _equal([[], []], [list(store.awaited([])), list(store.awaited([(APP, "m-3")]))])
        store.unpark(_record(3).id, Entry(_record(13), ["a"]))
        _equal([(APP, "m-1"), (APP, "m-1499")], sorted(store.awaited(names)))

    def test_parking_under_the_same_id_replaces(self, store: Store) -> None:
        """Of two judgements parked under one id the newer waits, behind those that were there."""
        for record in (_record(1), _record(2), _record(1, value=False)):
            store.put_many([Parked(record, APP, "m-1")])

        _equal([_record(2), _record(1, value=False)], [parked.record for parked in store.parked(APP, "m-1")])

    def test_a_joined_judgement_is_found_by_its_parked_id(self, store: Store) -> None:
        """Once its key turned up, the parked id means the record, whose own id may be another."""
        store.put_many([Parked(_record(1), APP, "m-1")])

        _equal(True, store.unpark(_record(1).id, Entry(_record(2), ["a"])))
        _equal([], list(store.parked(APP, "m-1")))
        _equal((_record(2), {"a": "pending"}), (store.latest(_record(1).id), _states(store, 1)))
        _settle(store, _lease(store, "a")[0], "bury")
        _equal((True, {"a": "pending"}), (store.requeue(_record(1).id, "a"), _states(store, 2)))

    def test_a_parked_judgement_is_joined_once(self, store: Store) -> None:
        """The second of two that join it is told so, and puts nothing."""
        store.put_many([Parked(_record(1), APP, "m-1")])

        _equal([True, False], [store.unpark(_record(1).id, Entry(_record(1), ["a"])) for _ in range(2)])
        _equal(1, _account(store, "a").recorded)

    def test_a_judgement_may_be_parked_again_after_it_was_joined(self, store: Store) -> None:
        """A change of mind by the same key waits anew, and is the next revision when it is joined."""
        store.put_many([Parked(_record(1), APP, "m-1")])
        store.unpark(_record(1).id, Entry(_record(1), ["a"]))
        store.put_many([Parked(_record(1, value=False), APP, "m-1")])

        _equal([False], [parked.record.value for parked in store.parked(APP, "m-1")])
        _equal(True, store.unpark(_record(1).id, Entry(_record(1, value=False), ["a"])))
        _equal(_record(1, value=False, revision=1), store.latest(_record(1).id))


def _lease(store: Store, destination: str, *, limit: int = 100, by_call: bool = False) -> list[Lease]:
    """Lease what is due."""
    return list(store.lease(destination, limit=limit, duration_millis=LEASE_MILLIS, by_call=by_call))


def _refused(store: Store, entries: Sequence[Entry | Parked]) -> None:
    """Put what a full store has to refuse."""
    try:
        store.put_many(entries)
    except OutboxFullError as error:
        _equal((3, store.url), (error.limit, error.store))
    else:
        raise AssertionError("a full store took more")


def _reach(store: Store, state: State, record: FeedbackRecord) -> Lease:
    """Bring the delivery of a record at a destination of its own into a state; answer the lease that it had last."""
    ends: dict[State, Event] = {
        "pending": "retry",
        "delivered": "deliver",
        "dead": "bury",
        "skipped": "skip",
        "retracted": "retract",
    }
    store.put(record, [record.id])
    (lease,) = _lease(store, record.id)
    if state == "superseded":
        store.put(record, [record.id])
        _settle(store, lease, "retry")
    elif state in ends:
        _settle(store, lease, ends[state])
    return lease


def _state_of(store: Store, record: FeedbackRecord) -> str:
    """Tell the state of the oldest revision of a record: by the status while it is the newest, else by the account."""
    account = store.stats()[record.id]
    newest = (store.status(record.id) or {})[record.id].state
    if account.recorded == 1:
        return newest
    rest = {name: getattr(account, name) for name in ("delivered", "dead", "superseded", "retracted")}
    rest |= {"pending": account.pending, "skipped": sum(account.skipped.values())}
    rest["pending" if newest == "leased" else newest] -= 1
    ((found, _),) = [(name, count) for name, count in rest.items() if count]
    return found


def _newer(store: Store, lease: Lease, record: FeedbackRecord) -> None:
    """Put a newer revision, and ask for the older one again in both ways that there are."""
    store.put(record, [record.id])
    _settle(store, lease, "retry")
    store.requeue(record.id, record.id)


def _settling(event: Event) -> Callable[[Store, Lease, FakeClock], None]:
    return lambda store, lease, _: (_settle(store, lease, event), None)[1]


def _lease_again(store: Store, lease: Lease, clock: FakeClock) -> None:
    clock.advance(millis=LEASE_MILLIS)
    _lease(store, lease.record.id)


# How each event of the table comes about, from outside.
ARROWS: Mapping[str, Callable[[Store, Lease, FakeClock], None]] = {
    "lease": _lease_again,
    "deliver": _settling("deliver"),
    "bury": _settling("bury"),
    "skip": _settling("skip"),
    "retry": _settling("retry"),
    "supersede": lambda store, lease, _: _newer(store, lease, replace(lease.record, value=False)),
    "requeue": lambda store, lease, _: (store.requeue(lease.record.id, lease.record.id), None)[1],
}


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
    found = store.standing(_record(number, **changes), "a")
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


# What becomes of a part, by the status that its vendor answers (DESIGN, Stores, Retry). 404 is for each vendor to say.
FATES: Mapping[int, tuple[type[Result], ...]] = {
    200: (Success,),
    400: (PermanentFailure,),
    401: (PauseDestination,),
    402: (PauseDestination,),
    403: (PauseDestination,),
    408: (RetryableFailure, Unclear),
    422: (PermanentFailure,),
    429: (RetryableFailure,),
    500: (RetryableFailure, Unclear),
    502: (RetryableFailure, Unclear),
    503: (RetryableFailure, Unclear),
}


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

    Two more questions are asked where they can be answered, and skipped where not. `secret` is the key that the
    exporter is made with: it may stand in nothing that it says. `answered(status)` makes the exporter once more,
    started, with a vendor that answers every request with that status, best with the key quoted in the text, as vendors
    do:

            secret = "sk-test"

            def answered(self, status):
                return MyExporter(api_key=self.secret, transport=answer_everything_with(status))
    """

    judgements: Sequence[FeedbackRecord] = JUDGEMENTS
    secret: str | None = None

    def answered(self, status: int) -> FeedbackExporter | None:  # noqa: ARG002 (there to be overridden)
        """Make an exporter whose vendor always answers so; `None` where no vendor answers, as with a console."""
        return None

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

    # --- what a vendor answers, and what is told of it ---

    def test_each_status_has_its_fate(self, exporter: FeedbackExporter) -> None:
        """A dead letter is what concerns the item, a pause what concerns the destination; the rest is tried again."""
        parts = [part for each in self._parts(exporter) for part in each]
        for status, fates in FATES.items():
            with self._answered(status) as made:
                found = {type(result).__name__ for part in parts for result in made.export([part])}
            _equal((status, set()), (status, found - {fate.__name__ for fate in fates}))

    def test_its_key_is_told_to_nobody(self, exporter: FeedbackExporter) -> None:
        """Neither it, nor a part, nor a result, nor a line of its log has the key, whatever its vendor quotes."""
        if self.secret is None:
            raise unittest.SkipTest("set `secret` to the key that the exporter is made with")
        with _log_lines() as lines:
            said = [repr(exporter), str(exporter), repr(list(self._parts(exporter))), repr(self._export(exporter))]
            for status in (*FATES, 404):
                with self._answered(status) as made:
                    said += [repr(made), repr(self._export(made))]

        _equal([], [each for each in (*said, *lines) if self.secret in each])

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

    @contextmanager
    def _answered(self, status: int) -> Iterator[FeedbackExporter]:
        """Have an exporter whose vendor always answers so, and shut it down."""
        made = self.answered(status)
        if made is None:
            raise unittest.SkipTest("define `answered(status)` where a vendor answers with statuses of HTTP")
        try:
            yield made
        finally:
            made.shutdown()


@contextmanager
def _log_lines() -> Iterator[list[str]]:
    """Collect what is logged meanwhile, by anybody and at any level, with the exceptions that go with it."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    root, handler = logging.getLogger(), Lines()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
