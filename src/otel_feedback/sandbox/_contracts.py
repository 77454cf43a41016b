"""The vendors' contracts as data: `openapi/*.json`, and what a body breaks in them.

The documents say in the sandbox's own words what the vendors publish; a test compares them with the
reference documents. What a vendor does beyond its published contract is code, in that vendor's module.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from jsonschema import (  # type: ignore[import-untyped]  # its types come apart, as types-jsonschema
    Draft202012Validator,
    FormatChecker,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jsonschema.protocols import Validator  # type: ignore[import-untyped]  # as above

    from ._model import Vendor

ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
"""26 characters of Crockford's base 32, capitals only (https://github.com/ulid/spec)."""

UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")

_FORMATS = FormatChecker(formats=())
_FORMATS.checks("date-time", raises=ValueError)(lambda value: not isinstance(value, str) or bool(read_time(value)))
_FORMATS.checks("uuid")(lambda value: not isinstance(value, str) or UUID.fullmatch(value) is not None)


def read_time(text: str) -> datetime:
    """Read ISO 8601; a time without a zone is UTC, as at the vendors."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read Z
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing in a body that the contract does not allow."""

    path: tuple[str | int, ...]
    message: str
    rule: str
    """The JSON Schema keyword that refused it."""

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path)) or 'body'}: {self.message}"


@cache
def document(vendor: Vendor) -> Mapping[str, Any]:
    """Answer a vendor's OpenAPI document."""
    text = (
        resources.files("otel_feedback.sandbox")
        .joinpath("openapi")
        .joinpath(f"{vendor}.json")
        .read_text(encoding="utf-8")
    )
    loaded: Mapping[str, Any] = json.loads(text)
    return loaded


def body_violations(vendor: Vendor, method: str, template: str, body: Any) -> list[Violation]:
    """Say what a body breaks, the most telling first."""
    validator = _body_validator(vendor, method.lower(), template)
    errors = sorted(validator.iter_errors(body), key=lambda error: [str(part) for part in error.absolute_path])
    return [Violation(tuple(e.absolute_path), _short(e.message), str(e.validator)) for e in errors]


def is_uuid(text: str) -> bool:
    """Say whether a path parameter has the format `uuid`."""
    return UUID.fullmatch(text) is not None


@cache
def _body_validator(vendor: Vendor, method: str, template: str) -> Validator:
    whole = document(vendor)
    content = whole["paths"][template][method]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    return Draft202012Validator({"allOf": [schema], "components": whole["components"]}, format_checker=_FORMATS)


def _short(message: str) -> str:
    """Keep a message from repeating a whole body."""
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else message[:MAX_MESSAGE_CHARACTERS] + "…"


MAX_MESSAGE_CHARACTERS = 300
"""As much of jsonschema's message as a person reads; it quotes the value that it refused."""
