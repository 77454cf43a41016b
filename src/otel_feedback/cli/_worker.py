"""What `worker` does: deliver what other processes have recorded, and tell the account."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from otel_feedback.cli._pipeline import pipeline, told_to_end, why_empty
from otel_feedback.provider import FeedbackProvider
from otel_feedback.stores import DestinationStats


def work() -> bool:
    """Deliver until a signal; what is left then waits in the store, so that it always ends well."""
    told = told_to_end()
    with pipeline("thread", log_level=logging.INFO) as provider:
        told.wait()
        provider.shutdown()
        _tell(provider, provider.stats())
    return True


def deliver_once() -> bool:
    """Make one pass; say whether nothing waits."""
    with pipeline(log_level=logging.INFO) as provider:
        stats = provider.deliver()
    _tell(provider, stats)
    return not any(each.pending for each in stats.values())


def account_of(name: str, stats: DestinationStats) -> str:
    """Write the account of one destination on a line, as the sum that it is."""
    terms = {
        "delivered": stats.delivered,
        "superseded": stats.superseded,
        "retracted": stats.retracted,
        "dead": stats.dead,
        **{f"skipped ({reason})": count for reason, count in stats.skipped.items()},
        "pending": stats.pending,
    }
    told = " + ".join(f"{count} {term}" for term, count in terms.items() if count) or "0"
    paused = f"; paused: {stats.paused}" if stats.paused else ""
    return f"{name}: {stats.recorded} recorded = {told}{paused}"


def _tell(provider: FeedbackProvider, stats: Mapping[str, DestinationStats]) -> None:
    """Print the accounts, or that there are none: the path may be mistyped."""
    if not stats:
        print(f"nothing to deliver: {why_empty(provider)}")  # noqa: T201 (a command's answer)
    for name, each in stats.items():
        print(account_of(name, each))  # noqa: T201 (a command's answer)
