"""The feedback route without any I/O: what each request is answered. The adapters around it know a framework each.

A request names its call by a token, or, where the app says whose it is, by the app's own key. Answers are short and
repeat nothing of what was sent.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pydantic_core

from otel_feedback._api import get_feedback_provider
from otel_feedback._record import Feedback
from otel_feedback._time import Clock, SystemClock
from otel_feedback.exceptions import (
    ConfigurationError,
    FeedbackError,
    InvalidFeedbackError,
    InvalidTokenError,
    UnknownTargetError,
)
from otel_feedback.web._limits import Limiter, RateLimit

if TYPE_CHECKING:
    from otel_feedback._record import Receipt
    from otel_feedback.provider import FeedbackProvider

logger = logging.getLogger(__name__)

# What a browser may say. Who says it, and where it goes, is not for it to say.
SAID = frozenset({"name", "value", "scale", "comment", "correction", "tags", "id"})
FIELDS = SAID | {"token", "key"}
UUID_CHARS = 36
# Versions of UUIDs that nobody can guess; ours for a known user (8) can be worked out by who knows the user.
CHOSEN_VERSIONS = frozenset({4, 7})

# Deeper JSON than a person's correction ever is.
MAX_DEPTH = 32
METHODS = "GET, POST, DELETE, OPTIONS"
# The element for pages, which the route itself serves.
SCRIPT = "otel-feedback.js"
RETRY_SECONDS = 5
# A person who tries out every star, and an office behind one address.
PER_TOKEN, PER_ADDRESS = RateLimit(30, 60), RateLimit(300, 60)

_QUIET: Mapping[str, str] = MappingProxyType({"cache-control": "no-store", "x-content-type-options": "nosniff"})


@dataclass(frozen=True, slots=True)
class WebRequest:
    """A request as the adapters hand it over.

    `path` is what stands below the mount, header names are in lower case, and `body` is `None` where it was longer than
    allowed. `native` is the framework's own request, for `authorize`.
    """

    method: str
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = b""
    address: str = ""
    native: Any = None


@dataclass(frozen=True, slots=True)
class WebResponse:
    """An answer: JSON, the script, or nothing."""

    status: int
    content: Mapping[str, Any] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The content as it is sent."""
        return self.content if isinstance(self.content, bytes) else _json(self.content)


