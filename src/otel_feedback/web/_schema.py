"""What the route takes and answers, as JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

FEEDBACK: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "token": {"type": "string", "description": "what issue_token() made; or in the header, as a Bearer token"},
        "key": {"type": "string", "description": "the app's own id of the answer, where the app allows it"},
        "name": {"type": "string", "minLength": 1, "maxLength": 256},
        "value": {
            "description": "a thumb, a number on a scale, a label or labels",
            "anyOf": [
                {"type": "boolean"},
                {"type": "number"},
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ],
        },
        "scale": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        "comment": {"type": "string"},
        "correction": {"description": "what the answer should have been"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "id": {"type": "string", "format": "uuid", "description": "a random UUID; the same one changes it"},
    },
}

RECEIPT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "durability", "deliveries", "not_carried"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "durability": {"type": "string", "enum": ["disk", "process", "memory"]},
        "deliveries": {"type": "object", "additionalProperties": {"type": "string"}},
        "not_carried": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
        },
    },
}

ERRORS: Mapping[int, str] = MappingProxyType(
    {
        400: "no feedback: `error` says what is wrong, `field` where",
        401: "no token that grants it: `error` says why",
        404: "the answer, or the judgement, is not known",
        409: "the id is that of another judgement",
        413: "the body is too long",
        429: "too often: `Retry-After` says when to come again",
        503: "it cannot be taken now: `Retry-After` says when to come again",
    }
)
