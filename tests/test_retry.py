import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_feedback import (
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    RetryPolicy,
    Skipped,
    Success,
    Unclear,
)
from otel_feedback._retry import DAY_MILLIS, HOUR_MILLIS, MINUTE_MILLIS, Done, GiveUp, RetryAt

NOW = 1_767_225_600_000_000_000
DEFAULT = RetryPolicy()
MILLI = 1_000_000

MILLIS = st.integers(0, 10 * DAY_MILLIS)
WISHES = st.none() | MILLIS
AGAIN = st.builds(RetryableFailure, st.just("busy"), WISHES, st.none()) | st.builds(Unclear, st.just("cut off"), WISHES)
ATTEMPTS = st.integers(0, 10_000)
SEEDS = st.integers(0, 1_000_000)


class Chance(random.Random):
    """Draws the same fraction every time: the shortest wait, the longest, or one between."""

    def __init__(self, fraction: Any) -> None:
        super().__init__()
        self.fraction = fraction

    def random(self) -> Any:
        return self.fraction


def decide(
    result: Result,
    *,
    attempt: int = 0,
    now: int = NOW,
    accepted_at: int = NOW,
    rng: random.Random | None = None,
    policy: RetryPolicy = DEFAULT,
) -> Any:
    """Decide by the default policy, at once after acceptance, unless something else is said."""
    return policy.decide(result, attempt=attempt, now=now, accepted_at=accepted_at, rng=rng or random.Random(1))


def wait_millis(decision: Any, now: Any = NOW) -> Any:
    """Say how long a decision waits."""
    return (decision.due_unix_nano - now) / MILLI


class TestWhatIsSettled:
    @pytest.mark.parametrize(
        ("result", "decision"),
        [
            (Success(), Done("delivered", "delivered")),
            (Success("HTTP 200"), Done("delivered", "HTTP 200")),
            (Skipped("nothing to take back"), Done("skipped", "nothing to take back")),
            (PermanentFailure("HTTP 400"), GiveUp("HTTP 400")),
            (PermanentFailure("HTTP 400", may_have_arrived=True), GiveUp("HTTP 400", unclear=True)),
        ],
    )
    @pytest.mark.parametrize("age_millis", [0, 8 * DAY_MILLIS, -DAY_MILLIS])
    def test_a_final_result_is_final_at_any_age(self, result: Any, decision: Any, age_millis: Any) -> None:
        """
        What the vendor took or refused is settled, with the vendor's reason.
        """
        assert decision == decide(result, attempt=5, accepted_at=NOW - age_millis * MILLI)


class TestPause:
    @pytest.mark.parametrize("age_millis", [0, 7 * DAY_MILLIS, 365 * DAY_MILLIS])
    def test_a_paused_destination_buries_nothing(self, age_millis: Any) -> None:
        """
        The part stays due, is no attempt, and never grows too old while the destination is to be mended.
        """
        decision = decide(PauseDestination("HTTP 401"), attempt=9, accepted_at=NOW - age_millis * MILLI)

        assert RetryAt(NOW, "HTTP 401", unclear=False, counts=False) == decision


class TestWhatWasRemoved:
    @pytest.mark.parametrize(
        "result", [RetryableFailure("x"), Unclear("x"), PermanentFailure("x"), PauseDestination("x")]
    )
    def test_what_was_removed_before_a_failure_is_kept(self, result: Any) -> None:
        """
        Whatever follows from the failure, it is the same as without, and names what is gone.
        """
        expected = decide(result, attempt=1, accepted_at=NOW)

        assert replace(expected, removed=(2, 1)) == decide(replace(result, removed=(2, 1)), attempt=1, accepted_at=NOW)


