"""Bodies off the wire: capped while they are read, and capped again while they are unpacked."""

from __future__ import annotations

import json
import math
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class BodyTooLargeError(ValueError):
    """A body over the limit."""


async def read_capped(chunks: AsyncIterable[bytes], limit: int) -> bytes:
    """Read a body, at most so much of it."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes")
    return bytes(body)


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a content encoding; raises `ValueError` where it cannot be undone."""
    if encoding in {"", "identity"}:
        return body
    if encoding not in _WINDOW_BITS:
        raise ValueError(f"the content encoding {encoding!r} is unknown")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise ValueError(f"the body is no {encoding}") from error
    if len(unpacked) > limit:
        raise BodyTooLargeError(f"the unpacked body has more than {limit} bytes")
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