class FeedbackEndpoint:
    """Answers what browsers ask of the feedback route.

    Args:
        provider: who records; by default the global one.

        authorize: for requests with the app's own `key` instead of a token: gets the framework's request and the key,
            and answers who judges, or `None` to refuse. Without it only tokens are taken: a key is no authorization.
            Pages of other origins are refused beforehand, as cookies come with their requests too; what it raises is
            the framework's to answer.

        allow_origins: the origins whose pages may ask (CORS), such as `https://chat.example`; `"*"` is any, with a
            token and not with a key. By default only pages of the route's own origin.

        max_body_bytes: of a longer body nothing is read.

        per_token: how often one token, or one key, may be used.

        per_address: how often one address may ask. In front of a proxy that is the proxy's, unless the server reads
            its headers.

        clock: what tells the time.
    """

    def __init__(
        self,
        *,
        provider: FeedbackProvider | None = None,
        authorize: Callable[[Any, str], str | None] | None = None,
        allow_origins: Sequence[str] = (),
        max_body_bytes: int = 65_536,
        per_token: RateLimit = PER_TOKEN,
        per_address: RateLimit = PER_ADDRESS,
        clock: Clock | None = None,
    ) -> None:
        if isinstance(allow_origins, str) or not all(isinstance(origin, str) for origin in allow_origins):
            raise ConfigurationError(
                "allow_origins is a list of origins, as in ['https://chat.example']", setting="allow_origins"
            )
        if authorize is not None and not callable(authorize):
            raise ConfigurationError("authorize is a function of the request and the key", setting="authorize")
        clock = clock or SystemClock()
        self.max_body_bytes = max_body_bytes
        self._provider = provider
        self._authorize = authorize
        self._origins = frozenset(origin.rstrip("/") for origin in allow_origins)
        self._by_token, self._by_address = Limiter(per_token, clock), Limiter(per_address, clock)

    def respond(self, request: WebRequest) -> WebResponse:
        """Answer a request; it never raises for what a browser sends."""
        answer = self._answer(request)
        kind = {"content-type": "application/json"} if isinstance(answer.content, Mapping) else {}
        return WebResponse(answer.status, answer.content, {**_QUIET, **kind, **self._cors(request), **answer.headers})

    def _answer(self, request: WebRequest) -> WebResponse:
        """Answer a request, but for the headers that every answer has."""
        if request.method == "OPTIONS":
            return WebResponse(204)
        if request.method == "GET" and request.path.strip("/") == SCRIPT:
            return _script(request.headers.get("if-none-match"))
        try:
            return self._done(request)
        except _Refused as refused:
            return refused.answer
        except FeedbackError as error:
            return _refusal(error).answer

    def _done(self, request: WebRequest) -> WebResponse:
        """Do what a request asks for."""
        if request.method not in ("POST", "DELETE"):
            raise _Refused(405, "method")
        if wait_seconds := self._by_address.wait_seconds(request.address):
            raise _Refused(429, "too_often", wait_seconds)
        receipt = self._record(request) if request.method == "POST" else self._retract(request)
        return WebResponse(202, _written(receipt))

    def _record(self, request: WebRequest) -> Receipt:
        """Record what a body says."""
        if request.path.strip("/"):
            raise _Refused(404, "unknown")
        said = _read(request)
        if said.keys() - FIELDS:
            raise _Refused(400, "unknown_field")
        target, user_id = self._target(request, said)
        if "id" in said:
            _check_chosen(said["id"])
        if user_id is not None:
            said = {name: value for name, value in said.items() if name != "id"}
        given: dict[str, Any] = {"name": "", **{name: said[name] for name in SAID & said.keys()}, **target}
        (receipt,) = self._feedback.record_many([Feedback(**given, user_id=user_id)])
        return receipt

    def _retract(self, request: WebRequest) -> Receipt:
        """Take back the judgement whose id stands in the path."""
        target, user_id = self._target(request, _read(request) if request.body != b"" else {})
        call = target["target"] if "target" in target else self._feedback.handle_for_key(target["key"])
        return self._feedback.retract(request.path.strip("/"), target=call, user_id=user_id)

    def _target(self, request: WebRequest, said: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
        """Find which call a request may judge, by token or key, and as whom."""
        token, key = said.get("token"), said.get("key")
        if token is None and key is None:  # beside a key the header holds what the app itself asks for
            token = _bearer(request)
        if not all(given is None or isinstance(given, str) for given in (token, key)):
            raise _Refused(400, "malformed")
        if token is not None and key is not None:
            raise _Refused(400, "token_and_key")
        if wait_seconds := self._by_token.wait_seconds(_digest(token or key)):
            raise _Refused(429, "too_often", wait_seconds)
        if token is not None:
            return {"target": token}, self._feedback.verify_token(token).user_id
        if key is None or self._authorize is None:
            raise InvalidTokenError("there is no token", reason="no_token")
        if self._is_foreign(request):
            raise InvalidTokenError("the request came from a page of another origin", reason="origin")
        user_id = self._authorize(request.native, key)
        if not isinstance(user_id, str):
            raise InvalidTokenError("the key is not the caller's", reason="not_authorized")
        return {"key": key}, user_id

    @property
    def _feedback(self) -> FeedbackProvider:
        return self._provider or get_feedback_provider()

    def _is_foreign(self, request: WebRequest) -> bool:
        """Tell whether a page of an origin that is not allowed asks, perhaps with the person's cookie.

        Only where the app says who somebody is does it matter: another site's page knows no token. Source:
        https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header; a browser that does not send it sends an origin.
        """
        origin = request.headers.get("origin")
        if origin in self._origins:  # by name: "*" is for pages that bring a token
            return False
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        return origin is not None and origin.partition("://")[2] != request.headers.get("host")

    def _cors(self, request: WebRequest) -> Mapping[str, str]:
        """Say whether a page of the origin may read the answer (https://fetch.spec.whatwg.org/#http-cors-protocol)."""
        origin = request.headers.get("origin")
        if not self._origins or origin is None:
            return {}
        if not self._origins & {"*", origin}:
            return {"vary": "origin"}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": "authorization, content-type",
            "access-control-max-age": "600",
            "vary": "origin",
        }


