"""The pipeline that the environment describes, as commands use it."""

from __future__ import annotations

import logging
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


def why_empty(provider: FeedbackProvider) -> str:
    """Say why a store has no account: nothing came, or its path is mistyped."""
    return "OTEL_FEEDBACK_DISABLED is set" if provider.is_disabled else f"no feedback in {provider.settings.store_url}"
