from dataclasses import replace
from typing import Any, get_args

import pytest
from opentelemetry.trace import SpanContext

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback._retry import RetryPolicy
from otel_feedback.stores import (
    APP,
    CONVERSATION,
    LONGEST_WAIT_MILLIS,
    PARKED,
    PROBE_MILLIS,
    RESPONSE,
    SET_BACK_MILLIS,
    STATES,
    TRANSITIONS,
    UNROUTED,
    DestinationStats,
    Entry,
    Event,
    Lease,
    Parked,
    PartState,
    Settlement,
    Standing,
    State,
)

WAITING = {"pending", "leased"}
RECORD = FeedbackRecord(id="r-1", handle=FeedbackHandle(SpanContext(1, 1, is_remote=True)), name="rating", value=True)


class TestTransitions:
    def test_the_states_are_those_of_the_type(self) -> None:
        """
        What is iterated over and what is annotated name the same states.
        """
        assert get_args(State) == STATES

    def test_every_arrow_begins_and_ends_at_a_state(self) -> None:
        """
        Only acceptance begins at a record that has no state yet.
        """
        assert {before for before, _ in TRANSITIONS} <= {*STATES, "recorded"}
        assert set(TRANSITIONS.values()) <= set(STATES)

    def test_every_way_to_end_a_lease_is_an_arrow(self) -> None:
        """
        A settlement can say nothing that a leased delivery has no arrow for.
        """
        assert {("leased", event) for event in get_args(Event)} <= set(TRANSITIONS)

    def test_every_event_is_one_that_something_does(self) -> None:
        """
        A put accepts or skips, a lease leases, a settlement ends it; what comes later supersedes, retracts or requeues.
        """
        done = {"accept", "skip", "lease", *get_args(Event), "supersede", "retract", "requeue"}

        assert done == {event for _, event in TRANSITIONS}

    def test_a_lease_that_ran_out_is_followed_by_another(self) -> None:
        """
        What is leased may be leased: the only arrow that ends where it begins.
        """
        assert [("leased", "lease")] == [arrow for arrow, after in TRANSITIONS.items() if arrow[0] == after]

    def test_every_state_is_reached(self) -> None:
        """
        From acceptance on, each state has a way to it.
        """
        reached = {"recorded"}
        for _ in STATES:
            reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}

        assert set(STATES) == reached - {"recorded"}

    @pytest.mark.parametrize("state", ["delivered", "superseded", "retracted", "skipped"])
    def test_what_is_over_is_over(self, state: Any) -> None:
        """
        No arrow leaves a final state; only a dead letter may be requeued.
        """
        assert [] == [arrow for arrow in TRANSITIONS if arrow[0] == state]

    @pytest.mark.parametrize("state", STATES)
    def test_only_a_lease_leads_to_a_delivery(self, state: Any) -> None:
        """
        Nothing is said to be delivered, or to have died of it, that was not leased.
        """
        ways = {
            event
            for (before, event), after in TRANSITIONS.items()
            if before == state and after in {"delivered", "dead"}
        }

        assert ({"deliver", "bury"} if state == "leased" else set()) == ways

    def test_a_newer_judgement_finds_an_arrow_from_whatever_may_be_sent(self) -> None:
        """
        Pending, leased and dead deliveries can be superseded and retracted.
        """
        for event, after in (("supersede", "superseded"), ("retract", "retracted")):
            assert {after} == {TRANSITIONS[state, event] for state in (*WAITING, "dead")}

    def test_the_table_cannot_be_changed(self) -> None:
        """
        It is data, and the same for every store.
        """
        with pytest.raises(TypeError):
            TRANSITIONS["dead", "deliver"] = "delivered"  # type: ignore[index]  # that is what is tested


class TestWhatIsKept:
    def test_the_names_in_a_file_stay(self) -> None:
        """
        Files that were written before have these kinds of keys and these accounts.
        """
        assert ("app", "response", "conversation") == (APP, RESPONSE, CONVERSATION)
        assert ("unrouted", "parked") == (UNROUTED, PARKED)

    def test_no_wait_looks_like_a_clock_that_was_set_back(self) -> None:
        """
        The longest wait there is takes an hour; what lies twice as far ahead has come.
        """
        longest = RetryPolicy().longest_retry_after_millis

        assert (longest, 2 * longest) == (LONGEST_WAIT_MILLIS, SET_BACK_MILLIS)

    def test_a_paused_destination_is_tried_once_a_second(self) -> None:
        """
        Over all workers, however many there are.
        """
        assert 1_000 == PROBE_MILLIS


class TestWhatNeedNotBeSaid:
    def test_a_lease_is_a_first_one(self) -> None:
        """
        Where a store says nothing else, nothing is settled, nothing stands, and no worker or pause was before it.
        """
        lease = Lease(RECORD, "a", 1, 1, 0, 0, 0)

        assert ({}, {}, False, False) == (lease.parts, lease.standing, lease.lapsed, lease.is_probe)

    def test_a_settlement_is_an_attempt_without_a_reason(self) -> None:
        """
        It counts, is not held, is due at once, and leaves nothing standing.
        """
        assert Settlement("retry", {}, None, 0, counts=True, held=False, standing={}) == Settlement("retry", {})

    def test_a_part_s_state_is_clear_and_has_no_reason(self) -> None:
        """
        The vendor said it plainly.
        """
        assert PartState("delivered", None, was_unclear=False) == PartState("delivered")

    def test_an_entry_goes_everywhere_as_it_is(self) -> None:
        """
        It is skipped nowhere and the same for all.
        """
        assert Entry(RECORD, ["a"], skipped={}, variants={}) == Entry(RECORD, ["a"])

    def test_what_stands_is_clear_and_alone(self) -> None:
        """
        The destination has this revision and no other.
        """
        standing = Standing(replace(RECORD, revision=3))

        assert (False, (3,)) == (standing.is_unclear, standing.revisions)

    def test_what_is_parked_goes_wherever_records_go(self) -> None:
        """
        The destinations are those of the time at which it is joined.
        """
        assert Parked(RECORD, APP, "m-1", to=None) == Parked(RECORD, APP, "m-1")


class TestAccount:
    @pytest.mark.parametrize(
        ("recorded", "is_conserved"),
        [(0, False), (26, False), (27, True), (28, False)],
    )
    def test_it_is_conserved_when_every_state_adds_up(self, recorded: Any, is_conserved: Any) -> None:
        """
        What was recorded is the sum of all the states, skips of every reason included.
        """
        stats = DestinationStats(
            recorded=recorded,
            pending=1,
            delivered=2,
            dead=3,
            superseded=4,
            retracted=5,
            skipped={"unsampled": 5, "nothing to carry": 7},
        )

        assert is_conserved == stats.is_conserved

    def test_nothing_recorded_is_conserved(self) -> None:
        """
        An empty account adds up.
        """
        assert DestinationStats().is_conserved
