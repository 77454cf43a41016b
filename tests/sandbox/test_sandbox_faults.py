import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_feedback.sandbox import Fault
from otel_feedback.sandbox._faults import KINDS, MAX_FAULTS, FaultPlan


def plan(*faults, seed=7):
    made = FaultPlan(random.Random(seed))
    for each in faults:
        made.add(each)
    return made


class TestPlan:
    def test_a_fault_meets_as_many_requests_as_it_says(self):
        """
        A fault for two requests meets two and is gone.
        """
        faults = plan(Fault(times=2))

        assert [True, True, False] == [faults.take("orq", "/x") is not None for _ in range(3)]
        assert [] == faults.state()

    def test_a_fault_without_a_count_stays(self):
        """
        A fault that says no count meets every request until it is cleared.
        """
        faults = plan(Fault(times=None))
        met = [faults.take("orq", "/x") is not None for _ in range(3)]
        fired = faults.state()[0]["fired"]
        faults.clear()

        assert ([True] * 3, 3, None) == (met, fired, faults.take("orq", "/x"))

    def test_some_requests_may_pass_first(self):
        """
        A fault may let a number of matching requests pass.
        """
        faults = plan(Fault(after=1, vendor="orq"))

        assert [False, False, True] == [faults.take(vendor, "/x") is not None for vendor in ("weave", "orq", "orq")]

    @pytest.mark.parametrize(
        ("fault", "vendor", "path", "met"),
        [
            (Fault(), "orq", "/v2/feedback", True),
            (Fault(vendor="orq"), "weave", "/feedback/create", False),
            (Fault(path="/v2/feedback"), "orq", "/v2/feedback/remove", False),
            (Fault(path="*feedback*"), "braintrust", "/v1/project_logs/x/feedback", True),
        ],
    )
    def test_a_fault_is_for_a_vendor_and_a_path(self, fault, vendor, path, met):
        """
        The vendor must be the same, the path must fit the pattern.
        """
        assert met is fault.matches(vendor, path)

    def test_the_first_that_fires_wins(self):
        """
        Of several faults for one request the first given meets it.
        """
        faults = plan(Fault(status=500), Fault(status=429))

        assert [500, 429] == [fault.status for fault in (faults.take("orq", "/"), faults.take("orq", "/")) if fault]

    def test_chance_is_drawn_from_the_given_source(self):
        """
        With one seed the same requests fail each time.
        """
        draws = [
            [faults.take("orq", "/") is not None for _ in range(40)]
            for faults in (plan(Fault(times=None, probability=0.5)) for _ in range(2))
        ]

        assert draws[0] == draws[1]
        assert {True, False} == set(draws[0])

    def test_there_is_a_limit(self):
        """
        More faults than the limit are refused.
        """
        faults = plan(*[Fault()] * MAX_FAULTS)

        with pytest.raises(ValueError, match="clear them first"):
            faults.add(Fault())


class TestFault:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("kind", "explode"),
            ("path", 1),
            ("times", 0),
            ("times", True),
            ("after", -1),
            ("probability", 1.5),
            ("probability", True),
            ("probability", "x"),
            ("status", 99),
            ("status", "503"),
            ("body", 1),
            ("location", None),
            ("headers", {"a": 1}),
            ("headers", []),
            ("delay_millis", 10**9),
            ("size_bytes", -1),
            ("vendor", "acme"),
        ],
    )
    def test_what_cannot_be_is_refused(self, field, value):
        """
        A fault with a value that makes no sense raises, and names the field.
        """
        with pytest.raises(ValueError, match=f"not a fault: .*{field}"):
            Fault(**{field: value})

    @pytest.mark.parametrize("document", [[], None, {"colour": "red"}, {"status": 1}])
    def test_what_is_no_fault_is_refused(self, document):
        """
        JSON that is no fault raises.
        """
        with pytest.raises(ValueError, match="not a fault"):
            Fault.from_json(document)

    @given(
        st.builds(
            Fault,
            vendor=st.sampled_from([None, "orq", "weave"]),
            kind=st.sampled_from(KINDS),
            times=st.none() | st.integers(1, 9),
            headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
            probability=st.floats(0, 1),
        )
    )
    def test_it_survives_json(self, fault):
        """
        A fault read from its own JSON is equal.
        """
        assert fault == Fault.from_json(fault.to_json())