class TestBackoff:
    @pytest.mark.parametrize(
        ("attempt", "longest_millis"),
        [
            (0, 1_000),
            (1, 2_000),
            (2, 4_000),
            (9, 512_000),
            (10, 15 * MINUTE_MILLIS),
            (32, 15 * MINUTE_MILLIS),
            (33, 15 * MINUTE_MILLIS),
            (100_000, 15 * MINUTE_MILLIS),
        ],
    )
    def test_a_wait_is_drawn_from_nothing_to_the_backoff(self, attempt: int, longest_millis: Any) -> None:
        """
        Full jitter: the range doubles with each attempt from one second on, and ends at a quarter of an hour.
        """
        shortest = decide(RetryableFailure("busy"), attempt=attempt, rng=Chance(0.0))
        longest = decide(RetryableFailure("busy"), attempt=attempt, rng=Chance(1.0))
        middle = decide(RetryableFailure("busy"), attempt=attempt, rng=Chance(0.5))

        assert (0, longest_millis / 2, longest_millis) == tuple(map(wait_millis, (shortest, middle, longest)))

    @pytest.mark.parametrize(("attempt", "doublings"), [(31, 31), (32, 32), (33, 32), (100_000, 32)])
    def test_the_doubling_ends_where_no_policy_says_so(self, attempt: int, doublings: int) -> None:
        """
        A policy without a longest wait has one of 136 years, and never computes with numbers of a thousand digits.
        """
        policy = RetryPolicy(longest_millis=10**100)
        decision = decide(RetryableFailure("busy"), attempt=attempt, rng=Chance(1.0), policy=policy)

        assert 1_000 * 2**doublings == wait_millis(decision)

    @given(AGAIN, ATTEMPTS, SEEDS, st.integers(-DAY_MILLIS, 7 * DAY_MILLIS - 1))
    def test_a_retry_never_goes_back_in_time_and_never_waits_too_long(
        self, result: Any, attempt: int, seed: int, age_millis: Any
    ) -> None:
        """
        However often, however old, even when the clock was set back: the wait is between nothing and an hour.
        """
        decision = decide(result, attempt=attempt, accepted_at=NOW - age_millis * MILLI, rng=random.Random(seed))

        assert isinstance(decision, RetryAt)
        assert 0 <= wait_millis(decision) <= HOUR_MILLIS
        assert decision.counts

    @given(AGAIN, ATTEMPTS, SEEDS)
    def test_the_same_chance_decides_the_same(self, result: Any, attempt: int, seed: int) -> None:
        """
        The policy itself has neither memory nor chance.
        """
        once, again = (decide(result, attempt=attempt, rng=random.Random(seed)) for _ in range(2))

        assert once == again

    def test_waits_are_spread_over_the_whole_range(self) -> None:
        """
        A thousand workers that failed together do not come back together.
        """
        rng = random.Random(1)
        waits = sorted(wait_millis(decide(RetryableFailure("busy"), attempt=3, rng=rng)) for _ in range(1_000))

        assert waits[0] < 100
        assert 3_500 < waits[500] < 4_500
        assert 7_900 < waits[-1] <= 8_000

    @given(ATTEMPTS, SEEDS, MILLIS, MILLIS, MILLIS, WISHES)
    def test_any_policy_keeps_its_own_limits(
        self, attempt: int, seed: int, base: Any, longest: Any, longest_wish: Any, wish: Any
    ) -> None:
        """
        The wait is at most the longest backoff, or the vendor's wish as far as it is granted.
        """
        policy = RetryPolicy(base_millis=base, longest_millis=longest, longest_retry_after_millis=longest_wish)
        decision = decide(RetryableFailure("busy", wish), attempt=attempt, rng=random.Random(seed), policy=policy)
        granted = min(wish or 0, longest_wish)

        assert granted <= wait_millis(decision) <= max(longest, granted)


