"""HTTP without I/O in the exporters: they yield requests and receive responses; this file drives them.

In the manner of `httpx.Auth.auth_flow`. Only `HTTPFeedbackExporter.export` touches the network.
"""

from __future__ import annotations

import email.utils
import os
import re
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timezone
from typing import Any, TypeVar

import httpx
import pydantic_core
from opentelemetry import context

# The one place that OpenTelemetry offers for it: its own OTLP exporters import this name too.
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

from otel_feedback._record import FeedbackRecord, Part
from otel_feedback._time import NANOS_PER_MILLI, Clock, SystemClock
from otel_feedback.exceptions import ConfigurationError
from otel_feedback.exporters import (
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    Success,
    Unclear,
)
from otel_feedback.exporters._checks import check_base_url, check_millis, check_text, native_adapter

T = TypeVar("T")

# Enough for every documented answer; more is not read.
MAX_ANSWER_BYTES = 1024 * 1024
# An answer's text goes into a dead letter's reason as far as a person reads.
MAX_REASON_CHARS = 300
# A run of characters this long that stands in a vendor's text and in what was said is no coincidence.
QUOTE_CHARS = 12
# How long one export may go on beginning requests: with the last one it is over well before a lease runs out.
MAX_EXPORT_MILLIS = 60_000

# Before any of these a vendor has seen nothing of a request.
NOTHING_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)

# Marks a request that sends nothing of a judgement.
LOOK_UP = "otel_feedback.look_up"

REQUEST_ID_HEADERS = ("x-bt-internal-trace-id", "x-request-id", "x-amzn-requestid", "cf-ray")


class NoAnswer(Exception):  # noqa: N818 (thrown into an exchange, never at a user)
    """There was no answer; `result` says whether the request may have been applied."""

    def __init__(self, result: RetryableFailure | Unclear) -> None:
        super().__init__(result.reason)
        self.result = result


Exchange = Generator[httpx.Request, httpx.Response, T]


# --- what an answer means ----------------------------------------------------------------------------------------

# Statuses by whom they concern. What is not listed: 2xx is a success, 3xx concerns the destination (a redirect is
# never followed with credentials), other 4xx the item, other 5xx may have been applied.
RETRYABLE = frozenset({408, 425, 429})
DESTINATION = frozenset({401, 402, 403, 404, 405, 407, 410, 421, 501, 505})


PAGE_HINT = "a web page, not the API: is the base URL right, and does a proxy want a login?"
PACKED_HINT = (
    "it came packed, which nobody asked for, in a way that cannot be read, so that it may be a web page: is the base "
    "URL right, and is there a proxy?"
)
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)
# The extension of a response whose body is there and could not be unpacked.
_PACKED = "otel_feedback.packed"


def is_page(response: httpx.Response) -> bool:
    """Tell whether an answer is a web page, by its type or by how it begins, or may be one that cannot be read."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if _PACKED in response.extensions:
        # Nobody reads more of a success than that it is the API's.
        return not (kind == "application/json" or kind.endswith("+json"))
    return kind in ("text/html", "application/xhtml+xml") or _PAGE.match(response.content) is not None


def result_of(response: httpx.Response, *, now_unix_nano: int, hint: str = "", message: str = "") -> Result:
    """Read a response as a result; a vendor's exporter asks first for the statuses that mean something else there.

    A web page is no vendor's answer, and delivered nothing: a wrong base URL, or a proxy that wants a login, gave it.
    Neither is what cannot be told from one.

    `hint` is in our words and stands in every reason. `message` is in the vendor's and is left out where the
    destination is concerned: that is when vendors quote keys, whole, masked or in part.
    """
    status = response.status_code
    if response.is_success and is_page(response):
        return PauseDestination(reason_of(response, PACKED_HINT if _PACKED in response.extensions else PAGE_HINT))
    if not response.is_success and (status in DESTINATION or status < 400):
        return PauseDestination(reason_of(response, hint))
    reason = reason_of(response, f"{hint} {message}".strip())
    if response.is_success:
        return Success(reason)
    if status in RETRYABLE:
        return RetryableFailure(reason, retry_after_millis(response, now_unix_nano))
    if status < 500:
        return PermanentFailure(reason)
    return Unclear(reason, retry_after_millis(response, now_unix_nano))


def reason_of(response: httpx.Response, hint: str = "") -> str:
    """Say what was answered: the status, the vendor's request id, a hint; never the body."""
    request_id = next((response.headers[name] for name in REQUEST_ID_HEADERS if name in response.headers), None)
    words = [f"HTTP {response.status_code}"]
    if request_id is not None:
        words.append(f"(request {_one_line(request_id)[:64]})")
    return " ".join(words) + (f": {hint[:MAX_REASON_CHARS]}" if hint else "")


