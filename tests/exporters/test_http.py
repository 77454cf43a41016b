from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from exporter_bench import (
    MEGABYTE,
    NOON,
    REFUSED,
    SECRET,
    STATUSES,
    UNCLEAR,
    PlainExporter,
    Step,
    Vendor,
    answer,
    close,
    drip,
    hang,
    play,
    record,
    reset,
    running,
    say,
)
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider

from otel_feedback import BraintrustExporter, OrqExporter, Part, WeaveExporter
from otel_feedback._deliver import EXPORT_MILLIS, LEASE_MILLIS
from otel_feedback.exceptions import ConfigurationError
from otel_feedback.exporters import (
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    Skipped,
    Success,
    Unclear,
)
from otel_feedback.exporters._http import (
    MAX_ANSWER_BYTES,
    MAX_EXPORT_MILLIS,
    PACKED_HINT,
    PAGE_HINT,
    Exchange,
    HTTPFeedbackExporter,
    HTTPOptions,
    NoAnswer,
    json_of,
    message_of,
    one_by_one,
    reason_of,
    result_of,
    retry_after_millis,
)
from otel_feedback.testing import FakeClock

PARTS = PlainExporter().parts(record(comment="Spot on"))
THREE = [*PARTS, *PARTS, *PARTS]
PROJECT = "5a3c1f0e-8d5a-4d9f-9f6e-0b9a3a3b6f11"


