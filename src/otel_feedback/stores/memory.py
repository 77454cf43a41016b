"""The store that lives in this process's memory and survives nothing: for tests, and for apps that accept loss."""

from __future__ import annotations

import heapq
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import DeliveryStatus, FeedbackRecord
from otel_feedback._time import NANOS_PER_MILLI, Clock, SystemClock
from otel_feedback.stores import (
    TRANSITIONS,
    UNROUTED,
    Binding,
    DestinationStats,
    Entry,
    Lease,
    Parked,
    PartState,
    Revision,
    Settlement,
)


@dataclass(slots=True)
class _Delivery:
    """One record's way to one destination."""

    record: FeedbackRecord
    sequence: int
    destination: str
    state: str
    due: int
    accepted_at: int
    reason: str | None = None
    fence: int = 0
    attempts: int = 0
    parts: Mapping[str, PartState] = field(default_factory=dict)
    held: bool = False

    @property
    def waits(self) -> bool:
        """Whether it may be offered again."""
        return self.state in ("pending", "leased")


class _Outbox:
    """What is in the outbox, indexed for each question that is asked of it."""

    def __init__(self) -> None:
        self.sequences = count()
        self.records: dict[str, list[FeedbackRecord]] = {}
        # The ids of the judgements of one span under one name, the one that was put last at the end.
        self.ids_by_call: dict[tuple[int, int, str], dict[str, None]] = {}
        self.deliveries: dict[tuple[str, int], _Delivery] = {}
        # By destination and id, in the order in which they were put.
        self.revisions: dict[tuple[str, str], list[_Delivery]] = {}
        # By destination, a heap of (due, sequence). An entry counts only while its delivery still waits for that time;
        # changing a delivery adds an entry and leaves the old one to be met and dropped.
        self.due: dict[str, list[tuple[int, int]]] = {}
        self.parked: dict[str, Parked] = {}
        self.joined: dict[str, str] = {}


