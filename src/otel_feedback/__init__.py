"""The names of the public API; each is loaded when it is first used (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_feedback._api import (
        CollectedHandles,
        FeedbackSpanProcessor,
        arecord_feedback,
        bind_key,
        capture,
        capture_span,
        collect_handles,
        configure,
        current_handle,
        get_feedback_provider,
        handle_of,
        install,
        issue_token,
        record_feedback,
        record_many,
        retract_feedback,
        set_feedback_provider,
        verify_token,
    )
    from otel_feedback._declare import Declaration, Flag, Labels, Rating, Text, Thumb
    from otel_feedback._handle import FeedbackHandle
    from otel_feedback._record import DeliveryStatus, Feedback, FeedbackRecord, Part, Receipt
    from otel_feedback._retry import RetryPolicy
    from otel_feedback._settings import Settings
    from otel_feedback._tokens import FeedbackGrant
    from otel_feedback.exceptions import (
        ConfigurationError,
        FeedbackError,
        InvalidFeedbackError,
        InvalidTokenError,
        MissingExtraError,
        OutboxFullError,
        StoreError,
        UnknownTargetError,
    )
    from otel_feedback.exporters import (
        FeedbackExporter,
        PauseDestination,
        PermanentFailure,
        Result,
        RetryableFailure,
        Skipped,
        Success,
        Unclear,
    )
    from otel_feedback.exporters._http import Exchange, HTTPFeedbackExporter, HTTPOptions, one_by_one
    from otel_feedback.exporters.braintrust import BraintrustExporter
    from otel_feedback.exporters.console import ConsoleFeedbackExporter
    from otel_feedback.exporters.orq import OrqExporter
    from otel_feedback.exporters.otlp import OTLPFeedbackExporter
    from otel_feedback.exporters.weave import WeaveExporter
    from otel_feedback.instrumentor import FeedbackInstrumentor as FeedbackInstrumentor
    from otel_feedback.provider import FeedbackProvider
    from otel_feedback.stores import CorrelationStore, DestinationStats, Outbox, Store
    from otel_feedback.stores.memory import MemoryStore
    from otel_feedback.stores.sqlite import SQLiteStore

_HOMES = {
    "_api": (
        "CollectedHandles",
        "FeedbackSpanProcessor",
        "arecord_feedback",
        "bind_key",
        "capture",
        "capture_span",
        "collect_handles",
        "configure",
        "current_handle",
        "get_feedback_provider",
        "handle_of",
        "install",
        "issue_token",
        "record_feedback",
        "record_many",
        "retract_feedback",
        "set_feedback_provider",
        "verify_token",
    ),
    "_declare": ("Declaration", "Flag", "Labels", "Rating", "Text", "Thumb"),
    "_handle": ("FeedbackHandle",),
    "_record": ("DeliveryStatus", "Feedback", "FeedbackRecord", "Part", "Receipt"),
    "_retry": ("RetryPolicy",),
    "_settings": ("Settings",),
    "_tokens": ("FeedbackGrant",),
    "exceptions": (
        "ConfigurationError",
        "FeedbackError",
        "InvalidFeedbackError",
        "InvalidTokenError",
        "MissingExtraError",
        "OutboxFullError",
        "StoreError",
        "UnknownTargetError",
    ),
    "exporters": (
        "FeedbackExporter",
        "PauseDestination",
        "PermanentFailure",
        "Result",
        "RetryableFailure",
        "Skipped",
        "Success",
        "Unclear",
    ),
    "exporters._http": ("Exchange", "HTTPFeedbackExporter", "HTTPOptions", "one_by_one"),
    "exporters.braintrust": ("BraintrustExporter",),
    "exporters.console": ("ConsoleFeedbackExporter",),
    "exporters.orq": ("OrqExporter",),
    "exporters.otlp": ("OTLPFeedbackExporter",),
    "exporters.weave": ("WeaveExporter",),
    "instrumentor": ("FeedbackInstrumentor",),
    "provider": ("FeedbackProvider",),
    "stores": ("CorrelationStore", "DestinationStats", "Outbox", "Store"),
    "stores.memory": ("MemoryStore",),
    "stores.sqlite": ("SQLiteStore",),
}

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# All names but `FeedbackInstrumentor`, which needs an extra: `import *` and `help()` work without it.
__all__ = [
    "BraintrustExporter",
    "CollectedHandles",
    "ConfigurationError",
    "ConsoleFeedbackExporter",
    "CorrelationStore",
    "Declaration",
    "DeliveryStatus",
    "DestinationStats",
    "Exchange",
    "Feedback",
    "FeedbackError",
    "FeedbackExporter",
    "FeedbackGrant",
    "FeedbackHandle",
    "FeedbackProvider",
    "FeedbackRecord",
    "FeedbackSpanProcessor",
    "Flag",
    "HTTPFeedbackExporter",
    "HTTPOptions",
    "InvalidFeedbackError",
    "InvalidTokenError",
    "Labels",
    "MemoryStore",
    "MissingExtraError",
    "OTLPFeedbackExporter",
    "OrqExporter",
    "Outbox",
    "OutboxFullError",
    "Part",
    "PauseDestination",
    "PermanentFailure",
    "Rating",
    "Receipt",
    "Result",
    "RetryPolicy",
    "RetryableFailure",
    "SQLiteStore",
    "Settings",
    "Skipped",
    "Store",
    "StoreError",
    "Success",
    "Text",
    "Thumb",
    "Unclear",
    "UnknownTargetError",
    "WeaveExporter",
    "arecord_feedback",
    "bind_key",
    "capture",
    "capture_span",
    "collect_handles",
    "configure",
    "current_handle",
    "get_feedback_provider",
    "handle_of",
    "install",
    "issue_token",
    "one_by_one",
    "record_feedback",
    "record_many",
    "retract_feedback",
    "set_feedback_provider",
    "verify_token",
]


if not TYPE_CHECKING:  # a type checker would take every misspelt name for a public one

    def __getattr__(name: str) -> object:
        """Load a public name from its home."""
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