def message_of(response: httpx.Response, name: str, part: Part, secrets: Iterable[str] = ()) -> str:
    """Read the text that a vendor gives with an error, on one line.

    One that quotes what was said, or a secret, is left out.
    """
    body = None if response.is_success else json_of(response)
    text = body.get(name) if isinstance(body, dict) else None
    if not isinstance(text, str):
        return ""
    line = _one_line(text)[:MAX_REASON_CHARS]
    record = part.record
    said = [part.body.get("value"), record.native, *(getattr(record, field) for field in record.said), *secrets]
    return "" if any(_quotes(line, words) for words in _texts(said)) else line


def retry_after_millis(response: httpx.Response, now_unix_nano: int) -> int | None:
    """Read `Retry-After` in both of its forms, seconds or a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        # A longer number is no wait that anybody means, and int() of thousands of digits raises.
        return int(text[:9]) * 1_000
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    # HTTP's dates are UTC; a zone of -0000, or none as in asctime's form, is read as a time without a zone.
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0, int(moment.timestamp() * 1_000) - now_unix_nano // NANOS_PER_MILLI)


def one_by_one(parts: Sequence[Part], deliver: Callable[[Part], Exchange[Result]]) -> Exchange[Sequence[Result]]:
    """Deliver parts one after the other, until the destination does not answer or asks for a pause."""
    results: list[Result] = []
    for part in parts:
        try:
            result = yield from deliver(part)
        except NoAnswer as silence:
            result = silence.result
            results.append(result)
            break
        results.append(result)
        if isinstance(result, PauseDestination) or getattr(result, "retry_after_millis", None) is not None:
            break
    return results + [not_tried(results[-1])] * (len(parts) - len(results)) if results else []


def not_tried(last: Result) -> Result:
    """Say of a part that it waits because of the one before it."""
    if isinstance(last, PauseDestination):
        return last
    return RetryableFailure(
        f"not tried after: {last.reason}", getattr(last, "retry_after_millis", None), is_tried=False
    )


def _texts(value: object) -> Iterator[str]:
    """Find every text in a value, numbers as they are written included."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _quotes(line: str, said: str) -> bool:
    """Tell whether a line has a text in it, in whatever case, with whatever white space and punctuation."""
    return any(_has(read(line), read(said)) for read in (_folded, _words, _letters))


def _has(line: str, said: str) -> bool:
    """Tell whether a line has a text in it: a short one as words of its own, of a long one any run."""
    if len(said) <= QUOTE_CHARS:
        return said != "" and re.search(rf"(?<!\w){re.escape(said)}(?!\w)", line) is not None
    return any(line[start : start + QUOTE_CHARS] in said for start in range(len(line) - QUOTE_CHARS + 1))


def _folded(text: str) -> str:
    """Write a text without regard to case, on one line."""
    return _one_line(text).casefold()


def _words(text: str) -> str:
    """Write only the words of a text."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _letters(text: str) -> str:
    """Write the words of a text as one."""
    return _words(text).replace(" ", "")


def _one_line(text: str) -> str:
    """Write a text on one line, without control characters: it comes from outside and goes into a log."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


# --- the driver --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HTTPOptions:
    """How an exporter speaks HTTP.

    `timeout_millis` limits each wait (connect, write, read); of an answer that drips no more is read when
    `total_timeout_millis` have gone since its request. `transport` is httpx's, for tests and for proxies of one's own.
    """

    timeout_millis: int = 10_000
    total_timeout_millis: int = 30_000
    transport: httpx.BaseTransport | None = None
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        check_millis(self.timeout_millis, "timeout_millis")
        check_millis(self.total_timeout_millis, "total_timeout_millis")