class TestRetryAfter:
    @pytest.mark.parametrize("kind", [RetryableFailure, Unclear])
    @pytest.mark.parametrize(
        ("wish_millis", "wait"),
        [
            (None, 500),
            (0, 500),
            (499, 500),
            (501, 501),
            (30_000, 30_000),
            (HOUR_MILLIS, HOUR_MILLIS),
            (HOUR_MILLIS + 1, HOUR_MILLIS),
            (365 * DAY_MILLIS, HOUR_MILLIS),
        ],
    )
    def test_a_vendor_s_wish_lengthens_the_wait_up_to_an_hour(self, kind: Any, wish_millis: Any, wait: Any) -> None:
        """
        A wish shorter than the jitter changes nothing, and a year is no wait that anybody means.
        """
        assert wait == wait_millis(decide(kind("busy", retry_after_millis=wish_millis), rng=Chance(0.5)))

    @given(ATTEMPTS, SEEDS, MILLIS)
    def test_it_never_shortens_the_wait(self, attempt: int, seed: int, wish_millis: Any) -> None:
        """
        With the same chance, the wait with a wish is at least the one without.
        """
        without = decide(RetryableFailure("busy"), attempt=attempt, rng=random.Random(seed))
        wished = decide(RetryableFailure("busy", wish_millis), attempt=attempt, rng=random.Random(seed))

        assert without.due_unix_nano <= wished.due_unix_nano


class TestWhatWasNotTried:
    @pytest.mark.parametrize(
        ("wish_millis", "wait"),
        [(None, 0), (0, 0), (30_000, 30_000), (HOUR_MILLIS, HOUR_MILLIS), (365 * DAY_MILLIS, HOUR_MILLIS)],
    )
    @pytest.mark.parametrize("attempt", [0, 9, 10_000])
    @pytest.mark.parametrize("age_millis", [0, 7 * DAY_MILLIS, 365 * DAY_MILLIS])
    def test_it_is_no_attempt_and_waits_only_as_the_vendor_wishes(
        self, wish_millis: Any, wait: Any, attempt: int, age_millis: Any
    ) -> None:
        """
        What waited for the part before it has not failed: it goes as soon as it may, and never grows too old.
        """
        result = RetryableFailure("not tried", wish_millis, is_tried=False)
        decision = decide(result, attempt=attempt, accepted_at=NOW - age_millis * MILLI, rng=Chance(1.0))

        assert RetryAt(NOW + wait * MILLI, "not tried", unclear=False, counts=False) == decision

    def test_a_grace_does_not_end_what_was_not_tried(self) -> None:
        """
        Who had no try is not told that it was the last one.
        """
        result = RetryableFailure("not tried", give_up_after_millis=0, is_tried=False)

        assert RetryAt(NOW, "not tried", counts=False) == decide(result, attempt=700, accepted_at=0)


class TestUnclear:
    @pytest.mark.parametrize(("result", "is_unclear"), [(Unclear("cut off"), True), (RetryableFailure("busy"), False)])
    def test_a_retry_remembers_whether_the_vendor_may_have_it(self, result: Any, is_unclear: Any) -> None:
        """
        What may have been applied is told apart from what was not; the reason is kept.
        """
        decision = decide(result)

        assert (is_unclear, result.reason) == (decision.unclear, decision.reason)


