"""What the sandbox keeps at most, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one sandbox."""

    body_bytes: int = 10 * MIB
    """The largest body, packed or unpacked: an export of some ten thousand spans."""

    spans: int = 50_000
    """A long chaos run exports some ten thousand spans to three vendors."""

    submissions: int = 50_000
    """The same for what is submitted."""

    stored_bytes: int = 256 * MIB
    """What all submissions weigh: a developer's machine has that to spare."""

    flags: int = 10_000
    """Nobody reads more; later ones are dropped, since each is also in the list of requests."""

    logged_requests: int = 100_000
    """Requests that are kept to be looked at; the oldest go first."""

    logged_bytes: int = 64 * MIB
    """What their bodies weigh together; the oldest go first."""

    logged_body_bytes: int = MIB
    """As much of one body as is kept: any feedback, though not every export of spans."""
