"""The feedback route for browsers: what it answers, and an adapter for each framework in a module of its own."""

from __future__ import annotations

from ._endpoint import FeedbackEndpoint, WebRequest, WebResponse
from ._limits import RateLimit

__all__ = ["FeedbackEndpoint", "RateLimit", "WebRequest", "WebResponse"]