class _Refused(Exception):  # noqa: N818 (it is an answer)
    """A request is refused: with a status, a word, perhaps the field that is wrong or how long to wait."""

    def __init__(self, status: int, error: str, wait_seconds: int = 0, field: str | None = None) -> None:
        super().__init__(error)
        headers = {
            401: {"www-authenticate": "Bearer"},
            405: {"allow": METHODS},
            429: {"retry-after": str(wait_seconds)},
            503: {"retry-after": str(wait_seconds)},
        }
        named = {} if field is None else {"field": field}
        self.answer = WebResponse(status, {"error": error, **named}, headers.get(status, {}))


def _refusal(error: FeedbackError) -> _Refused:
    """Say what the pipeline's errors are to a browser; what is not its fault is told to the operator."""
    if isinstance(error, InvalidTokenError):
        return _Refused(401, error.reason)
    if isinstance(error, UnknownTargetError):
        return _Refused(404, "unknown")
    if isinstance(error, InvalidFeedbackError):
        # An id of somebody else's judgement; whatever else is wrong is wrong by itself.
        is_taken = error.field == "id"
        return _Refused(409 if is_taken else 400, "invalid", field=error.field if error.field in FIELDS else None)
    logger.error("feedback that came by the web could not be taken: %s", error)
    return _Refused(503, "unavailable", RETRY_SECONDS)


def _read(request: WebRequest) -> Mapping[str, Any]:
    """Read a body: a JSON object, not too long and not too deep, whatever its content type says.

    `navigator.sendBeacon` sends text as `text/plain`, for which no browser asks beforehand.
    """
    if request.body is None:
        raise _Refused(413, "too_long")
    try:
        said = pydantic_core.from_json(request.body, allow_inf_nan=False)
    except ValueError:
        raise _Refused(400, "malformed") from None
    if not isinstance(said, dict) or _is_deeper(said, MAX_DEPTH):
        raise _Refused(400, "malformed")
    return said


def _is_deeper(value: Any, depth: int) -> bool:
    """Tell whether JSON is nested deeper than some levels."""
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(each, depth - 1) for each in inner)


def _bearer(request: WebRequest) -> str | None:
    """Read a token from the header (RFC 6750, section 2.1)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _digest(text: str | None) -> bytes:
    """Stand for a token or a key of any length, where they are counted; a header's bytes need be no text."""
    return hashlib.sha256((text or "").encode(errors="surrogatepass")).digest()


def _check_chosen(given: object) -> None:
    """Refuse an id that a browser may not choose: it has to be a secret."""
    try:
        version = uuid.UUID(given).version if isinstance(given, str) and len(given) == UUID_CHARS else None
    except ValueError:
        version = None
    if version not in CHOSEN_VERSIONS:
        raise _Refused(400, "invalid", field="id")


def _written(receipt: Receipt) -> Mapping[str, Any]:
    """Write a receipt, without the vendors' reasons."""
    return {
        "id": receipt.id,
        "durability": receipt.durability,
        "deliveries": {name: delivery.state for name, delivery in receipt.deliveries.items()},
        "not_carried": dict(receipt.not_carried),
    }


@functools.cache
def _script_and_tag() -> tuple[bytes, str]:
    """Read the element, and name this version of it."""
    script = (importlib.resources.files("otel_feedback.web") / "static" / SCRIPT).read_bytes()
    return script, f'"{hashlib.sha256(script).hexdigest()[:16]}"'


def _script(known: str | None) -> WebResponse:
    """Serve the element; a browser asks each time whether it is still this one (RFC 9110, section 13.1.2)."""
    script, tag = _script_and_tag()
    headers = {"content-type": "text/javascript; charset=utf-8", "cache-control": "no-cache", "etag": tag}
    return WebResponse(304, None, headers) if known == tag else WebResponse(200, script, headers)


def _json(content: object) -> bytes:
    """Write JSON, or nothing."""
    return b"" if content is None else pydantic_core.to_json(content)
