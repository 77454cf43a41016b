"""Every error that otel-feedback raises.

The tree; each error is also the built-in that fits it:

    FeedbackError
    ├── ConfigurationError      ValueError   a setting, a key, a URL or an exporter's argument
    ├── InvalidFeedbackError    ValueError   what was given is no judgement; nothing was stored
    ├── UnknownTargetError      LookupError  no trace or feedback is known for what was named
    ├── InvalidTokenError       ValueError   a string target that is no valid signed token
    ├── StoreError              OSError      the store cannot be opened, read or written
    │   └── OutboxFullError                  the store refuses to grow
    └── MissingExtraError       ImportError  an optional part is not installed

`record_feedback` raises before a judgement is accepted or not at all. Messages name fields and facts, never a
comment, a correction, an API key or a token.
"""

from __future__ import annotations

from typing import Any


class FeedbackError(Exception):
    """The base of every error of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error cross to another process with its facts, which `Exception` would pass to no keyword."""
        return _rebuild, (type(self), self.args, vars(self))


class ConfigurationError(FeedbackError, ValueError):
    """A setting cannot be used as it is; `setting` names it."""

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class InvalidFeedbackError(FeedbackError, ValueError):
    """What was given is no judgement; `field` names the argument, `value` is what was given for it."""

    def __init__(self, message: str, *, field: str, value: object = None) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class UnknownTargetError(FeedbackError, LookupError):
    """No trace, or no feedback, is known for what was named; `store` says where it was looked for."""

    def __init__(
        self, message: str, *, key: str | None = None, key_kind: str | None = None, store: str | None = None
    ) -> None:
        super().__init__(message)
        self.key = key
        self.key_kind = key_kind
        self.store = store


class InvalidTokenError(FeedbackError, ValueError):
    """A string was given as the target and it is no valid signed token; `reason` says why in a word."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreError(FeedbackError, OSError):
    """The store cannot be opened, read or written; `store` names it."""

    def __init__(self, message: str, *, store: str) -> None:
        super().__init__(message)
        self.store = store


class OutboxFullError(StoreError):
    """The store holds `limit` undelivered records and refuses another one; nothing was stored."""

    def __init__(self, message: str, *, store: str, limit: int) -> None:
        super().__init__(message, store=store)
        self.limit = limit


class MissingExtraError(FeedbackError, ImportError):
    """An optional part was used whose packages are not installed; `extra` is what to install."""

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message)
        self.extra = extra


def _rebuild(kind: type[FeedbackError], args: tuple[Any, ...], facts: dict[str, Any]) -> FeedbackError:
    """Make an error anew from its message and its facts."""
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(facts)
    return error