class TestResults:
    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    def test_each_status_means_what_the_table_says(self, status: int, expected: type[Result]) -> None:
        """
        A status concerns the item, the destination, or nobody for long.
        """
        assert expected is type(result_of(answer(status), now_unix_nano=NOON))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0", 0),
            ("120", 120_000),
            (" 7 ", 7_000),
            ("Thu, 01 Jan 2026 00:01:00 GMT", 60_000),
            ("Thursday, 01-Jan-26 00:01:00 GMT", 60_000),
            ("Thu Jan  1 00:01:00 2026", 60_000),
            ("Thu, 01 Jan 2026 00:01:00 -0000", 60_000),
            ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
            ("9" * 5_000, 999_999_999_000),
            ("", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("5, 10", None),
            ("٣", None),
            ("Thu, 01 Jan 2026 00:01:00 +99999999999999999", None),
            ("1 Jan 99999999999 00:00:00 GMT", None),
        ],
    )
    def test_retry_after_is_read_in_both_forms(self, text: str, expected: int | None) -> None:
        """
        Retry-After is seconds or a date of HTTP's three forms, always in UTC; anything else is no wish.
        """
        response = httpx.Response(503, headers=[(b"retry-after", text.encode())])

        assert expected == retry_after_millis(response, NOON)

    def test_a_date_without_a_zone_is_utc_wherever_we_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        The clock on the wall here has nothing to do with it.
        """
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Asia/Tokyo")
            time.tzset()
            response = httpx.Response(503, headers={"retry-after": "Thu Jan  1 00:01:00 2026"})
            wish = retry_after_millis(response, NOON)
        time.tzset()

        assert 60_000 == wish

    def test_without_the_header_there_is_no_wish(self) -> None:
        """
        An answer without Retry-After leaves the wait to us.
        """
        assert RetryableFailure("HTTP 429") == result_of(answer(429), now_unix_nano=NOON)

    @given(text=st.text(st.characters(min_codepoint=32, max_codepoint=255)) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ .*"))
    def test_no_retry_after_can_do_harm(self, text: str) -> None:
        """
        Whatever a vendor writes there, it is read as nothing or as a wait that is not negative.
        """
        response = httpx.Response(503, headers=[(b"retry-after", text.encode("utf-8"))])

        assert (retry_after_millis(response, NOON) or 0) >= 0

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    def test_the_wish_is_kept_with_the_result(self, status: int) -> None:
        """
        A result that may be tried again says how long the vendor wants us to wait.
        """
        result = result_of(answer(status, retry_after="3"), now_unix_nano=NOON)

        assert 3_000 == getattr(result, "retry_after_millis", None)

    @pytest.mark.parametrize(
        ("response", "expected"),
        [
            (answer(200), "HTTP 200"),
            (answer(400, {"error": "somebody@example.com"}), "HTTP 400"),
            (answer(500, x_request_id="req-1"), "HTTP 500 (request req-1)"),
            (answer(500, x_request_id="req-1", x_bt_internal_trace_id="bt-2"), "HTTP 500 (request bt-2)"),
            (answer(500, cf_ray="r" * 1_000), f"HTTP 500 (request {'r' * 64})"),
        ],
    )
    def test_a_reason_is_the_status_and_the_request_id(self, response: httpx.Response, expected: str) -> None:
        """
        A reason names the answer so that the vendor's support finds it, and has nothing of the body.
        """
        assert expected == reason_of(response)

    def test_a_hint_is_as_long_as_a_person_reads(self) -> None:
        """
        A hint of any length is cut.
        """
        assert f"HTTP 400: {'x' * 300}" == reason_of(answer(400), "x" * 5_000)

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (status, "HTTP {}: ours" if kind is PauseDestination else "HTTP {}: ours theirs")
            for status, kind in STATUSES.items()
        ],
    )
    def test_a_pause_has_no_word_of_the_vendors(self, status: int, expected: str) -> None:
        """
        Where the destination is concerned the reason is in our words only; elsewhere the vendor's follow them.
        """
        result = result_of(answer(status), now_unix_nano=NOON, hint="ours", message="theirs")

        assert expected.format(status) == result.reason

    @pytest.mark.parametrize(
        ("content", "expected"),
        [(b'{"a": 1}', {"a": 1}), (b"", None), (b"<html>", None), (b"\xff\xfe", None), (b"[" * 100_000, None)],
    )
    def test_what_is_no_json_is_read_as_nothing(self, content: bytes, expected: object) -> None:
        """
        A body that cannot be read is `None`, whatever is wrong with it.
        """
        assert expected == json_of(answer(200, content))


class TestPages:
    """A web page is no vendor's answer."""

    PAGES = (
        answer(200, b"anything", content_type="text/html; charset=utf-8"),
        answer(201, b"", content_type="application/xhtml+xml"),
        answer(200, b"<!DOCTYPE html><title>Sign in</title>"),
        answer(200, b"\xef\xbb\xbf\r\n <HTML>"),
        answer(200, b"<html lang='en'>", content_type="text/plain"),
    )

    @pytest.mark.parametrize("page", PAGES)
    def test_a_page_delivered_nothing(self, page: httpx.Response) -> None:
        """
        Where a base URL is wrong, or a proxy wants a login, the judgement stays, and everybody is told.
        """
        result = result_of(page, now_unix_nano=NOON, hint="of a vendor")

        assert PauseDestination(f"HTTP {page.status_code}: {PAGE_HINT}") == result
        assert PAGE_HINT.startswith("a web page, not the API: ")

    @pytest.mark.parametrize(
        "said",
        [b"", b"{}", b'{"text": "<html>"}', b"<answer/>", b"<htmlx>", b"OK", b"\xff\xfe"],
    )
    def test_any_other_answer_is_one(self, said: bytes) -> None:
        """
        What is no page is read by its status, whatever it says.
        """
        assert Success("HTTP 200") == result_of(answer(200, said), now_unix_nano=NOON)

    @pytest.mark.parametrize(("status", "kind"), [(400, PermanentFailure), (503, Unclear), (429, RetryableFailure)])
    def test_a_page_with_an_error_is_the_error(self, status: int, kind: type[Result]) -> None:
        """
        Gateways answer errors with pages: the status says what they mean.
        """
        assert kind is type(result_of(answer(status, b"<html>", content_type="text/html"), now_unix_nano=NOON))

    @pytest.mark.parametrize("coding", ["br", "zstd", "gzip"])
    def test_a_page_in_any_coding_is_seen(self, vendor: Vendor, coding: str) -> None:
        """
        Its type tells, also where nobody here can unpack it.
        """
        vendor.script(say(200, b"\x00\x01", content_encoding=coding, content_type="text/html"))
        with running(PlainExporter(vendor.url)) as exporter:
            (result,) = exporter.export(exporter.parts(record(comment="c")))

        assert PauseDestination is type(result)

    @pytest.mark.parametrize(
        ("content", "coding"),
        [
            (b"\x0b\x02\x80{}\x03", "br"),
            (b"(\xb5/\xfd\x04\x00\x11\x00\x00{}", "zstd"),
            (b"no gzip", "gzip"),
            (gzip.compress(gzip.compress(b"{}")), "gzip, gzip"),
            (gzip.compress(b"\x0b\x02\x80{}\x03"), "br, gzip"),
            (b"{}", "aes128gcm"),
        ],
    )
    @pytest.mark.parametrize("status", [200, 201])
    def test_what_cannot_be_unpacked_is_no_delivery(
        self, vendor: Vendor, status: int, content: bytes, coding: str
    ) -> None:
        """
        A success that came packed in a way that nobody asked for may be a login's page: the judgement stays.
        """
        vendor.script(say(status, content, content_encoding=coding))
        with running(PlainExporter(vendor.url)) as exporter:
            results = exporter.export(PARTS)

        assert [PauseDestination(f"HTTP {status}: {PACKED_HINT}")] == results

    @pytest.mark.parametrize(
        "kind", ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"]
    )
    def test_a_packed_success_of_the_apis_type_stands(self, vendor: Vendor, kind: str) -> None:
        """
        What says of itself that it is JSON is the API's, and no more of a success is read than its status.
        """
        vendor.script(say(200, b"\x0b\x02\x80{}\x03", content_encoding="br", content_type=kind))
        with running(PlainExporter(vendor.url)) as exporter:
            assert [Success("HTTP 200")] == exporter.export(PARTS)

    @pytest.mark.parametrize(
        ("content", "coding", "length"),
        [
            (b"", "br", 0),
            (b"{}", "identity", 2),
            (b"{}", "", 2),
            (gzip.compress(b"{}", mtime=0), " GZIP ", 2),
            (gzip.compress(b"{}", mtime=0), "x-gzip", 2),
            (zlib.compress(b"{}"), "deflate", 2),
            (gzip.compress(bytes(range(256)), mtime=0)[:-40], "gzip", None),
        ],
    )
    def test_what_can_be_unpacked_is_an_answer(
        self, vendor: Vendor, content: bytes, coding: str, length: int | None
    ) -> None:
        """
        Nothing is as good as unpacked, and of an answer that broke off what came is read.
        """
        vendor.script(say(200, content, content_encoding=coding))
        with running(_Reader(vendor.url)) as exporter:
            results = exporter.export(PARTS)

        assert [Success("HTTP 200")] == results
        assert length in (None, exporter.read[0])

    @pytest.mark.parametrize(("status", "kind"), [(400, PermanentFailure), (401, PauseDestination), (503, Unclear)])
    def test_an_error_stands_however_it_is_packed(self, vendor: Vendor, status: int, kind: type[Result]) -> None:
        """
        The status of an error says what it means.
        """
        vendor.script(say(status, b"\x0b\x02\x80{}\x03", content_encoding="br"))
        with running(PlainExporter(vendor.url)) as exporter:
            (result,) = exporter.export(PARTS)

        assert (kind, f"HTTP {status}") == (type(result), result.reason)

    @pytest.mark.parametrize(
        "made",
        [
            lambda url: OrqExporter("key", base_url=url),
            lambda url: OrqExporter("key", base_url=url, api="annotations"),
            lambda url: BraintrustExporter("project_name:chat", api_key="key", base_url=url),
            lambda url: BraintrustExporter(f"project_id:{PROJECT}", api_key="key", base_url=url),
            lambda url: WeaveExporter("acme/chat", api_key="key", base_url=url),
            lambda url: WeaveExporter("acme/chat", api_key="key", base_url=url, view="agents"),
        ],
    )
    @pytest.mark.parametrize("action", ["create", "replace", "retract"])
    @pytest.mark.parametrize(
        "step",
        [say(200, b"<!doctype html><title>Sign in</title>"), say(200, b"\x0b\x02\x80{}\x03", content_encoding="br")],
    )
    def test_no_vendor_takes_what_a_proxy_says_for_delivered(
        self, vendor: Vendor, made: Callable[[str], HTTPFeedbackExporter], action: Any, step: Step
    ) -> None:
        """
        Neither what is created, nor its change, nor its end is done by a proxy's page, read or unreadable.
        """
        vendor.script(step)
        with running(made(vendor.url)) as exporter:
            (part,) = exporter.parts(record(value=True))
            told = replace(part, action=action, replaces=part if action == "replace" else None)
            results = exporter.export([told])

        assert [PauseDestination] == [type(result) for result in results]
        assert vendor.requests

    @pytest.mark.parametrize(
        "made",
        [
            OrqExporter(),
            OrqExporter(api="annotations"),
            BraintrustExporter(f"project_id:{PROJECT}"),
            BraintrustExporter("project_name:chat"),
            BraintrustExporter(f"project_id:{PROJECT}", per_rater="child", check_rows=True),
            WeaveExporter("acme/chat"),
            WeaveExporter("acme/chat", view="agents"),
        ],
    )
    @pytest.mark.parametrize("action", ["create", "replace", "retract"])
    @pytest.mark.parametrize("status", [200, 404])
    def test_no_vendor_takes_a_page_for_delivered(self, made: HTTPFeedbackExporter, action: Any, status: int) -> None:
        """
        Neither a thumb nor its change nor its end counts as done by a page.
        """
        (part,) = made.parts(record(value=True))
        told = replace(part, action=action, replaces=part if action == "replace" else None)
        page = answer(status, b"<html>", content_type="text/html")
        _, results = play(made.exchange([told]), page)

        assert not any(isinstance(each, (Success, Skipped, PermanentFailure)) for each in results), results


