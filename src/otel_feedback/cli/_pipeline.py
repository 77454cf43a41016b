"""The pipeline that the environment describes, as commands use it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from otel_feedback.exceptions import FeedbackError
from otel_feedback.provider import FeedbackProvider, start_from_environment


@contextmanager
def pipeline(delivery: str = "none", *, log_level: int = logging.ERROR) -> Iterator[FeedbackProvider]:
    """Start the pipeline that the environment describes, with its log on stderr; an error of it ends the command."""
    logging.basicConfig(level=log_level, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request is no news
    try:
        with start_from_environment({"delivery": delivery}) as provider:
            yield provider
    except FeedbackError as error:
        raise SystemExit(f"otel-feedback: {error}") from error


def told_to_end() -> threading.Event:
    """Answer what Ctrl-C and SIGTERM set from now on, instead of ending the process."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    return told


def why_empty(provider: FeedbackProvider) -> str:
    """Say why a store has no account: nothing came, or its path is mistyped."""
    return "OTEL_FEEDBACK_DISABLED is set" if provider.is_disabled else f"no feedback in {provider.settings.store_url}"
