"""The feedback route for browsers: what it answers, and an adapter for each framework in a module of its own."""

from __future__ import annotations

from ._carry import (
    HANDLES,
    TOKEN_HEADER,
    ASGIFeedbackMiddleware,
    WSGIFeedbackMiddleware,
    awith_token,
    token_event,
    token_headers,
    with_token,
)
from ._endpoint import FeedbackEndpoint, WebRequest, WebResponse
from ._limits import RateLimit

__all__ = [
    "HANDLES",
    "TOKEN_HEADER",
    "ASGIFeedbackMiddleware",
    "FeedbackEndpoint",
    "RateLimit",
    "WSGIFeedbackMiddleware",
    "WebRequest",
    "WebResponse",
    "awith_token",
    "token_event",
    "token_headers",
    "with_token",
]