class TestMessages:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"message": "property is not defined"}, "property is not defined"),
            ({"message": "two\nlines\x1b[31m"}, "two lines [31m"),
            ({"message": "x" * 1_000}, "x" * 300),
            ({"message": 7}, ""),
            ({"error": "another word"}, ""),
            (["no", "object"], ""),
            (b"no JSON", ""),
        ],
    )
    def test_a_vendors_own_words_are_one_short_line(self, body: object, expected: str) -> None:
        """
        The text of an error is read from one field, on one line, without control characters.
        """
        assert expected == message_of(answer(400, body), "message", PARTS[0])

    def test_a_success_has_no_message(self) -> None:
        """
        The body of a success is not read.
        """
        assert "" == message_of(answer(200, {"message": "submitted"}), "message", PARTS[0])

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ({"comment": "The capital is Paris"}, "cannot store 'The capital is Paris'"),
            ({"comment": "The capital of France is Paris"}, "input_value='The capital of ...e is Paris'"),
            ({"comment": "no"}, "'no' is too short"),
            ({"comment": "two\nlines of text here"}, "bad: two lines of text here"),
            ({"correction": {"deep": ["very secret answer"]}}, "very secret answer is not allowed"),
            ({"value": "off_topic"}, "unknown choice off_topic"),
            ({"value": ["spelling", "loud"]}, "unknown choice loud"),
            ({"value": 4, "scale": (1, 5)}, "4 is no string"),
            ({"value": True, "user_id": "u-42"}, "no such user u-42"),
            ({"value": True, "metadata": {"mail": "a@example.com"}}, "a@example.com was refused"),
            ({"value": True, "tags": ["vip"]}, "tag (vip) unknown"),
            ({"comment": "The capital is Paris"}, "cannot store THE CAPITAL IS PARIS"),
            ({"comment": "The capital is Paris"}, "cannot store The\u00a0 capital\tis Paris"),
            ({"comment": "The capital is Paris"}, "unknown: TheCapitalIsParis"),
            ({"comment": "It's Paris, not Lyon"}, "unknown: its_paris_not_lyon"),
            ({"comment": "Straße"}, "STRASSE is too short"),
            ({"comment": "Spot on"}, "bad: spot-on"),
            ({"comment": "Spot  on!"}, "bad: SPOT\nON"),
            ({"comment": "👍"}, "no emoji: 👍"),
        ],
    )
    def test_a_message_that_quotes_what_was_said_is_left_out(self, said: dict[str, Any], message: str) -> None:
        """
        A vendor's text that repeats a comment, a value, a user or metadata never becomes a reason.
        """
        part = PlainExporter().parts(record(**said))[0]

        assert "" == message_of(answer(400, {"message": message}), "message", part)

    def test_what_a_vendor_got_in_its_own_words_is_a_quotation(self) -> None:
        """
        A thumb is good or bad at orq: its text does not tell which it was.
        """
        part = OrqExporter().parts(record(value=True))[0]

        assert "" == message_of(answer(400, {"message": "unknown choice: good"}), "message", part)
        assert "unknown choice" == message_of(answer(400, {"message": "unknown choice"}), "message", part)

    @pytest.mark.parametrize(("message", "expected"), [("abcdefghijkl-", ""), ("abcdefghijk-", "abcdefghijk-")])
    def test_twelve_characters_of_a_long_text_are_a_quotation(self, message: str, expected: str) -> None:
        """
        A run that is shorter may be chance.
        """
        part = PlainExporter().parts(record(comment="abcdefghijklmnopqrstuvwxyz"))[0]

        assert expected == message_of(answer(400, {"message": message}), "message", part)

    def test_a_word_inside_another_is_no_quotation(self) -> None:
        """
        A short comment is looked for as words of its own.
        """
        part = PlainExporter().parts(record(comment="no"))[0]

        assert "trace not found" == message_of(answer(404, {"message": "trace not found"}), "message", part)

    @pytest.mark.parametrize("said", [{"metadata": {"page": ""}}, {"metadata": {"page": "…"}}])
    def test_what_has_no_words_hides_nothing(self, said: dict[str, Any]) -> None:
        """
        A text without a letter is found in no other text but one that has it.
        """
        part = PlainExporter().parts(record(comment="fine", **said))[0]

        assert "not found" == message_of(answer(400, {"message": "not found"}), "message", part)

    @pytest.mark.parametrize(
        "message",
        [
            f"Invalid API key: Bearer {SECRET}",
            f"Invalid API key: {SECRET.upper()}",
            f"Invalid API key: {SECRET[:14]}***",
            f"Invalid API key: ***{SECRET[-13:]}",
        ],
    )
    def test_a_message_that_quotes_the_key_is_left_out(self, message: str) -> None:
        """
        A vendor's text that repeats what a header held, or a run of it, never becomes a reason.
        """
        assert "" == PlainExporter().message(answer(400, {"message": message}), "message", PARTS[0])

    def test_the_name_of_a_scheme_is_no_secret(self) -> None:
        """
        A text that only speaks of bearers is kept.
        """
        said = "a Bearer token is needed"

        assert said == PlainExporter().message(answer(400, {"message": said}), "message", PARTS[0])


