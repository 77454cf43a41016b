"""The demo's second process: gives the judgements by the app's own message ids, and delivers them.

All of it is configured by the environment. On standard output it says, in a line of JSON each, what was accepted for
every turn. After a line on standard input it delivers, and once all of it is or time is up, it says what became of it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import otel_feedback as of
from otel_feedback.cli._demo_script import TURNS

# Longer than the hold and a few retries take.
FLUSH_MILLIS = 20_000


def main() -> None:
    """Judge every turn, then deliver."""
    receipts = []
    for turn in TURNS:
        receipt = of.record_feedback(key=turn.message_id, **turn.judgement)
        handle = of.get_feedback_provider().handle_for_key(turn.message_id)
        receipts.append(receipt)
        _say(trace_id=handle.trace_id, span_id=handle.span_id, not_carried=receipt.not_carried)
    sys.stdin.readline()
    with of.configure(settings=replace(of.Settings.from_environment(), delivery="thread")) as provider:
        provider.force_flush(FLUSH_MILLIS)
        for receipt in receipts:
            deliveries = provider.status(receipt.id).deliveries
            _say(deliveries={name: asdict(status) for name, status in deliveries.items()})


def _say(**words: object) -> None:
    """Tell the process that plays the demo."""
    print(json.dumps(words), flush=True)  # noqa: T201 (how the demo's processes talk)


if __name__ == "__main__":
    main()
