"""A store as the port describes it, in plain lists: slow, and right at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from otel_feedback._dialects import USER_ID
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import DeliveryStatus, FeedbackRecord
from otel_feedback._time import NANOS_PER_MILLI
from otel_feedback.stores import (
    PARKED,
    PROBE_MILLIS,
    SET_BACK_MILLIS,
    TRANSITIONS,
    UNROUTED,
    Binding,
    DestinationStats,
    Entry,
    Lease,
    Parked,
    PartState,
    Settlement,
    Standing,
)
from otel_feedback.testing import FakeClock


@dataclass
class Bound:
    binding: Binding
    bound_at: int


@dataclass
class Put:
    record: FeedbackRecord
    sequence: int
    put_at: int


@dataclass
class Delivery:
    record: FeedbackRecord
    sequence: int
    destination: str
    state: str
    due: int
    accepted_at: int
    reason: str | None = None
    fence: int = 0
    attempts: int = 0
    held: bool = False
    parts: Mapping[str, PartState] = field(default_factory=dict)
    standing: Mapping[str, Standing] | None = None

    @property
    def is_live(self) -> bool:
        return self.state in ("pending", "leased")

    @property
    def counted_as(self) -> tuple[str, str]:
        """The state as the accounts know it, and why where it was skipped."""
        state = "pending" if self.state == "leased" else self.state
        return state, (self.reason or "") if state == "skipped" else ""


@dataclass
class Waiting:
    parked: Parked
    record_id: str | None = None


class StoreModel:
    """Keeps everything in lists, and asks them.

    Args:
        clock: what tells the time.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.sequence = 0
        self.keys: list[Bound] = []
        self.puts: list[Put] = []
        self.deliveries: list[Delivery] = []
        self.waiting: list[Waiting] = []
        self.pauses: dict[str, tuple[int, str, int]] = {}
        self.gone: Counter[tuple[str, tuple[str, str]]] = Counter()
        self.retried: Counter[str] = Counter()

    @property
    def now(self) -> int:
        return self.clock.time_unix_nano()

    def is_ahead(self, time: int) -> bool:
        """Tell whether a time lies so far ahead that it has come."""
        return time > self.now + SET_BACK_MILLIS * NANOS_PER_MILLI

    # --- the index ---

    def bind(self, bindings: Sequence[Binding]) -> None:
        for new in bindings:
            same = [each for each in self.keys if place(each.binding) == place(new)]
            for each in same:
                each.binding, each.bound_at = new, self.now
            if not same:
                self.keys.append(Bound(new, self.now))

    def find(self, kind: str, key: str) -> list[FeedbackHandle]:
        found = [each.binding.handle for each in self.keys if (each.binding.kind, each.binding.key) == (kind, key)]
        found.reverse()  # of those that started together the last bound comes first
        return sorted(found, key=lambda handle: handle.started_at or 0, reverse=True)

    # --- put ---

    def put_many(self, entries: Sequence[Entry | Parked]) -> None:
        for each in entries:
            if isinstance(each, Entry):
                self.put(each)
            else:
                self.waiting = [other for other in self.waiting if other.parked.record.id != each.record.id]
                self.waiting.append(Waiting(each))

    def put(self, entry: Entry) -> None:
        self.sequence += 1
        revision = sum(put.record.id == entry.record.id for put in self.puts)
        record = replace(entry.record, revision=revision)
        self.puts.append(Put(record, self.sequence, self.now))
        for name in dict.fromkeys(entry.destinations):
            self.replace_pending(record, name)
            reason = entry.skipped.get(name)
            state = TRANSITIONS["recorded", "accept" if reason is None else "skip"]
            kept = replace(entry.variants.get(name, record), revision=revision)
            self.deliveries.append(Delivery(kept, self.sequence, name, state, self.now, self.now, reason))

    def replace_pending(self, record: FeedbackRecord, name: str) -> None:
        for each in self.of(record.id, name):
            if each.state == "pending":
                each.state = TRANSITIONS["pending", "retract" if record.retracts else "supersede"]

    def of(self, record_id: str, name: str) -> list[Delivery]:
        found = [each for each in self.deliveries if (each.record.id, each.destination) == (record_id, name)]
        return sorted(found, key=lambda each: each.sequence)

    def at(self, name: str) -> list[Delivery]:
        return [each for each in self.deliveries if each.destination == name]

    # --- lease and settle ---

    def first_in_line(self, name: str, *, by_call: bool) -> list[Delivery]:
        """Answer what may go once it is due: of each line the first that lives."""
        firsts: dict[object, Delivery] = {}
        for each in sorted(self.at(name), key=lambda each: each.sequence):
            if each.is_live:
                firsts.setdefault(each.record.handle.context.span_id if by_call else each.record.id, each)
        return sorted(firsts.values(), key=lambda each: (each.due, each.sequence))

    def lease(self, name: str, *, limit: int, duration_millis: int, by_call: bool = False) -> list[Lease]:
        pause = self.pauses.get(name)
        if pause is not None:
            limit = 1
            if any(self.now < time and not self.is_ahead(time) for time in (pause[0], pause[2])):
                return []
        line = self.first_in_line(name, by_call=by_call)
        due = [each for each in line if each.due <= self.now] + [each for each in line if self.is_ahead(each.due)]
        if due and pause is not None:
            self.pauses[name] = (*pause[:2], self.now + PROBE_MILLIS * NANOS_PER_MILLI)
        ends = self.now + duration_millis * NANOS_PER_MILLI
        return [self.take(each, ends, is_probe=pause is not None) for each in due[:limit]]

    def take(self, each: Delivery, ends: int, *, is_probe: bool) -> Lease:
        lapsed = each.state == "leased"
        each.state, each.due, each.fence = "leased", ends, each.fence + 1
        told = [older.standing for older in self.of(each.record.id, each.destination) if older.sequence < each.sequence]
        told = [standing for standing in told if standing is not None]
        record = each.record
        return Lease(
            record=replace(record, stands=self.standing(record, each.destination)) if record.retracts else record,
            destination=each.destination,
            sequence=each.sequence,
            fence=each.fence,
            attempts=each.attempts,
            accepted_at_unix_nano=each.accepted_at,
            expires_at_unix_nano=ends,
            parts=each.parts,
            standing=told[-1] if told else {},
            lapsed=lapsed,
            is_probe=is_probe,
        )

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        for each in self.at(lease.destination):
            if (each.sequence, each.fence, each.state) == (lease.sequence, lease.fence, "leased"):
                self.end(each, settlement)
                return True
        return False

    def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> list[bool]:
        return [self.settle(lease, settlement) for lease, settlement in endings]

    def end(self, each: Delivery, how: Settlement) -> None:
        event = self.after_newer(each) or how.event if how.event == "retry" else how.event
        self.retried[each.destination] += event == "retry" and how.counts
        each.state = TRANSITIONS["leased", event]
        each.due, each.reason, each.parts, each.held = how.due_unix_nano, how.reason, how.parts, how.held
        each.attempts += how.counts
        each.standing = how.standing

    def after_newer(self, each: Delivery) -> str | None:
        """Name what happens to what would wait again, where a newer revision came."""
        newest = self.of(each.record.id, each.destination)[-1]
        if newest.sequence <= each.sequence:
            return None
        return "retract" if newest.record.retracts else "supersede"

    def next_due(self, name: str, *, by_call: bool = False) -> int | None:
        line = self.first_in_line(name, by_call=by_call)
        times = [self.now if self.is_ahead(each.due) else each.due for each in line]
        past = [each.due for each in line if each.due <= self.now]
        if not times:
            return None
        until, _, probe = self.pauses.get(name, (0, "", 0))
        return max(min(past or times), *(0 if self.is_ahead(time) else time for time in (until, probe)))

    def pause(self, name: str, *, reason: str, until_unix_nano: int) -> None:
        self.pauses[name] = (until_unix_nano, reason, 0)

    def resume(self, name: str) -> None:
        self.pauses.pop(name, None)

    def release(self, name: str) -> None:
        for each in self.at(name):
            if each.held and each.state == "pending":
                each.due, each.held = self.now, False

    def requeue(self, record_id: str, name: str) -> bool:
        dead = [each for each in self.of(self.joined(record_id), name) if each.state == "dead"]
        for each in dead[-1:]:
            each.state = TRANSITIONS["dead", self.after_newer(each) or "requeue"]
            each.due = each.accepted_at = self.now
            each.attempts = 0
            each.parts = {
                kind: PartState("unclear", part.reason) if part.state == "dead" else part
                for kind, part in each.parts.items()
                if part.state != "dead" or part.was_unclear
            }
        return bool(dead)

    def route(self, names: Sequence[str], *, limit: int = 1_000) -> int:
        waiting = [each for each in self.at(UNROUTED) if each.state == "pending" and names]
        waiting = sorted(waiting, key=lambda each: each.sequence)[:limit]
        for each in waiting:
            self.deliveries.remove(each)
            for name in dict.fromkeys(names):
                self.route_to(replace(each, destination=name, due=each.accepted_at))
        return len(waiting)

    def route_to(self, new: Delivery) -> None:
        if any(each.sequence == new.sequence for each in self.at(new.destination)):
            return
        self.deliveries.append(new)
        event = self.after_newer(new)
        if event is not None:
            new.state = TRANSITIONS["pending", event]
            return
        self.deliveries.remove(new)
        self.replace_pending(new.record, new.destination)
        self.deliveries.append(new)

    # --- erase ---

    def prune(self, before: int, *, limit: int = 1_000) -> int:
        old_keys = sorted((each for each in self.keys if each.bound_at < before), key=lambda each: each.bound_at)
        self.keys = [each for each in self.keys if each not in old_keys[:limit]]
        firsts = [put for put in self.puts if put.record.revision == 0 and put.put_at < before]
        old = [
            put.record.id for put in sorted(firsts, key=lambda put: put.put_at) if self.is_old(put.record.id, before)
        ]
        for record_id in old[:limit]:
            self.remove(record_id)
        return len(old_keys[:limit]) + len(old[:limit])

    def is_old(self, record_id: str, before: int) -> bool:
        youngest = max(put.put_at for put in self.puts if put.record.id == record_id)
        states = {each.state for each in self.deliveries if each.record.id == record_id}
        return youngest < before and not states & {"pending", "leased", "dead"}

    def remove(self, record_id: str) -> None:
        for each in self.deliveries:
            if each.record.id == record_id:
                self.gone[each.destination, each.counted_as] += 1
        self.deliveries = [each for each in self.deliveries if each.record.id != record_id]
        self.puts = [put for put in self.puts if put.record.id != record_id]
        self.waiting = [each for each in self.waiting if each.record_id != record_id]

    def forget(self, user_id: str) -> int:
        theirs = {put.record.id for put in self.puts if put.record.user_id == user_id}
        theirs |= {each.record.id for each in self.deliveries if each.record.user_id == user_id}
        erased = sum(put.record.id in theirs for put in self.puts)
        for each in self.deliveries:
            if each.record.id in theirs and each.is_live:
                each.state = "retracted"
        for record_id in theirs:
            self.remove(record_id)
        mine = [each for each in self.waiting if each.parked.record.user_id == user_id]
        self.waiting = [each for each in self.waiting if each not in mine]
        self.keys = [each for each in self.keys if each.binding.handle.attributes.get(USER_ID) != user_id]
        for put in self.puts:
            put.record = without(put.record, user_id)
        for each in self.deliveries:
            each.record = without(each.record, user_id)
            each.standing = each.standing and {
                kind: replace(standing, record=without(standing.record, user_id))
                for kind, standing in each.standing.items()
            }
        return erased + sum(each.record_id is None for each in mine)

    # --- what is known ---

    def joined(self, record_id: str) -> str:
        found = [each.record_id for each in self.waiting if each.parked.record.id == record_id]
        return (found[0] if found else None) or record_id

    def latest(self, record_id: str) -> FeedbackRecord | None:
        found = [put.record for put in self.puts if put.record.id == self.joined(record_id)]
        return found[-1] if found else None

    def standing(self, record: FeedbackRecord, name: str) -> FeedbackRecord | None:
        newest: dict[str, Delivery] = {}
        for each in sorted(self.at(name), key=lambda each: each.sequence):
            if each.state not in ("skipped", "dead"):
                newest[each.record.id] = each
        others = [each for each in newest.values() if each.record.id != record.id]
        about = [each for each in others if subject(each.record) == subject(record) and each.record.value is not None]
        return max(about, key=lambda each: each.sequence).record if about else None

    def destinations(self, record_id: str) -> list[str]:
        return sorted({each.destination for each in self.deliveries if each.record.id == self.joined(record_id)})

    def status(self, record_id: str) -> dict[str, DeliveryStatus] | None:
        newest = self.latest(record_id)
        if newest is None:
            return {} if any(each.parked.record.id == record_id for each in self.waiting) else None
        return {
            each.destination: DeliveryStatus(each.state, each.reason, each.attempts)
            for each in self.deliveries
            if (each.record.id, each.record.revision) == (newest.id, newest.revision)
        }

    def parked(self, kind: str, key: str) -> list[Parked]:
        return [each for each in self.still_waiting() if (each.kind, each.key) == (kind, key)]

    def awaited(self, names: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        return {(each.kind, each.key) for each in self.still_waiting()} & set(names)

    def overlooked(self, any_kind: str, kinds: Sequence[str]) -> set[tuple[str, str]]:
        return {
            (each.kind, each.key)
            for each in self.still_waiting()
            if any(self.find(kind, each.key) for kind in [each.kind, *(kinds if each.kind == any_kind else ())])
        }

    def still_waiting(self) -> Iterator[Parked]:
        return (each.parked for each in self.waiting if each.record_id is None)

    def unpark(self, parked_id: str, entry: Entry) -> bool:
        for each in self.waiting:
            if each.parked.record.id == parked_id and each.record_id is None:
                each.record_id = entry.record.id
                self.put(entry)
                return True
        return False

    def stats(self) -> dict[str, DestinationStats]:
        counts = Counter({**self.gone})
        counts.update((each.destination, each.counted_as) for each in self.deliveries)
        accounts = {name: self.account(name, counts) for name in {name for name, _ in counts}}
        if waiting := list(self.still_waiting()):
            oldest = min(each.record.recorded_at_unix_nano for each in waiting)
            accounts[PARKED] = DestinationStats(len(waiting), len(waiting), oldest_unix_nano=oldest)
        return accounts

    def account(self, name: str, counts: Counter[tuple[str, tuple[str, str]]]) -> DestinationStats:
        here = {counted_as: count for (where, counted_as), count in counts.items() if where == name}
        states = {state: count for (state, _), count in here.items() if state != "skipped"}
        return DestinationStats(
            recorded=sum(here.values()),
            **states,
            skipped={reason: count for (state, reason), count in here.items() if state == "skipped"},
            retried=self.retried[name],
            oldest_unix_nano=min((each.accepted_at for each in self.at(name) if each.is_live), default=None),
            paused=self.pauses[name][1] if name in self.pauses else None,
        )


def place(binding: Binding) -> tuple[object, ...]:
    return binding.kind, binding.key, binding.handle.trace_id, binding.handle.span_id


def subject(record: FeedbackRecord) -> tuple[object, ...]:
    return record.handle.trace_id, record.handle.span_id, record.name


def without(record: FeedbackRecord, user_id: str) -> FeedbackRecord:
    """Take a person's name out of the handle of somebody else's record."""
    attributes = {
        name: value for name, value in record.handle.attributes.items() if (name, value) != (USER_ID, user_id)
    }
    return replace(record, handle=replace(record.handle, attributes=attributes))