class TestOneByOne:
    def test_nothing_to_deliver_is_no_request(self) -> None:
        """
        No parts, no requests, no results.
        """
        assert ([], []) == play(one_by_one([], _post))

    def test_what_is_refused_does_not_stop_the_others(self) -> None:
        """
        A part that the vendor refuses, or may have applied, is followed by the next.
        """
        requests, results = play(one_by_one(THREE, _post), answer(400), answer(500), answer(200))

        assert [PermanentFailure("HTTP 400"), Unclear("HTTP 500"), Success("HTTP 200")] == results
        assert 3 == len(requests)

    @pytest.mark.parametrize(
        ("said", "first", "others"),
        [
            (answer(401), PauseDestination("HTTP 401"), PauseDestination("HTTP 401")),
            (
                answer(429, retry_after="9"),
                RetryableFailure("HTTP 429", 9_000),
                RetryableFailure("not tried after: HTTP 429", 9_000, is_tried=False),
            ),
            (
                answer(503, retry_after="9"),
                Unclear("HTTP 503", 9_000),
                RetryableFailure("not tried after: HTTP 503", 9_000, is_tried=False),
            ),
            (UNCLEAR, UNCLEAR.result, RetryableFailure(f"not tried after: {UNCLEAR.result.reason}", is_tried=False)),
            (REFUSED, REFUSED.result, RetryableFailure(f"not tried after: {REFUSED.result.reason}", is_tried=False)),
        ],
    )
    def test_a_destination_that_wants_peace_gets_it(
        self, said: httpx.Response | NoAnswer, first: Result, others: Result
    ) -> None:
        """
        After a pause, a wish to wait, or silence the parts that are left are not tried, and say so.
        """
        requests, results = play(one_by_one(THREE, _post), said)

        assert [first, others, others] == results
        assert 1 == len(requests)


