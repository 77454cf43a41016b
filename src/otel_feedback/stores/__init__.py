"""The two ports of a store, `CorrelationStore` and `Outbox`, and the table of states that every outbox implements.

Everything about the states of a delivery lives here, as data; this file does not know how they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from otel_feedback._handle import FeedbackHandle
    from otel_feedback._record import DeliveryStatus, FeedbackRecord

State = Literal["pending", "leased", "delivered", "dead", "superseded", "retracted", "skipped"]

# How a lease may end; a retraction that was carried out, or had nothing to take back, ends as `retract`.
Event = Literal["deliver", "bury", "skip", "retry", "retract"]

STATES: tuple[State, ...] = ("pending", "leased", "delivered", "dead", "superseded", "retracted", "skipped")

# Every arrow there is: (from, event) -> to. "recorded" is what a record is before it has any state.
TRANSITIONS: Mapping[tuple[str, str], State] = MappingProxyType(
    {
        ("recorded", "accept"): "pending",
        ("recorded", "skip"): "skipped",
        ("pending", "lease"): "leased",
        ("pending", "supersede"): "superseded",
        ("pending", "retract"): "retracted",
        ("leased", "lease"): "leased",  # only once the lease has expired
        ("leased", "deliver"): "delivered",
        ("leased", "bury"): "dead",
        ("leased", "skip"): "skipped",
        ("leased", "retry"): "pending",
        ("leased", "supersede"): "superseded",  # a retry, after a newer judgement came
        ("leased", "retract"): "retracted",  # a retry, after it was taken back; or a retraction carried out
        ("dead", "requeue"): "pending",
        ("dead", "supersede"): "superseded",  # a requeue, after a newer judgement came
        ("dead", "retract"): "retracted",  # a requeue, after it was taken back
    }
)

# Where a record waits while no exporter is configured: a destination of its own, so that it is counted like any
# other, until `route` gives it to the real ones.
UNROUTED = "unrouted"
# Under which the judgements are counted that wait for their key: they have no delivery yet.
PARKED = "parked"

# No time that is kept lies further ahead than the longest wait there is, an hour of `Retry-After`. One that is twice as
# far was noted by a clock that has been set back since, and counts as come; up to there, the clocks of several machines
# may differ.
LONGEST_WAIT_MILLIS = 3_600_000
SET_BACK_MILLIS = 2 * LONGEST_WAIT_MILLIS
# How often a destination that was paused is tried with one record, over all workers, until `resume`.
PROBE_MILLIS = 1_000

APP, RESPONSE, CONVERSATION = "app", "response", "conversation"


@dataclass(frozen=True, slots=True)
class PartState:
    """What became of one part, and why, in the vendor's words where there are some.

    What is `unclear` is tried again. A part that is dead or skipped, but `was_unclear` before, may have arrived.
    `removed` are the earlier revisions that tries which failed have removed on their way.
    """

    state: Literal["delivered", "unclear", "dead", "skipped"]
    reason: str | None = None
    was_unclear: bool = False
    removed: tuple[int, ...] = ()

    @property
    def may_have_arrived(self) -> bool:
        """Whether the destination may have it, although it never said so."""
        return self.was_unclear or self.state == "unclear"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a destination has of a judgement in one kind of part: what this revision says of it, if it is clear.

    Where it is not, the `others` are the earlier revisions that may be there as well, or instead.
    """

    record: FeedbackRecord
    is_unclear: bool = False
    others: tuple[int, ...] = ()

    @property
    def revisions(self) -> tuple[int, ...]:
        """Every revision that may be there, the newest first."""
        return (self.record.revision, *self.others)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to deliver one record to one destination until `expires_at_unix_nano`.

    `fence` is the token that settles it: it changes with each lease, so that a late worker settles nothing. Where the
    record `retracts`, its `stands` is what `standing` answers at the time of the lease.

    `parts` are the parts already settled. `standing` is what the destination has of the revisions before, by kind of
    part. A lease is `lapsed` where the one before it ran out: its worker may have sent everything. It `is_probe` where
    the destination is paused: what comes of it decides whether that goes on.
    """

    record: FeedbackRecord
    destination: str
    sequence: int
    fence: int
    attempts: int
    accepted_at_unix_nano: int
    expires_at_unix_nano: int
    parts: Mapping[str, PartState] = field(default_factory=dict)
    standing: Mapping[str, Standing] = field(default_factory=dict)
    lapsed: bool = False
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a lease ends: an event of `TRANSITIONS`, and for `retry` when the record is due again.

    `counts` says whether it was an attempt: being held back or paused is none. What is `held` waits for nothing but its
    span, so that `release` may bring it forward. `standing` is what the destination has of the judgement from now on;
    the next revision's lease tells it.
    """

    event: Event
    parts: Mapping[str, PartState]
    reason: str | None = None
    due_unix_nano: int = 0
    counts: bool = True
    held: bool = False
    standing: Mapping[str, Standing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """A key of some kind and the call that it names."""

    kind: str
    key: str
    handle: FeedbackHandle


@dataclass(frozen=True, slots=True)
class Entry:
    """A record to be put, where it goes, and where it is skipped at once, with the reason.

    A destination that is named in `variants` gets, and keeps, that record instead: the same judgement with less in it.
    """

    record: FeedbackRecord
    destinations: Sequence[str]
    skipped: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, FeedbackRecord] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parked:
    """A judgement that waits for its key to turn up.

    The record is complete but for its handle, which stands in for the call. `to` is where it shall go, `None` for
    wherever records go when it is joined.
    """

    record: FeedbackRecord
    kind: str
    key: str
    to: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class DestinationStats:
    """The account of one destination, of everything that it ever got.

    `recorded` is the sum of the states; what is pruned or forgotten stays in it. `pending` counts leased records as
    well; `skipped` counts by reason. `retried` counts the attempts that were followed by another one.
    `oldest_unix_nano` is when the oldest pending record was accepted. `paused` is why nothing, or one record a second,
    is tried.
    """

    recorded: int = 0
    pending: int = 0
    delivered: int = 0
    dead: int = 0
    superseded: int = 0
    retracted: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    retried: int = 0
    oldest_unix_nano: int | None = None
    paused: str | None = None

    @property
    def is_conserved(self) -> bool:
        """Whether every recorded judgement is accounted for."""
        states = self.pending + self.delivered + self.dead + self.superseded + self.retracted
        return self.recorded == states + sum(self.skipped.values())


