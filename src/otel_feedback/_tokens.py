"""Tokens: a handle in a text that a browser may hold, and what its holder may say.

Everything about their form lives here, as pure functions of keys and time. A token is signed and not encrypted: whoever
holds it can read the ids, the names and the user in it.

    "of1_" base64url( flags | trace id | span id | trace flags | expiry | root span id? | rest? | signature )

One byte, 16, 8, 1, 5 (seconds since 1970), 8 where the local root is another span, JSON where there is more to say, and
16 of HMAC-SHA-256 over all that stands before, the prefix included (RFC 2104, section 5: no less than half of it).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import pydantic_core
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._dialects import BRAINTRUST_PARENT, BRAINTRUST_ROW, CONVERSATION_ID, TO
from otel_feedback._handle import FeedbackHandle
from otel_feedback.exceptions import InvalidTokenError

# The version; a token of another one is none of ours.
PREFIX = "of1_"
# Longer than any of ours: what is longer is not even decoded.
MAX_TOKEN_CHARS = 4_096
# Five bytes of seconds: the year 36812.
MAX_EXPIRY = (1 << 40) - 1

_SIGNATURE_BYTES = 16
_HEAD = struct.Struct(">B16s8sB5s")
_ROOT_BYTES = 8
_HAS_ROOT, _HAS_REST = 1, 2

# What of a handle's attributes says where feedback goes, and the letter that stands for it.
ROUTE: Mapping[str, str] = MappingProxyType(
    {"p": BRAINTRUST_PARENT, "r": BRAINTRUST_ROW, "t": TO, "c": CONVERSATION_ID}
)
_NAMES, _USER = "n", "u"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class FeedbackGrant:
    """What the holder of a token may do: judge one call, until `expires_at`.

    `names` are the names that may be judged under, `None` any; `user_id` is who judges, `None` nobody in particular.
    """

    handle: FeedbackHandle
    expires_at: datetime
    names: tuple[str, ...] | None = None
    user_id: str | None = None


def write_token(grant: FeedbackGrant, key: str) -> str:
    """Write a grant as a token, signed with a key."""
    handle = grant.handle
    said = {letter: handle.attributes[name] for letter, name in ROUTE.items() if name in handle.attributes}
    more = {**said, _NAMES: grant.names, _USER: grant.user_id}
    rest = {letter: value for letter, value in more.items() if value is not None}
    root = handle.root if handle.root != handle.context.span_id else 0
    body = _HEAD.pack(
        (_HAS_ROOT if root else 0) | (_HAS_REST if rest else 0),
        handle.context.trace_id.to_bytes(16, "big"),
        handle.context.span_id.to_bytes(8, "big"),
        handle.context.trace_flags & 0xFF,
        ((grant.expires_at - _EPOCH) // timedelta(seconds=1)).to_bytes(5, "big"),
    )
    body += root.to_bytes(_ROOT_BYTES, "big") if root else b""
    body += pydantic_core.to_json(rest) if rest else b""
    return PREFIX + _text(body + _signature(body, key))


def read_token(token: str, keys: Sequence[str], *, now: datetime) -> FeedbackGrant:
    """Read a token that was signed with one of some keys.

    Raises:
        InvalidTokenError: whose `reason` is `malformed`, `signature` or `expired`; it does not contain the token.
    """
    packed = _bytes(token)
    body, signature = packed[:-_SIGNATURE_BYTES], packed[-_SIGNATURE_BYTES:]
    # Each key is tried, so that the time it takes tells nothing.
    if True not in [hmac.compare_digest(signature, _signature(body, key)) for key in keys]:
        raise InvalidTokenError("the token was signed with none of this process's keys, or changed", reason="signature")
    grant = _grant(body)
    if now >= grant.expires_at:
        raise InvalidTokenError(f"the token expired at {grant.expires_at.isoformat()}", reason="expired")
    return grant


def _grant(body: bytes) -> FeedbackGrant:
    """Read what was signed: only what `write_token` has written comes here."""
    flags, trace_id, span_id, trace_flags, expiry = _HEAD.unpack_from(body)
    rest_at = _HEAD.size + (_ROOT_BYTES if flags & _HAS_ROOT else 0)
    rest: Mapping[str, Any] = pydantic_core.from_json(body[rest_at:]) if flags & _HAS_REST else {}
    names = rest.get(_NAMES)
    return FeedbackGrant(
        FeedbackHandle(
            SpanContext(
                int.from_bytes(trace_id, "big"),
                int.from_bytes(span_id, "big"),
                is_remote=True,
                trace_flags=TraceFlags(trace_flags),
            ),
            int.from_bytes(body[_HEAD.size : rest_at], "big"),
            attributes=MappingProxyType({name: rest[letter] for letter, name in ROUTE.items() if letter in rest}),
        ),
        _EPOCH + timedelta(seconds=int.from_bytes(expiry, "big")),
        None if names is None else tuple(names),
        rest.get(_USER),
    )


def _signature(body: bytes, key: str) -> bytes:
    return hmac.digest(key.encode(), PREFIX.encode() + body, "sha256")[:_SIGNATURE_BYTES]


def _text(packed: bytes) -> str:
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _bytes(token: str) -> bytes:
    """Decode a token, if it is written as we write it: no two texts are one token.

    Raises:
        InvalidTokenError: when it is no token of this version.
    """
    is_ours = isinstance(token, str) and token.startswith(PREFIX) and len(token) <= MAX_TOKEN_CHARS
    written = token[len(PREFIX) :] if is_ours else ""
    if is_ours and written.isascii():
        try:
            packed = base64.urlsafe_b64decode(written + "=" * (-len(written) % 4))
        except binascii.Error:
            packed = b""
        if len(packed) >= _HEAD.size + _SIGNATURE_BYTES and _text(packed) == written:
            return packed
    raise InvalidTokenError(
        "a string as the target is only ever a token of issue_token(), and this is none; raw ids go through "
        "FeedbackHandle.from_traceparent()",
        reason="malformed",
    )