class TestExport:
    def test_a_request_arrives_as_it_was_built(self, vendor: Vendor) -> None:
        """
        Body, path and headers are on the wire; the answer's status is the result.
        """
        with running(PlainExporter(f"{vendor.url}/base/")) as exporter:
            results = exporter.export(PARTS)

        request = vendor.requests[0]
        assert [Success("HTTP 200")] == results
        assert ("POST", "/base/feedback", b'{"comment":"Spot on"}') == (
            request.method,
            request.url.path,
            request.content,
        )
        assert ("application/json", f"Bearer {SECRET}", "otel-feedback") == (
            request.headers["content-type"],
            request.headers["authorization"],
            request.headers["user-agent"],
        )

    def test_parameters_go_into_the_query(self) -> None:
        """
        A request without a body has its parameters in the query, escaped.
        """
        request = PlainExporter().request("GET", "/v1/project", project_name="a b&c/ü")

        assert ("/v1/project", {"project_name": "a b&c/ü"}) == (request.url.path, dict(request.url.params))
        assert "content-type" not in request.headers

    @pytest.mark.parametrize(
        ("step", "expected"),
        [
            (say(200, b"[" * 100), Success("HTTP 200")),
            (say(204, b""), Success("HTTP 204")),
            (say(302, location="/elsewhere"), PauseDestination("HTTP 302")),
            (say(400, gzip.compress(b"somebody@example.com"), content_encoding="gzip"), PermanentFailure("HTTP 400")),
            (say(400, b"no gzip", content_encoding="gzip"), PermanentFailure("HTTP 400")),
            (say(200, b"{", length=1_000), Success("HTTP 200")),
            (say(503, b"{", length=1_000), Unclear("HTTP 503")),
            (reset, Unclear("no answer (ReadError)")),
            (close, Unclear("no answer (RemoteProtocolError)")),
            (hang, Unclear("no answer (ReadTimeout)")),
            (drip, Success("HTTP 200")),
        ],
    )
    def test_each_way_to_answer_has_a_result(self, vendor: Vendor, step: Step, expected: Result) -> None:
        """
        A status that has arrived stands; without one the outcome is unclear.
        """
        vendor.script(step)
        options = HTTPOptions(timeout_millis=200, total_timeout_millis=100)
        with running(PlainExporter(vendor.url, options)) as exporter:
            results = exporter.export(PARTS)

        assert [expected] == results

    def test_a_redirect_is_not_followed(self, vendor: Vendor) -> None:
        """
        The key does not travel to where a redirect points.
        """
        vendor.script(say(307, location=f"{vendor.url}/elsewhere"))
        with running(PlainExporter(vendor.url)) as exporter:
            exporter.export(PARTS)

        assert ["/feedback"] == [request.url.path for request in vendor.requests]

    @pytest.mark.parametrize(
        ("status", "expected"), [(200, Success), (400, PermanentFailure), (401, PauseDestination), (503, Unclear)]
    )
    def test_a_header_that_is_not_ascii_changes_no_answer(
        self, vendor: Vendor, status: int, expected: type[Result]
    ) -> None:
        """
        What a proxy writes into a header is its own affair (RFC 9110, section 5.5, allows such bytes).
        """
        vendor.script(say(status, x_served_by="Zürich", x_request_id="r-ü"))
        with running(PlainExporter(vendor.url)) as exporter:
            (result,) = exporter.export(PARTS)

        assert expected is type(result)
        assert "(request r-ü)" in result.reason

    @pytest.mark.parametrize("location", ["http://[::1", "//", "http://a:b", "\\\\"])
    def test_a_redirect_to_nowhere_is_one_all_the_same(self, vendor: Vendor, location: str) -> None:
        """
        Where it leads is not read.
        """
        vendor.script(say(302, location=location))
        with running(PlainExporter(vendor.url)) as exporter:
            results = exporter.export(PARTS)

        assert [PauseDestination("HTTP 302")] == results

    def test_nobody_at_the_address_is_no_connection(self, vendor: Vendor) -> None:
        """
        Where nothing was sent, nothing was applied.
        """
        with Vendor() as gone:
            url = gone.url
        with running(PlainExporter(url)) as exporter:
            assert [RetryableFailure("no connection (ConnectError)")] == exporter.export(PARTS)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (httpx.ConnectError, RetryableFailure("no connection (ConnectError)")),
            (httpx.ConnectTimeout, RetryableFailure("no connection (ConnectTimeout)")),
            (httpx.PoolTimeout, RetryableFailure("no connection (PoolTimeout)")),
            (httpx.ProxyError, RetryableFailure("no connection (ProxyError)")),
            (httpx.UnsupportedProtocol, RetryableFailure("no connection (UnsupportedProtocol)")),
            (httpx.ReadTimeout, Unclear("no answer (ReadTimeout)")),
            (httpx.WriteTimeout, Unclear("no answer (WriteTimeout)")),
            (httpx.WriteError, Unclear("no answer (WriteError)")),
            (httpx.LocalProtocolError, Unclear("no answer (LocalProtocolError)")),
            (httpx.RemoteProtocolError, Unclear("no answer (RemoteProtocolError)")),
        ],
    )
    def test_each_transport_error_says_whether_something_was_sent(
        self, error: type[httpx.TransportError], expected: Result
    ) -> None:
        """
        Only before a connection stands is it certain that a request was not applied.
        """

        def fail(request: httpx.Request) -> httpx.Response:
            raise error(SECRET, request=request)

        with running(PlainExporter(options=HTTPOptions(transport=httpx.MockTransport(fail)))) as exporter:
            assert [expected] == exporter.export(PARTS)

    def test_an_answer_is_read_up_to_a_limit(self, vendor: Vendor) -> None:
        """
        Of a huge answer, compressed or not, a mebibyte is read.
        """
        vendor.script(
            say(200, b" " * 5 * MEGABYTE), say(200, gzip.compress(b" " * 50 * MEGABYTE), content_encoding="gzip")
        )
        with running(_Reader(vendor.url)) as exporter:
            exporter.export([*PARTS, *PARTS])

        assert [MAX_ANSWER_BYTES, MAX_ANSWER_BYTES] == exporter.read

    @pytest.mark.parametrize(
        ("content", "coding", "length"),
        [
            (gzip.compress(gzip.compress(b" " * 50 * MEGABYTE)), "gzip, gzip", None),
            (zlib.compress(b" " * 100), "deflate", 100),
            (b"packed by nobody", "br", 0),
        ],
    )
    def test_an_answer_that_came_packed_unpacks_to_no_more(
        self, vendor: Vendor, content: bytes, coding: str, length: int | None
    ) -> None:
        """
        None is asked for packed; one that is all the same is unpacked once, and not beyond the limit.
        """
        vendor.script(say(200, content, content_encoding=coding))
        with running(_Reader(vendor.url)) as exporter:
            exporter.export(PARTS)

        assert "identity" == vendor.requests[0].headers["accept-encoding"]
        assert exporter.read[0] <= MAX_ANSWER_BYTES
        assert length in (None, exporter.read[0])

    def test_a_proxy_that_is_none_is_an_error_with_advice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        What httpx makes of the environment is told without its text, which may have a password in it.
        """
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@host:port")
        with pytest.raises(
            ConfigurationError, match=r"\(InvalidURL\): .*HTTPS_PROXY.* wrong\? socks5:// needs"
        ) as caught:
            PlainExporter().start()

        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None

    def test_a_dripping_answer_is_read_until_time_is_up(self) -> None:
        """
        The time for an answer counts from its request, however regularly bytes come.
        """
        clock = FakeClock()

        class Dripping(httpx.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                for _ in range(100):
                    clock.advance(seconds=10)
                    yield b" "

        transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Dripping()))
        options = HTTPOptions(transport=transport, total_timeout_millis=30_000, clock=clock)
        with running(_Reader(options=options)) as exporter:
            exporter.export(PARTS)

        assert [4] == exporter.read

    def test_an_export_begins_no_request_after_a_minute(self) -> None:
        """
        What is left of a batch at a slow vendor has not been tried; the next export has its own minute.
        """
        clock = FakeClock()

        def slow(request: httpx.Request) -> httpx.Response:
            clock.advance(seconds=15)
            return httpx.Response(200)

        options = HTTPOptions(transport=httpx.MockTransport(slow), clock=clock)
        with running(_OneByOne(options=options)) as exporter:
            results = [exporter.export([*PARTS] * 7) for _ in range(2)]

        late = "this export took too long already"
        assert [
            *[Success("HTTP 200")] * 5,  # the last of them begins with the minute's last moment
            RetryableFailure(late, is_tried=False),
            RetryableFailure(f"not tried after: {late}", is_tried=False),
        ] == results[0]
        assert results[0] == results[1]

    def test_the_longest_export_ends_before_its_lease(self) -> None:
        """
        The last request, each of its waits at the limit, is over before anybody else may send the same.
        """
        options = HTTPOptions()
        longest_request = 4 * options.timeout_millis + options.total_timeout_millis

        assert MAX_EXPORT_MILLIS + longest_request < EXPORT_MILLIS < LEASE_MILLIS

    def test_a_request_has_the_timeout_of_the_options(self) -> None:
        """
        Each wait has its limit, also with an httpx that gives hand-made requests none.
        """
        seen = []

        def look(request: httpx.Request) -> httpx.Response:
            seen.append(request.extensions["timeout"])
            return httpx.Response(200)

        options = HTTPOptions(transport=httpx.MockTransport(look), timeout_millis=1_500)
        with running(PlainExporter(options=options)) as exporter:
            exporter.export(PARTS)

        assert [{"connect": 1.5, "read": 1.5, "write": 1.5, "pool": 1.5}] == seen

    def test_our_requests_are_in_nobodys_trace(self) -> None:
        """
        Inside an active span instrumentation is suppressed around our requests, and only there.
        """

        def instrumented(request: httpx.Request) -> httpx.Response:
            if is_http_instrumentation_enabled():
                inject(request.headers)
            return httpx.Response(400 if "traceparent" in request.headers else 200)

        options = HTTPOptions(transport=httpx.MockTransport(instrumented))
        tracer = TracerProvider().get_tracer("test")
        with tracer.start_as_current_span("request"), running(PlainExporter(options=options)) as exporter:
            results = exporter.export(PARTS)
            is_on_again = is_http_instrumentation_enabled()

        assert ([Success("HTTP 200")], True) == (results, is_on_again)

    def test_an_exchange_that_does_not_care_for_silence_need_not(self) -> None:
        """
        Silence that an exchange lets pass is the result of all its parts.
        """

        def fail(request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout("late", request=request)

        with running(PlainExporter(options=HTTPOptions(transport=httpx.MockTransport(fail)))) as exporter:
            assert [Unclear("no answer (ReadTimeout)")] * 3 == exporter.export(THREE)

    @pytest.mark.parametrize("step", [say(400, b'{"message": "Spot on"}'), say(), reset, hang])
    def test_keys_and_comments_are_in_no_log(
        self, vendor: Vendor, step: Step, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Whatever the answer, neither our log nor httpx's has the key or the comment, at any level.
        """
        vendor.script(step)
        caplog.set_level(logging.DEBUG)
        with running(PlainExporter(vendor.url, HTTPOptions(timeout_millis=100))) as exporter:
            results = exporter.export(PARTS)

        told = f"{caplog.text}{results}{exporter!r}"
        assert [] == [word for word in (SECRET, "Spot on") if word in told]

    def test_an_error_that_quotes_the_key_is_left_behind(self) -> None:
        """
        httpx's complaint about a header, which quotes it, hangs on nothing that we raise.
        """

        def fail(request: httpx.Request) -> httpx.Response:
            raise httpx.LocalProtocolError(f"Illegal header value {SECRET}", request=request)

        client = httpx.Client(transport=httpx.MockTransport(fail))
        exporter = PlainExporter()
        with client, pytest.raises(NoAnswer) as caught:
            exporter._send(client, exporter.request("GET", "/"), sys.maxsize)

        assert (None, None) == (caught.value.__cause__, caught.value.__context__)

    def test_the_base_leaves_only_two_methods_to_write(self) -> None:
        """
        What a subclass has to say is its parts and its exchange.
        """
        exporter = HTTPFeedbackExporter(name="mine", base_url="http://127.0.0.1:9")

        assert ({}, {}, False, True) == (
            exporter.headers,
            exporter.span_attributes,
            exporter.exports_unsampled,
            exporter.force_flush(),
        )
        with pytest.raises(NotImplementedError):
            exporter.parts(record(value=True))
        with pytest.raises(NotImplementedError):
            exporter.exchange([])

    def test_its_repr_names_it_and_its_place(self) -> None:
        """
        The repr has the name and the URL, and no key.
        """
        assert "<PlainExporter name='plain' base_url='http://127.0.0.1:9'>" == repr(PlainExporter())


