"""What exporters are told, checked: the arguments of their constructors, and the vendors' own fields of a judgement.

This file knows no vendor and no HTTP client.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import pydantic

from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError

# --- native fields -----------------------------------------------------------------------------------------------


# A text that says something; it is sent as it is given.
Text = Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1)]


def native_fields(record: FeedbackRecord, name: str, published: type) -> Mapping[str, Any]:
    """Answer what the application sets of a vendor's own fields, checked against the published types.

    Args:
        record: whose `native` it is.

        name: the exporter's.

        published: a `TypedDict` of the fields that may be set.

    Raises:
        InvalidFeedbackError: naming the field that is unknown or of another type.
    """
    given = record.native.get(name, {})
    if not given:
        return {}
    known = sorted(published.__annotations__)
    unknown = next((field for field in given if field not in known), None)
    if unknown is not None:
        raise InvalidFeedbackError(
            f"native[{name!r}] cannot set {unknown}; it can set {', '.join(known)}", field=f"native.{name}.{unknown}"
        )
    try:
        native_adapter(published).validate_python(dict(given), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidFeedbackError(
            f"native[{name!r}] cannot set {field}: {first['msg']}", field=f"native.{name}.{field}"
        ) from None
    return given


@functools.cache
def native_adapter(published: type) -> pydantic.TypeAdapter[Any]:
    """Build the validator of a vendor's own fields, once."""
    return pydantic.TypeAdapter(published)


# --- checks of a constructor's arguments -------------------------------------------------------------------------


def check_text(given: object, name: str) -> str:
    """Check a text that has to say something.

    Raises:
        ConfigurationError: naming the argument.
    """
    if not isinstance(given, str) or not given.strip():
        raise ConfigurationError(f"{name} must be a string that is not empty", setting=name)
    return given


def text_or(given: object, name: str, otherwise: str) -> str:
    """Take a text that was given, else what stands in for it.

    Raises:
        ConfigurationError: naming the argument, never its value, which may be a key.
    """
    if given is not None and not isinstance(given, str):
        raise ConfigurationError(f"{name} must be a string, not {type(given).__name__}", setting=name)
    return given or otherwise


def check_names(given: object, name: str) -> frozenset[str]:
    """Check several names; one bare string would be taken for a name a letter.

    Raises:
        ConfigurationError: naming the argument.
    """
    if isinstance(given, str) or not isinstance(given, Collection):
        raise ConfigurationError(f"{name} must be a sequence of names, as in {name}=('tone',)", setting=name)
    return frozenset(check_text(item, name) for item in given)


def check_choice(given: object, name: str, choices: Collection[str]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ConfigurationError: naming the argument.
    """
    if given not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}", setting=name)


def check_bool(given: object, name: str) -> None:
    """Refuse what is neither true nor false.

    Raises:
        ConfigurationError: naming the argument.
    """
    if not isinstance(given, bool):
        raise ConfigurationError(f"{name} must be True or False", setting=name)


def check_millis(given: object, name: str) -> None:
    """Refuse what is no number of milliseconds.

    Raises:
        ConfigurationError: naming the argument.
    """
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ConfigurationError(f"{name} must be a whole number of milliseconds, 0 or more", setting=name)


def check_offers(given: object, name: str, method: str) -> None:
    """Refuse what is neither nothing nor an object with the method that is needed.

    Raises:
        ConfigurationError: naming the argument.
    """
    if given is not None and not callable(getattr(given, method, None)):
        raise ConfigurationError(f"{name} must have a method {method}()", setting=name)


def check_base_url(url: object, whose: str = "an exporter") -> str:
    """Check a base URL and take off its last slash.

    Raises:
        ConfigurationError: when it is no http(s) URL, or has a user, a query or a fragment; it does not contain the
            URL, in which somebody may have put a password.
    """
    stripped = url.strip().rstrip("/") if isinstance(url, str) else ""
    if not _is_base_url(stripped):
        raise ConfigurationError(
            f"a base URL is http(s)://host[:port][/path], without user, query or fragment; that of {whose} is not",
            setting="base_url",
        )
    return stripped


def _is_base_url(url: str) -> bool:
    """Tell whether a text is a URL to which paths can be added."""
    if any(char in "?#\\" or char.isspace() or not char.isprintable() for char in url):
        return False
    try:
        found = urlsplit(url)
        # A port out of range, and a host that no resolver takes (RFC 1035, section 2.3.1), are errors here.
        has_port, host = found.port != 0, (found.hostname or "").encode("idna")
    except ValueError:
        return False
    return found.scheme in ("http", "https") and host != b"" and has_port and "@" not in found.netloc


def check_api_key(key: str | None, variable: str) -> str | None:
    """Strip a key and refuse one that no header can hold; nothing is no key.

    Raises:
        ConfigurationError: which does not contain the key.
    """
    stripped = (key or "").strip()
    if not stripped:
        return None
    if not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise ConfigurationError(
            f"the key from {variable} or api_key= has characters that no HTTP header can hold",
            setting=variable,
        )
    return stripped


def require_api_key(key: str | None, name: str, variable: str) -> None:
    """Refuse to deliver without a key.

    Raises:
        ConfigurationError: naming the variable to set.
    """
    if key is None:
        raise ConfigurationError(
            f"the exporter {name!r} has no key: set {variable} or give api_key=; a process that only records needs "
            "none with OTEL_FEEDBACK_DELIVERY=none",
            setting=variable,
        )
