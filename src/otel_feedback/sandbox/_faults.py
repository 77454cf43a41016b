"""Faults on demand: which request fails, how, and how often. Pure but for the plan's own counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import random

Kind = Literal["status", "reset", "reset_after", "truncated", "slow", "redirect", "huge"]
KINDS: tuple[str, ...] = get_args(Kind)

STORING_KINDS = frozenset({"reset_after", "truncated", "slow", "huge"})
"""The kinds where the vendor took the request before the trouble began."""

MAX_FAULTS = 1_000
"""More faults than any test plans by hand."""

MAX_DELAY_MILLIS = 600_000
"""Ten minutes: longer than any client waits."""

MAX_SIZE_BYTES = 1024 * 1024 * 1024
"""One gibibyte: enough to show that a client caps what it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One planned failure.

    The kinds are `status` (answers `status`, `headers`, `body` and stores nothing), `reset` (the connection
    is reset before anything is stored), `reset_after` (stored, then reset: the client cannot know),
    `truncated` (stored, and the answer breaks off half-way), `slow` (stored, and answered after
    `delay_millis`), `redirect` (307 to `location`) and `huge` (stored, and an answer of `size_bytes`).
    """

    vendor: str | None = None
    """`orq`, `braintrust`, `weave`, or None for any."""

    path: str = "*"
    """A shell pattern for the path below the vendor's base URL, such as `/v2/feedback` or `*feedback*`."""

    kind: Kind = "status"
    times: int | None = 1
    """How many matching requests fail; None: all, until the faults are cleared."""

    after: int = 0
    """How many matching requests pass first."""

    probability: float = 1.0
    """How likely a matching request fails, drawn from the sandbox's `random.Random`."""

    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    delay_millis: int = 0
    location: str = "http://127.0.0.1:9/elsewhere"
    size_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what could never work, where it is written."""
        problem = _problem(self)
        if problem is not None:
            raise ValueError(f"not a fault: {problem}")

    @classmethod
    def from_json(cls, document: object) -> Fault:
        """Read the JSON form, as `POST /faults` takes it; raises `ValueError`."""
        if not isinstance(document, dict):
            raise ValueError("not a fault: a JSON object is needed")  # noqa: TRY004  a value from outside
        unknown = sorted(set(document) - {each.name for each in fields(cls)})
        if unknown:
            raise ValueError(f"not a fault: unknown field {unknown[0]!r}")
        return cls(**document)

    def to_json(self) -> dict[str, Any]:
        """Answer the JSON form."""
        return asdict(replace(self, headers=dict(self.headers)))

    def matches(self, vendor: str, path: str) -> bool:
        """Say whether a request is of the kind that this fault is for."""
        return self.vendor in {None, vendor} and fnmatchcase(path, self.path)


def _problem(fault: Fault) -> str | None:
    """Name the first field that cannot be, or answer None."""
    checks: tuple[tuple[bool, str], ...] = (
        (fault.kind in KINDS, f"kind must be one of {', '.join(KINDS)}"),
        (isinstance(fault.path, str), "path must be a string"),
        (fault.times is None or _is_int(fault.times, 1, None), "times must be a positive integer or null"),
        (_is_int(fault.after, 0, None), "after must be an integer that is not negative"),
        (_is_number(fault.probability) and 0 <= fault.probability <= 1, "probability must be within 0 and 1"),
        (_is_int(fault.status, 200, 599), "status must be within 200 and 599"),
        (
            isinstance(fault.body, str) and isinstance(fault.location, str),
            "body and location must be strings",
        ),
        (_is_headers(fault.headers), "headers must be an object of strings"),
        (
            _is_int(fault.delay_millis, 0, MAX_DELAY_MILLIS),
            f"delay_millis must be within 0 and {MAX_DELAY_MILLIS}",
        ),
        (_is_int(fault.size_bytes, 0, MAX_SIZE_BYTES), f"size_bytes must be within 0 and {MAX_SIZE_BYTES}"),
        (
            fault.vendor in {None, "orq", "braintrust", "weave"},
            "vendor must be orq, braintrust, weave or null",
        ),
    )
    return next((sentence for fine, sentence in checks if not fine), None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_int(value: object, least: int, most: int | None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)


def _is_headers(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault and how far it has come."""

    fault: Fault
    passed: int = 0
    fired: int = 0

    @property
    def is_spent(self) -> bool:
        """True where it has failed as many requests as it was to."""
        return self.fault.times is not None and self.fired >= self.fault.times


class FaultPlan:
    """The faults that are still to come, in the order in which they were given."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._planned: list[Planned] = []

    def add(self, fault: Fault) -> None:
        """Plan one more."""
        if len(self._planned) >= MAX_FAULTS:
            raise ValueError(f"more than {MAX_FAULTS} faults are planned: clear them first")
        self._planned.append(Planned(fault))

    def clear(self) -> None:
        """Forget them all."""
        self._planned.clear()

    def take(self, vendor: str, path: str) -> Fault | None:
        """Answer the fault that meets this request, the first that fires, and count it."""
        for index, planned in enumerate(self._planned):
            if not planned.fault.matches(vendor, path):
                continue
            advanced = self._advance(planned)
            self._planned[index] = advanced
            if advanced.fired > planned.fired:
                self._planned = [each for each in self._planned if not each.is_spent]
                return planned.fault
        return None

    def _advance(self, planned: Planned) -> Planned:
        if planned.passed < planned.fault.after:
            return replace(planned, passed=planned.passed + 1)
        if planned.fault.probability < 1 and self._rng.random() >= planned.fault.probability:
            return planned
        return replace(planned, fired=planned.fired + 1)

    def state(self) -> list[dict[str, Any]]:
        """Answer the plan as JSON, each with how often it has fired."""
        return [{**planned.fault.to_json(), "fired": planned.fired} for planned in self._planned]