class TestLifeCycle:
    def test_connections_are_used_again(self, vendor: Vendor) -> None:
        """
        Two exports share a connection.
        """
        with running(PlainExporter(vendor.url)) as exporter:
            exporter.start()
            exporter.export(PARTS)
            exporter.export(PARTS)

        assert 1 == vendor.connections

    def test_shutdown_is_idempotent_and_not_the_end(self, vendor: Vendor) -> None:
        """
        After any number of shutdowns an export opens a new connection.
        """
        with running(PlainExporter(vendor.url)) as exporter:
            exporter.shutdown()
            first = exporter.export(PARTS)
            exporter.shutdown()
            exporter.shutdown()
            second = exporter.export(PARTS)

        assert [Success("HTTP 200")] == first == second
        assert 2 == vendor.connections

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_forked_child_has_connections_of_its_own(self, vendor: Vendor, tmp_path: Path) -> None:
        """
        Although a thread holds the lock when the process forks, the child delivers, and the parent's stays usable.
        """
        program = """
            import os, sys
            from exporter_bench import PlainExporter, record

            exporter = PlainExporter(sys.argv[1])
            parts = exporter.parts(record(comment="Spot on"))
            print("before", exporter.export(parts), flush=True)
            exporter._lock.acquire()
            child = os.fork()
            if child == 0:
                print("child", exporter.export(parts), flush=True)
                exporter.shutdown()
                exporter.shutdown()
                sys.exit()
            exporter._lock.release()
            print("exit", os.waitpid(child, 0)[1], flush=True)
            print("parent", exporter.export(parts), flush=True)
            exporter.shutdown()
            """
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(program))

        done = subprocess.run(
            [sys.executable, str(file), vendor.url],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

        delivered = "[Success(reason='HTTP 200')]"
        assert f"before {delivered}\nchild {delivered}\nexit 0\nparent {delivered}\n" == done.stdout
        assert ("", 2) == (done.stderr, vendor.connections)


class TestOptions:
    @pytest.mark.parametrize("url", [None, 3, b"https://api.orq.ai"])
    def test_what_is_no_text_is_no_base_url(self, url: Any) -> None:
        """
        A base URL of another type is refused by name, as an unset variable is.
        """
        with pytest.raises(ConfigurationError) as caught:
            PlainExporter(url)

        assert "base_url" == caught.value.setting

    @pytest.mark.parametrize("name", ["timeout_millis", "total_timeout_millis"])
    def test_a_timeout_is_a_whole_number(self, name: str) -> None:
        """
        A timeout that is no number of milliseconds is refused when the options are made.
        """
        options: dict[str, Any] = {name: "10"}

        with pytest.raises(ConfigurationError) as caught:
            HTTPOptions(**options)

        assert name == caught.value.setting


def _post(part: object) -> Exchange[Result]:
    response = yield httpx.Request("POST", "http://127.0.0.1:9/")
    return result_of(response, now_unix_nano=NOON)


class _OneByOne(PlainExporter):
    """Delivers one part after the other, as orq and Weave do."""

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        return one_by_one(parts, self._deliver)

    def _deliver(self, part: Part) -> Exchange[Result]:
        response = yield self.request("POST", "/feedback", part.body)
        return self.result(response)


class _Reader(PlainExporter):
    """Notes how much was read of each answer."""

    def __init__(self, base_url: str = "http://127.0.0.1:9", options: HTTPOptions | None = None) -> None:
        super().__init__(base_url, options)
        self.read: list[int] = []

    def result(self, response: httpx.Response, hint: str = "", message: str = "") -> Result:
        self.read.append(len(response.content))
        return super().result(response, hint, message)