class CorrelationStore(Protocol):
    """The index from keys to calls.

    - A key is a text of some kind (`app`, `response`, `conversation`); kinds never mix.
    - A key may name several calls. All are kept; the newest by `started_at` comes first, and of two that started
      together the one bound last.
    - Binding the same call to the same key again only updates what is known of the call.
    - What `bind` returned from is visible to every process that uses the same store.
    """

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Keep several bindings at once."""
        ...

    def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
        """Answer the calls that a key names, newest first; none for an unknown key."""
        ...


class Outbox(Protocol):
    """The durable queue of judgements, one line a destination.

    - What `put` returned from survives what `durability` says.
    - A record is kept once, with one delivery for each destination, however often that is named. Each delivery walks
      `TRANSITIONS` and no other arrow.
    - Records with the same id are revisions of one judgement, in the order in which they were put. Putting one
      supersedes the pending deliveries of the older ones at the same destination; where it `retracts`, they become
      retracted. A leased delivery goes on; should it ask to be retried, it is superseded or retracted instead.
    - `lease` offers what is due, oldest first: pending deliveries, and leased ones whose lease ran out. It offers
      nothing of a judgement while an older revision of it waits or is leased at that destination, nothing of a paused
      destination, and nothing twice while a lease lasts. Each lease has a new fence.
    - Leased `by_call`, all the judgements of one span stand in one line, in the order in which they were put: for a
      destination that keeps one value for all who judge.
    - `settle` takes effect only with the fence of the newest lease, and says whether it did.
    - A time further ahead than `SET_BACK_MILLIS` counts as come: the clock has been set back since it was noted.
    - A store that has a limit refuses, with `OutboxFullError`, what would make more wait at a destination.
    """

    durability: str

    def put(
        self, record: FeedbackRecord, destinations: Sequence[str], *, skipped: Mapping[str, str] | None = None
    ) -> None:
        """Accept one record; where it is `skipped` at once, the reason is kept."""
        ...

    def put_many(self, entries: Sequence[Entry | Parked]) -> None:
        """Accept several records, all or none.

        What is parked waits for its key, in no account but that of `PARKED`; parking under the same id again replaces
        it.
        """
        ...

    def lease(self, destination: str, *, limit: int, duration_millis: int, by_call: bool = False) -> Sequence[Lease]:
        """Take what is due at one destination, at most `limit` records."""
        ...

    def settle(self, lease: Lease, settlement: Settlement) -> bool:
        """End a lease; answer whether it was still the newest."""
        ...

    def settle_many(self, endings: Sequence[tuple[Lease, Settlement]]) -> Sequence[bool]:
        """End several leases at once, as `settle` ends one."""
        ...

    def next_due(self, destination: str, *, by_call: bool = False) -> int | None:
        """Say when, in Unix nanoseconds, `lease` will offer something of a destination; `None` when nothing waits."""
        ...

    def pause(self, destination: str, *, reason: str, until_unix_nano: int) -> None:
        """Offer nothing of a destination until then, and from then on one record each `PROBE_MILLIS`, to anybody."""
        ...

    def resume(self, destination: str) -> None:
        """End a pause."""
        ...

    def release(self, destination: str) -> None:
        """Make due now what is pending at a destination and was settled as held."""
        ...

    def requeue(self, record_id: str, destination: str) -> bool:
        """Make a dead delivery pending again, its dead parts open; after a newer judgement it is superseded instead."""
        ...

    def route(self, destinations: Sequence[str], *, limit: int = 1_000) -> int:
        """Give the oldest records that wait as unrouted to these destinations; say how many, 0 when none is left.

        It keeps the judgement's order: an older revision that is pending there is superseded or retracted, as is the
        routed one where a newer went directly. To nobody, nothing is routed.
        """
        ...

    def prune(self, before_unix_nano: int, *, limit: int = 1_000) -> int:
        """Remove keys that were bound, and judgements that were put, before then; say how many, 0 when none is left.

        A judgement goes with all its revisions, and only when all of these are older and none waits or is dead. The
        accounts stay as they are.
        """
        ...

    def forget(self, user_id: str) -> int:
        """Erase what one person judged, and every key and handle that names them; say how many records it was.

        What waited is retracted in the accounts, and nothing of it can be read from the store's files afterwards.
        """
        ...

    def latest(self, record_id: str) -> FeedbackRecord | None:
        """Answer the newest record under an id."""
        ...

    def standing(self, record: FeedbackRecord, destination: str) -> FeedbackRecord | None:
        """Answer the judgement with a value, of the same span and name, that somebody else's id holds; the last put.

        As that destination was given it; what was skipped or is dead there does not count.
        """
        ...

    def destinations(self, record_id: str) -> Sequence[str]:
        """Name every destination that any revision under an id was put for."""
        ...

    def status(self, record_id: str) -> Mapping[str, DeliveryStatus] | None:
        """Answer what became of the newest record under an id, by destination; `None` for an unknown id."""
        ...

    def stats(self) -> Mapping[str, DestinationStats]:
        """Answer the account of each destination that ever got a record."""
        ...

    def parked(self, kind: str, key: str) -> Sequence[Parked]:
        """Answer the judgements that wait for a key, oldest first."""
        ...

    def awaited(self, names: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """Answer those of some kinds and keys that judgements wait for, each once."""
        ...

    def overlooked(self, any_kind: str, kinds: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Answer the kinds and keys that judgements wait for though they are bound.

        Whoever bound them was killed before it joined what waited. What waits under `any_kind` waits for any kind of
        `kinds`.
        """
        ...

    def unpark(self, parked_id: str, entry: Entry) -> bool:
        """Put a parked judgement's record; from now on its parked id means the record. False if it was done."""
        ...


class Store(CorrelationStore, Outbox, Protocol):
    """Both ports in one, with a life cycle.

    `url` names the store in messages. `close` is idempotent. A store may be used from any thread.
    """

    url: str

    def open(self) -> None:
        """Open files or connections; does nothing when it is open."""
        ...

    def close(self) -> None:
        """Close what was opened."""
        ...