class TestGivingUp:
    @pytest.mark.parametrize("result", [RetryableFailure("busy", 30_000), Unclear("busy", 30_000)])
    @pytest.mark.parametrize(
        ("age_nano", "gives_up"),
        [
            (7 * DAY_MILLIS * MILLI - 1, False),
            (7 * DAY_MILLIS * MILLI, True),
            (30 * DAY_MILLIS * MILLI, True),
        ],
    )
    def test_a_part_is_given_up_after_seven_days_and_not_before(
        self, result: Any, age_nano: Any, gives_up: Any
    ) -> None:
        """
        The age counts from acceptance; the reason says how long it was tried and what the vendor said last.
        """
        decision = decide(result, attempt=700, accepted_at=NOW - age_nano)

        expected = GiveUp("given up after 7 d: busy", unclear=isinstance(result, Unclear))
        assert gives_up == (expected == decision)
        assert gives_up != isinstance(decision, RetryAt)

    @pytest.mark.parametrize(
        ("grace_millis", "age_millis", "gives_up"),
        [
            (6 * HOUR_MILLIS, 6 * HOUR_MILLIS - 1, False),
            (6 * HOUR_MILLIS, 6 * HOUR_MILLIS, True),
            (0, 0, True),
            (30 * DAY_MILLIS, 7 * DAY_MILLIS - 1, False),
            (30 * DAY_MILLIS, 7 * DAY_MILLIS, True),
        ],
    )
    def test_a_grace_of_its_own_only_shortens_the_time(self, grace_millis: Any, age_millis: Any, gives_up: Any) -> None:
        """
        A failure that is only worth waiting for a while ends sooner, but none is kept longer than all others.
        """
        result = RetryableFailure("HTTP 404", give_up_after_millis=grace_millis)
        decision = decide(result, attempt=700, accepted_at=NOW - age_millis * MILLI)

        assert gives_up == isinstance(decision, GiveUp)

    @pytest.mark.parametrize(
        ("attempt", "gives_up"), [(0, False), (1, False), (8, False), (9, True), (10, True), (10_000, True)]
    )
    @pytest.mark.parametrize("age_millis", [7 * DAY_MILLIS, 365 * DAY_MILLIS])
    @pytest.mark.parametrize("kind", [RetryableFailure, Unclear])
    def test_nothing_is_given_up_before_its_tenth_attempt(
        self, kind: Any, age_millis: Any, attempt: int, gives_up: Any
    ) -> None:
        """
        A machine that was switched off for a year has tried nothing; the attempt that is decided on counts.
        """
        decision = decide(kind("busy"), attempt=attempt, accepted_at=NOW - age_millis * MILLI)

        assert gives_up == isinstance(decision, GiveUp)

    @pytest.mark.parametrize("attempt", [0, 8, 9])
    def test_a_grace_of_its_own_needs_the_attempts_too(self, attempt: int) -> None:
        """
        A trace that is looked for once an hour is looked for ten times all the same.
        """
        result = RetryableFailure("HTTP 404", give_up_after_millis=HOUR_MILLIS)
        decision = decide(result, attempt=attempt, accepted_at=NOW - DAY_MILLIS * MILLI)

        assert (attempt == 9) == (GiveUp("given up after 1 h: HTTP 404") == decision)

    @given(AGAIN, ATTEMPTS, MILLIS, st.integers(0, 100), MILLIS)
    def test_any_policy_gives_up_by_age_and_attempts_alone(
        self, result: Any, attempt: int, age_millis: Any, attempts: Any, limit_millis: Any
    ) -> None:
        """
        Neither is enough, and nothing else counts.
        """
        policy = RetryPolicy(give_up_after_millis=limit_millis, give_up_attempts=attempts)
        decision = decide(result, attempt=attempt, accepted_at=NOW - age_millis * MILLI, policy=policy)

        assert (age_millis >= limit_millis and attempt + 1 >= attempts) == isinstance(decision, GiveUp)

    @pytest.mark.parametrize(
        ("millis", "said"),
        [
            (0, "0 s"),
            (999, "0.999 s"),
            (1_000, "1 s"),
            (90_000, "1.5 min"),
            (MINUTE_MILLIS, "1 min"),
            (HOUR_MILLIS - 1, "60 min"),
            (HOUR_MILLIS, "1 h"),
            (6 * HOUR_MILLIS, "6 h"),
            (DAY_MILLIS, "1 d"),
            (36 * HOUR_MILLIS, "1.5 d"),
        ],
    )
    def test_the_reason_says_the_duration_as_a_person_would(self, millis: Any, said: Any) -> None:
        """
        It is read in a dead letter.
        """
        policy = RetryPolicy(give_up_after_millis=millis)
        decision = decide(RetryableFailure("busy"), attempt=9, accepted_at=0, policy=policy)

        assert GiveUp(f"given up after {said}: busy") == decision


def test_the_defaults_are_those_of_the_design() -> None:
    """
    From a second to a quarter of an hour, an hour at most at a vendor's wish, a week and ten attempts in all.
    """
    assert (
        RetryPolicy(
            base_millis=1_000,
            longest_millis=900_000,
            longest_retry_after_millis=3_600_000,
            give_up_after_millis=604_800_000,
            give_up_attempts=10,
            pause_millis=300_000,
        )
        == RetryPolicy()
    )
