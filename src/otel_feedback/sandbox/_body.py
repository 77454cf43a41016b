"""Bodies off the wire: capped while they are read, and capped again while they are unpacked."""

from __future__ import annotations

import json
import math
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

MAX_BODY_BYTES = 10 * 1024 * 1024
"""The largest body, packed or unpacked: an export of some ten thousand spans."""

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class BodyTooLargeError(ValueError):
    """A body over `MAX_BODY_BYTES`."""


async def read_capped(chunks: AsyncIterable[bytes]) -> bytes:
    """Read a body, at most so much of it."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLargeError(f"the body has more than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def unpack(body: bytes, encoding: str) -> bytes:
    """Undo a content encoding; raises `ValueError` where it cannot be undone."""
    if encoding in {"", "identity"}:
        return body
    if encoding not in _WINDOW_BITS:
        raise ValueError(f"the content encoding {encoding!r} is unknown")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"the body is no {encoding}") from error
    if len(unpacked) > MAX_BODY_BYTES:
        raise BodyTooLargeError(f"the unpacked body has more than {MAX_BODY_BYTES} bytes")
    if not unpacker.eof:
        raise ValueError(f"the {encoding} body breaks off")
    return unpacked


def read_json(body: bytes) -> Any:
    """Read JSON as RFC 8259 has it: no NaN, no infinity; raises `ValueError`."""
    try:
        return json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number