class HTTPFeedbackExporter:
    """What every HTTP exporter shares: subclass it and write `parts` and `exchange`, both without any I/O.

    Args:
        name: how users route to it and how its deliveries are kept.

        base_url: where the vendor is.

        options: timeouts and transport.
    """

    exports_unsampled = False
    # The fields that `native` may set, as a `TypedDict`; none, where an exporter takes no native fields.
    native_type: type | None = None
    _api_key: str | None = None

    def __init__(self, *, name: str, base_url: str, options: HTTPOptions | None = None) -> None:
        self.name = check_text(name, "name")
        self.base_url = check_base_url(base_url, name)
        if options is not None and not isinstance(options, HTTPOptions):
            raise ConfigurationError(f"options must be HTTPOptions, not {type(options).__name__}", setting="options")
        self._options = options or HTTPOptions()
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._pid = os.getpid()

    def __repr__(self) -> str:
        """Name the exporter and where it sends."""
        return f"<{type(self).__name__} name={self.name!r} base_url={self.base_url!r}>"

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of every request, authorization included."""
        return {}

    @property
    def now_unix_nano(self) -> int:
        """The time of day."""
        return self._options.clock.time_unix_nano()

    @property
    def span_attributes(self) -> Mapping[str, str]:
        """What capture sets on its own spans for this destination."""
        return {}

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """Say what is to be sent for a record."""
        raise NotImplementedError

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        """Yield requests, receive responses, and return one result for each part."""
        raise NotImplementedError

    def request(self, method: str, path: str, body: object = None, **params: str) -> httpx.Request:
        """Build a request to this vendor."""
        # Not packed, since a small answer could unpack to one that is larger than memory.
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "otel-feedback",
            **self.headers,
        }
        if body is None:
            return httpx.Request(method, f"{self.base_url}{path}", params=params or None, headers=headers)
        headers["content-type"] = "application/json"
        return httpx.Request(method, f"{self.base_url}{path}", content=pydantic_core.to_json(body), headers=headers)

    def look_up(self, method: str, path: str, body: object = None, **params: str) -> httpx.Request:
        """Build a request that only asks something before anything is sent."""
        request = self.request(method, path, body, **params)
        request.extensions = {**request.extensions, LOOK_UP: True}
        return request

    def result(self, response: httpx.Response, hint: str = "", message: str = "") -> Result:
        """Read a response by the table that all vendors share; a vendor's own words are a `message`, never a hint."""
        return result_of(response, now_unix_nano=self.now_unix_nano, hint=hint, message=message)

    def message(self, response: httpx.Response, name: str, part: Part) -> str:
        """Read the text that a vendor gives with an error, unless it quotes what was said, or the key."""
        # The last word of a header: "Bearer" and "Basic" are no secrets.
        sent = (value.rpartition(" ")[2] for value in self.headers.values())
        return message_of(response, name, part, secrets=[self._api_key or "", *sent])

    def check_place(self) -> None:
        """Refuse to send where it is not known where to, as without a project; by default it is known.

        Raises:
            ConfigurationError: saying what to set.
        """

    def start(self) -> None:
        """Make ready to send, and load all that this takes: a process that is forked meanwhile would wait for ever."""
        if self.native_type is not None:
            native_adapter(self.native_type).validate_python({}, strict=True)
        self._warm_client()

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        """Send parts; one result for each. Where an exchange lets `NoAnswer` pass, that is the result of them all."""
        client = self._warm_client()
        token = context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            return self._drive(self.exchange(parts), client)
        except NoAnswer as silence:
            return [silence.result] * len(parts)
        finally:
            context.detach(token)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 (nothing to wait for)
        """Answer true: nothing is buffered here."""
        return True

    def shutdown(self) -> None:
        """Close the connections; a later export opens new ones."""
        self._forget_parent()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _drive(self, exchange: Exchange[T], client: httpx.Client) -> T:
        """Send what an exchange yields until it returns."""
        last_nano = self._options.clock.monotonic_nano() + MAX_EXPORT_MILLIS * NANOS_PER_MILLI
        try:
            request = next(exchange)
            while True:
                try:
                    response = self._send(client, request, last_nano)
                except NoAnswer as silence:
                    request = exchange.throw(silence)
                else:
                    request = exchange.send(response)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _send(self, client: httpx.Client, request: httpx.Request, last_nano: int) -> httpx.Response:
        """Send one request, if it is not too late to begin one, and read its answer."""
        now_nano = self._options.clock.monotonic_nano()
        if now_nano > last_nano:
            raise NoAnswer(RetryableFailure("this export took too long already", is_tried=False))
        deadline_nano = now_nano + self._options.total_timeout_millis * NANOS_PER_MILLI
        # Older httpx (before 0.25) gives a request that was built by hand no timeout at all.
        request.extensions = {"timeout": client.timeout.as_dict(), **request.extensions}
        response = self._begin(client, request)
        try:
            body = self._read(response, deadline_nano)
            return httpx.Response(
                response.status_code,
                headers=_without_coding(response.headers),
                content=body or b"",
                extensions={_PACKED: True} if body is None else None,
            )
        finally:
            response.close()

    def _begin(self, client: httpx.Client, request: httpx.Request) -> httpx.Response:
        """Send a request up to the head of its answer, and translate httpx's errors, here and nowhere else.

        The errors themselves are left behind: httpx quotes an ill-formed header in their texts, key included.
        """
        try:
            return client.send(request, stream=True)
        except httpx.RequestError as error:
            kind = type(error)
        if issubclass(kind, NOTHING_SENT):
            raise NoAnswer(RetryableFailure(f"no connection ({kind.__name__})"))
        raise NoAnswer(Unclear(f"no answer ({kind.__name__})"))

    def _read(self, response: httpx.Response, deadline_nano: int) -> bytes | None:
        """Read an answer's body as far as it comes, is small enough and in time: its status stands all the same.

        `None` is a body that nobody here can unpack.
        """
        if response.is_stream_consumed:  # a transport of somebody's own has read it already
            return response.content[:MAX_ANSWER_BYTES]
        body = b""
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES or self._options.clock.monotonic_nano() > deadline_nano:
                    break
        except httpx.RequestError:
            pass
        return _decoded(body[:MAX_ANSWER_BYTES], response.headers.get("content-encoding", "identity").strip().lower())

    def _warm_client(self) -> httpx.Client:
        """Answer this process's client."""
        self._forget_parent()
        with self._lock:
            if self._client is None:
                seconds = self._options.timeout_millis / 1_000
                try:
                    self._client = httpx.Client(
                        timeout=seconds,
                        transport=self._options.transport,
                        follow_redirects=False,
                        event_hooks={"response": [_forget_location]},
                    )
                except Exception as error:  # noqa: BLE001 (httpx reads the environment; its text may have a password)
                    kind = type(error).__name__
                else:
                    return self._client
                raise ConfigurationError(
                    f"{self.name} cannot make its HTTP client ({kind}): is one of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
                    "NO_PROXY or SSL_CERT_FILE wrong? socks5:// needs httpx[socks]"
                )
            return self._client

    def _forget_parent(self) -> None:
        """In a forked child, leave the parent its connections, and its lock, which a thread may have held."""
        if self._pid != os.getpid():
            # Not closed: a thread of the parent's may have held the pool's lock too. Collecting it closes only what
            # this process has of the connections, without a word to the vendor.
            self._lock, self._client, self._pid = threading.Lock(), None, os.getpid()


def json_of(response: httpx.Response) -> Any:
    """Read a body as JSON; what is none is `None`."""
    try:
        return pydantic_core.from_json(response.content)
    except ValueError:
        return None


def _decoded(body: bytes, coding: str) -> bytes | None:
    """Unpack an answer that came packed although none was asked for so, as far as the cap; `None` where that fails.

    What was packed twice stays so: nobody means that well (RFC 9110, section 8.4, allows it).
    """
    if body == b"" or coding in ("", "identity"):
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        return None
    try:
        # 32 more than the largest window: the header tells whether it is gzip or zlib.
        return zlib.decompressobj(zlib.MAX_WBITS + 32).decompress(body, MAX_ANSWER_BYTES)
    except zlib.error:
        return None


def _without_coding(headers: httpx.Headers) -> list[tuple[bytes, bytes]]:
    """Drop the headers that say how the body was coded: it has been decoded.

    As bytes: a header's text need not be ASCII (RFC 9110, section 5.5).
    """
    return [item for item in headers.raw if item[0].lower() not in (b"content-encoding", b"content-length")]


def _forget_location(response: httpx.Response) -> None:
    """Drop where a redirect leads: none is followed, and httpx would fail at a place that it cannot read."""
    response.headers.pop("location", None)
