"""The store that lives in this process's memory and survives nothing: for tests, and for apps that accept loss."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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

    @property
    def waits(self) -> bool:
        """Whether it may be offered again."""
        return self.state in ("pending", "leased")


class MemoryStore:
    """The index and the outbox in dictionaries under one lock.

    Args:
        clock: what tells the time.
    """

    url = "memory:"
    durability = "memory"

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._keys: dict[tuple[str, str], dict[tuple[int, int], FeedbackHandle]] = {}
        self._records: dict[str, list[FeedbackRecord]] = {}
        self._deliveries: list[_Delivery] = []
        self._pauses: dict[str, tuple[int, str]] = {}
        self._parked: dict[str, Parked] = {}
        self._joined: dict[str, str] = {}

    def __repr__(self) -> str:
        """Say what it is."""
        return "<MemoryStore>"

    def open(self) -> None:
        """Do nothing: memory is open."""

    def close(self) -> None:
        """Do nothing: what is in memory goes with the process."""

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
        """Accept several records."""
        with self._lock:
            for entry in entries:
                self._put(entry)

    def _put(self, entry: Entry) -> None:
        now = self._clock.time_unix_nano()
        revisions = self._records.setdefault(entry.record.id, [])
        record = replace(entry.record, revision=len(revisions))
        revisions.append(record)
        replaced = TRANSITIONS["pending", "retract" if record.retracts else "supersede"]
        sequence = len(self._deliveries)
        for destination in entry.destinations:
            for older in self._of(record.id, destination) if record.revision else ():
                older.state = replaced if older.state == "pending" else older.state
            reason = entry.skipped.get(destination)
            state = TRANSITIONS["recorded", "accept" if reason is None else "skip"]
            self._deliveries.append(_Delivery(record, sequence, destination, state, now, now, reason))

    def lease(self, destination: str, *, limit: int, duration_millis: int) -> Sequence[Lease]:
        """Take what is due at one destination."""
        now = self._clock.time_unix_nano()
        with self._lock:
            if self._pause(destination) is not None:
                return []
            due = sorted(
                (delivery for delivery in self._at(destination) if delivery.waits and delivery.due <= now),
                key=lambda delivery: (delivery.due, delivery.sequence),
            )
            # What may go is decided before anything is taken, so that of one judgement two revisions never go at once.
            free = [delivery for delivery in due if not any(older.state == "leased" for older in self._older(delivery))]
            return [self._lease(delivery, now + duration_millis * NANOS_PER_MILLI) for delivery in free[:limit]]

    def _lease(self, delivery: _Delivery, expires_at: int) -> Lease:
        delivery.state, delivery.due = TRANSITIONS[delivery.state, "lease"], expires_at
        delivery.fence += 1
        return Lease(
            record=delivery.record,
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
            delivery = next(delivery for delivery in self._at(lease.destination) if delivery.sequence == lease.sequence)
            if delivery.fence != lease.fence or delivery.state != "leased":
                return False
            event: str = settlement.event
            if event == "retry":
                event = self._event_after_newer(delivery) or event
            delivery.state = TRANSITIONS["leased", event]
            delivery.due = settlement.due_unix_nano
            delivery.attempts += settlement.counts
            delivery.reason = settlement.reason
            delivery.parts = dict(settlement.parts)
            return True

    def next_due(self, destination: str) -> int | None:
        """Say when something will be due at a destination."""
        with self._lock:
            due = min((delivery.due for delivery in self._at(destination) if delivery.waits), default=None)
            pause = self._pause(destination)
            return due if due is None or pause is None else max(due, pause[0])

    def pause(self, destination: str, *, reason: str, until_unix_nano: int) -> None:
        """Offer nothing of a destination until then."""
        with self._lock:
            self._pauses[destination] = (until_unix_nano, reason)

    def resume(self, destination: str) -> None:
        """End a pause."""
        with self._lock:
            self._pauses.pop(destination, None)

    def requeue(self, record_id: str, destination: str) -> bool:
        """Make a dead delivery pending again, or superseded where a newer judgement came since."""
        with self._lock:
            dead = [delivery for delivery in self._of(record_id, destination) if delivery.state == "dead"]
            for delivery in dead[-1:]:
                event = self._event_after_newer(delivery) or "requeue"
                delivery.state = TRANSITIONS["dead", event]
                delivery.due = delivery.accepted_at = self._clock.time_unix_nano()
                delivery.attempts = 0
            return bool(dead)

    def route(self, destinations: Sequence[str]) -> int:
        """Give the records that wait as unrouted to these destinations."""
        with self._lock:
            waiting = [delivery for delivery in self._at(UNROUTED) if delivery.state == "pending"]
            for delivery in waiting:
                self._deliveries.remove(delivery)
                self._deliveries.extend(
                    replace(delivery, destination=destination, due=delivery.accepted_at) for destination in destinations
                )
            return len(waiting)

    def latest(self, record_id: str) -> FeedbackRecord | None:
        """Answer the newest record under an id."""
        with self._lock:
            revisions = self._records.get(self._joined.get(record_id, record_id))
            return revisions[-1] if revisions else None

    def standing(self, record: FeedbackRecord) -> FeedbackRecord | None:
        """Answer the newest judgement of the same span and name that somebody else's id holds."""
        with self._lock:
            others = [revisions[-1] for key, revisions in self._records.items() if key != record.id]
            about = (record.handle.context.trace_id, record.handle.context.span_id, record.name)
            return max(
                (
                    other
                    for other in others
                    if (other.handle.context.trace_id, other.handle.context.span_id, other.name) == about
                    and not other.retracts
                ),
                key=lambda other: other.recorded_at_unix_nano,
                default=None,
            )

    def status(self, record_id: str) -> Mapping[str, DeliveryStatus] | None:
        """Answer what became of the newest record under an id, by destination."""
        with self._lock:
            newest = self.latest(record_id)
            if newest is None:
                return {} if record_id in self._parked else None
            return {
                delivery.destination: DeliveryStatus(delivery.state, delivery.reason, delivery.attempts)
                for delivery in self._deliveries
                if (delivery.record.id, delivery.record.revision) == (newest.id, newest.revision)
            }

    def stats(self) -> Mapping[str, DestinationStats]:
        """Answer the account of each destination that ever got a record."""
        with self._lock:
            names = dict.fromkeys(delivery.destination for delivery in self._deliveries)
            return {name: self._account(name) for name in names}

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
            self._joined.pop(parked.record.id, None)
            self._parked.pop(parked.record.id, None)
            self._parked[parked.record.id] = parked

    def parked(self, kind: str, key: str) -> Sequence[Parked]:
        """Answer the judgements that wait for a key, oldest first."""
        with self._lock:
            return [
                parked
                for parked_id, parked in self._parked.items()
                if (parked.kind, parked.key) == (kind, key) and parked_id not in self._joined
            ]

    def unpark(self, parked_id: str, entry: Entry) -> bool:
        """Put a parked judgement's record; from now on its parked id means the record."""
        with self._lock:
            if parked_id not in self._parked or parked_id in self._joined:
                return False
            self._joined[parked_id] = entry.record.id
            self._put(entry)
            return True

    # --- helpers, under the lock ---

    def _at(self, destination: str) -> list[_Delivery]:
        return [delivery for delivery in self._deliveries if delivery.destination == destination]

    def _of(self, record_id: str, destination: str) -> list[_Delivery]:
        return [delivery for delivery in self._at(destination) if delivery.record.id == record_id]

    def _older(self, delivery: _Delivery) -> list[_Delivery]:
        if delivery.record.revision == 0:
            return []
        same = self._of(delivery.record.id, delivery.destination)
        return [other for other in same if other.record.revision < delivery.record.revision]

    def _event_after_newer(self, delivery: _Delivery) -> str | None:
        """Name what happens to a delivery that would wait again, when a newer revision came."""
        same = self._of(delivery.record.id, delivery.destination)
        newer = [other for other in same if other.record.revision > delivery.record.revision]
        if not newer:
            return None
        return "retract" if newer[-1].record.retracts else "supersede"

    def _pause(self, destination: str) -> tuple[int, str] | None:
        pause = self._pauses.get(destination)
        return pause if pause is not None and pause[0] > self._clock.time_unix_nano() else None
