from typing import Any, get_args

import pytest

from otel_feedback.stores import STATES, TRANSITIONS, DestinationStats, Event, State

WAITING = {"pending", "leased"}


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