class MemoryStore:
    """The index and the outbox in dictionaries under one lock.

    A forked child keeps the index and starts with an empty outbox: what was recorded before is its parent's to deliver.

    Args:
        clock: what tells the time.
    """

    url = "memory:"
    durability = "memory"

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._keys: dict[tuple[str, str], dict[tuple[int, int], FeedbackHandle]] = {}
        self._outbox = _Outbox()
        self._pauses: dict[str, tuple[int, str]] = {}
        _STORES.add(self)

    def __repr__(self) -> str:
        """Say what it is."""
        return "<MemoryStore>"

    def open(self) -> None:
        """Do nothing: memory is open."""

    def close(self) -> None:
        """Do nothing: what is in memory goes with the process."""

    def _leave_parent(self) -> None:
        """In a forked child, give up the parent's outbox, and its lock, which one of its threads may have held."""
        self._lock, self._outbox = threading.RLock(), _Outbox()

    # --- the index ---

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Keep several bindings at once."""
        with self._lock:
            for binding in bindings:
                calls = self._keys.setdefault((binding.kind, binding.key), {})
                calls[binding.handle.context.trace_id, binding.handle.context.span_id] = binding.handle

    def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
        """Answer the calls that a key names, newest first."""
        with self._lock:
            bound_last_first = reversed(self._keys.get((kind, key), {}).values())
            return sorted(bound_last_first, key=lambda handle: handle.started_at or 0, reverse=True)

    # --- the outbox ---

    def put(
        self, record: FeedbackRecord, destinations: Sequence[str], *, skipped: Mapping[str, str] | None = None
    ) -> None:
        """Accept one record."""
        self.put_many([Entry(record, destinations, skipped or {})])

    def put_many(self, entries: Sequence[Entry]) -> None:
        """Accept several records, all or none."""
        # Read completely before anything is kept: an entry that cannot be read leaves nothing behind.
        read = [_read(entry) for entry in entries]
        with self._lock:
            for entry in read:
                self._put(entry)

    def _put(self, entry: Entry) -> None:
        now = self._clock.time_unix_nano()
        revisions = self._outbox.records.setdefault(entry.record.id, [])
        record = replace(entry.record, revision=len(revisions))
        revisions.append(record)
        ids = self._outbox.ids_by_call.setdefault(_call_and_name(record), {})
        ids.pop(record.id, None)
        ids[record.id] = None
        sequence = next(self._outbox.sequences)
        for destination in entry.destinations:
            self._replace_pending(record, destination)
            reason = entry.skipped.get(destination)
            state = TRANSITIONS["recorded", "accept" if reason is None else "skip"]
            self._add(_Delivery(record, sequence, destination, state, now, now, reason))

    def lease(self, destination: str, *, limit: int, duration_millis: int) -> Sequence[Lease]:
        """Take what is due at one destination."""
        now = self._clock.time_unix_nano()
        with self._lock:
            if self._pause(destination) is not None:
                return []
            # What may go is decided before anything is taken: a lease of no length would be due again at once.
            free: dict[int, _Delivery] = {}
            while len(free) < limit and (due := self._next(destination)) is not None and due <= now:
                _, sequence = heapq.heappop(self._outbox.due[destination])
                free[sequence] = self._outbox.deliveries[destination, sequence]
            return [self._lease(delivery, now + duration_millis * NANOS_PER_MILLI) for delivery in free.values()]

    def _lease(self, delivery: _Delivery, expires_at: int) -> Lease:
        delivery.state, delivery.due = TRANSITIONS[delivery.state, "lease"], expires_at
        delivery.fence += 1
        self._note_due(delivery)
        record = delivery.record
        return Lease(
            record=replace(record, stands=self.standing(record)) if record.retracts else record,
            destination=delivery.destination,
            sequence=delivery.sequence,
            fence=delivery.fence,
            attempts=delivery.attempts,
            accepted_at_unix_nano=delivery.accepted_at,
            expires_at_unix_nano=expires_at,
            parts=delivery.parts,
            earlier=[Revision(older.record, older.parts) for older in self._older(delivery)],
        )

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        """End a lease; answer whether it was still the newest."""
        with self._lock:
            delivery = self._outbox.deliveries.get((lease.destination, lease.sequence))
            if delivery is None or delivery.fence != lease.fence or delivery.state != "leased":
                return False
            event: str = settlement.event
            if event == "retry":
                event = self._event_after_newer(delivery) or event
            delivery.state = TRANSITIONS["leased", event]
            delivery.due = settlement.due_unix_nano
            delivery.attempts += settlement.counts
            delivery.reason = settlement.reason
            delivery.parts = dict(settlement.parts)
            delivery.held = settlement.held
            # The newer revisions as well, which could not go before it.
            for waiting in self._of(lease.record.id, lease.destination):
                self._note_due(waiting)
            return True

    def next_due(self, destination: str) -> int | None:
        """Say when something will be due at a destination."""
        with self._lock:
            due, pause = self._next(destination), self._pause(destination)
            return due if due is None or pause is None else max(due, pause[0])

    def pause(self, destination: str, *, reason: str, until_unix_nano: int) -> None:
        """Offer nothing of a destination until then."""
        with self._lock:
            self._pauses[destination] = (until_unix_nano, reason)

    def resume(self, destination: str) -> None:
        """End a pause."""
        with self._lock:
            self._pauses.pop(destination, None)

    def release(self, destination: str) -> None:
        """Make due now what was settled as held."""
        now = self._clock.time_unix_nano()
        with self._lock:
            for delivery in self._outbox.deliveries.values():
                if delivery.held and delivery.destination == destination and delivery.state == "pending":
                    delivery.due, delivery.held = now, False
                    self._note_due(delivery)

    def requeue(self, record_id: str, destination: str) -> bool:
        """Make a dead delivery pending again, or superseded where a newer judgement came since."""
        with self._lock:
            same = self._of(self._joined_id(record_id), destination)
            dead = [delivery for delivery in same if delivery.state == "dead"]
            for delivery in dead[-1:]:
                event = self._event_after_newer(delivery) or "requeue"
                delivery.state = TRANSITIONS["dead", event]
                delivery.due = delivery.accepted_at = self._clock.time_unix_nano()
                delivery.attempts = 0
                delivery.parts = {kind: part for kind, part in delivery.parts.items() if part.state != "dead"}
                self._note_due(delivery)
            return bool(dead)

    def route(self, destinations: Sequence[str]) -> int:
        """Give the records that wait as unrouted to these destinations."""
        given = dict.fromkeys(destinations)
        if not given:
            return 0
        with self._lock:
            waiting = [delivery for delivery in self._at(UNROUTED) if delivery.state == "pending"]
            for delivery in waiting:
                self._remove(delivery)
                for destination in given:
                    self._route(replace(delivery, destination=destination, due=delivery.accepted_at))
            return len(waiting)

    def _route(self, delivery: _Delivery) -> None:
        """Let a record that waited go to a destination that it does not go to already, in its judgement's order."""
        if (delivery.destination, delivery.sequence) in self._outbox.deliveries:
            return
        event = self._event_after_newer(delivery)
        if event is None:  # then whatever is pending there is older
            self._replace_pending(delivery.record, delivery.destination)
        else:
            delivery.state = TRANSITIONS["pending", event]
        self._add(delivery)

    def latest(self, record_id: str) -> FeedbackRecord | None:
        """Answer the newest record under an id."""
        with self._lock:
            revisions = self._outbox.records.get(self._joined_id(record_id))
            return revisions[-1] if revisions else None

    def standing(self, record: FeedbackRecord) -> FeedbackRecord | None:
        """Answer the newest judgement with a value of the same span and name that somebody else's id holds."""
        about = _call_and_name(record)
        with self._lock:
            newest = (self._outbox.records[each][-1] for each in reversed(self._outbox.ids_by_call.get(about, {})))
            return next(
                (
                    other
                    for other in newest
                    if other.id != record.id and other.value is not None and _call_and_name(other) == about
                ),
                None,
            )

    def destinations(self, record_id: str) -> Sequence[str]:
        """Name every destination that any revision under an id was put for."""
        with self._lock:
            return [name for name in self._outbox.due if self._of(self._joined_id(record_id), name)]

    def status(self, record_id: str) -> Mapping[str, DeliveryStatus] | None:
        """Answer what became of the newest record under an id, by destination."""
        with self._lock:
            newest = self.latest(record_id)
            if newest is None:
                return {} if record_id in self._outbox.parked else None
            return {
                destination: DeliveryStatus(delivery.state, delivery.reason, delivery.attempts)
                for destination in self._outbox.due
                for delivery in self._of(newest.id, destination)[-1:]
                if delivery.record.revision == newest.revision
            }

    def stats(self) -> Mapping[str, DestinationStats]:
        """Answer the account of each destination that ever got a record."""
        with self._lock:
            return {name: self._account(name) for name in self._outbox.due if self._at(name)}

    def _account(self, destination: str) -> DestinationStats:
        deliveries = self._at(destination)
        states = [delivery.state for delivery in deliveries]
        reasons = [delivery.reason or "" for delivery in deliveries if delivery.state == "skipped"]
        pause = self._pause(destination)
        return DestinationStats(
            recorded=len(deliveries),
            pending=states.count("pending") + states.count("leased"),
            delivered=states.count("delivered"),
            dead=states.count("dead"),
            superseded=states.count("superseded"),
            retracted=states.count("retracted"),
            skipped={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            oldest_unix_nano=min((delivery.accepted_at for delivery in deliveries if delivery.waits), default=None),
            paused=pause and pause[1],
        )

    # --- judgements that wait for their key ---

    def park(self, parked: Parked) -> None:
        """Keep a judgement whose key is not known yet."""
        with self._lock:
            self._outbox.joined.pop(parked.record.id, None)
            self._outbox.parked.pop(parked.record.id, None)
            self._outbox.parked[parked.record.id] = parked

    def parked(self, kind: str, key: str) -> Sequence[Parked]:
        """Answer the judgements that wait for a key, oldest first."""
        with self._lock:
            return [
                parked
                for parked_id, parked in self._outbox.parked.items()
                if (parked.kind, parked.key) == (kind, key) and parked_id not in self._outbox.joined
            ]

    def unpark(self, parked_id: str, entry: Entry) -> bool:
        """Put a parked judgement's record; from now on its parked id means the record."""
        read = _read(entry)
        with self._lock:
            if parked_id not in self._outbox.parked or parked_id in self._outbox.joined:
                return False
            self._outbox.joined[parked_id] = read.record.id
            self._put(read)
            return True

    # --- helpers, under the lock ---

    def _replace_pending(self, record: FeedbackRecord, destination: str) -> None:
        """Take what is pending of a judgement out of the way of a newer revision."""
        for older in self._of(record.id, destination):
            if older.state == "pending":
                older.state = TRANSITIONS["pending", "retract" if record.retracts else "supersede"]

    def _add(self, delivery: _Delivery) -> None:
        self._outbox.deliveries[delivery.destination, delivery.sequence] = delivery
        same = self._outbox.revisions.setdefault((delivery.destination, delivery.record.id), [])
        same.append(delivery)
        same.sort(key=lambda other: other.sequence)  # one that was routed comes after newer ones
        self._outbox.due.setdefault(delivery.destination, [])
        self._note_due(delivery)

    def _remove(self, delivery: _Delivery) -> None:
        del self._outbox.deliveries[delivery.destination, delivery.sequence]
        self._of(delivery.record.id, delivery.destination).remove(delivery)

    def _note_due(self, delivery: _Delivery) -> None:
        """Enter a delivery that waits into the heap of what is due."""
        if delivery.waits:
            heapq.heappush(self._outbox.due[delivery.destination], (delivery.due, delivery.sequence))

    def _next(self, destination: str) -> int | None:
        """Bring what is due next to the top of the heap, dropping what may not go; answer when it is due."""
        heap = self._outbox.due.get(destination, [])
        while heap:
            due, sequence = heap[0]
            delivery = self._outbox.deliveries.get((destination, sequence))
            if delivery is not None and delivery.waits and delivery.due == due and not self._is_held_back(delivery):
                return due
            heapq.heappop(heap)
        return None

    def _at(self, destination: str) -> list[_Delivery]:
        return [delivery for (where, _), delivery in self._outbox.deliveries.items() if where == destination]

    def _of(self, record_id: str, destination: str) -> list[_Delivery]:
        return self._outbox.revisions.get((destination, record_id), [])

    def _older(self, delivery: _Delivery) -> Iterator[_Delivery]:
        same = self._of(delivery.record.id, delivery.destination)
        return (other for other in same if other.sequence < delivery.sequence)

    def _is_held_back(self, delivery: _Delivery) -> bool:
        """Tell whether an older revision is leased, which must end first."""
        return any(older.state == "leased" for older in self._older(delivery))

    def _event_after_newer(self, delivery: _Delivery) -> str | None:
        """Name what happens to a delivery that would wait again, when a newer revision came."""
        newest = self._of(delivery.record.id, delivery.destination)[-1:]
        if not newest or newest[0].sequence <= delivery.sequence:
            return None
        return "retract" if newest[0].record.retracts else "supersede"

    def _joined_id(self, record_id: str) -> str:
        """Follow a parked judgement's id to its record."""
        return self._outbox.joined.get(record_id, record_id)

    def _pause(self, destination: str) -> tuple[int, str] | None:
        pause = self._pauses.get(destination)
        return pause if pause is not None and pause[0] > self._clock.time_unix_nano() else None


def _read(entry: Entry) -> Entry:
    """Take an entry's own copy of what is said, each destination once."""
    return Entry(entry.record, _once(entry.destinations), dict(entry.skipped))


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _call_and_name(record: FeedbackRecord) -> tuple[int, int, str]:
    """Say what a judgement is about: the span, and the name."""
    return record.handle.context.trace_id, record.handle.context.span_id, record.name


_STORES: weakref.WeakSet[MemoryStore] = weakref.WeakSet()


def _leave_parent() -> None:
    """In a forked child, before anything else runs there."""
    for store in _STORES:
        store._leave_parent()  # noqa: SLF001 (the fork hooks are one for the process, and part of the class)


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows forks nothing)
    os.register_at_fork(after_in_child=_leave_parent)
