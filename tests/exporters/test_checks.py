"""What an exporter is told is checked when it is made, and refused by name."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from exporter_bench import SECRET, record
from typing_extensions import TypedDict

from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters._checks import (
    Text,
    check_api_key,
    check_base_url,
    check_bool,
    check_choice,
    check_millis,
    check_names,
    check_offers,
    check_text,
    native_fields,
    require_api_key,
    text_or,
)


class TestArguments:
    @pytest.mark.parametrize(
        ("given_url", "expected"),
        [
            ("https://api.orq.ai", "https://api.orq.ai"),
            (" https://api.orq.ai/\n", "https://api.orq.ai"),
            ("HTTP://127.0.0.1:8080/traces//", "HTTP://127.0.0.1:8080/traces"),
            ("http://[::1]:80/x", "http://[::1]:80/x"),
            ("https://localhost/a%20b", "https://localhost/a%20b"),
            ("https://vendor_1.internal", "https://vendor_1.internal"),
            ("https://localhost/X", "https://localhost/X"),
        ],
    )
    def test_a_base_url_loses_its_last_slash(self, given_url: str, expected: str) -> None:
        """
        A base URL is taken as it is, without the blanks around it and the slashes at its end.
        """
        assert expected == check_base_url(given_url)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "api.orq.ai",
            "ftp://api.orq.ai",
            "https://",
            "https:///path",
            "https://user:pass-word@api.orq.ai",
            "https://api.orq.ai?key=pass-word",
            "https://api.orq.ai/?",
            "https://api.orq.ai/#",
            "https://api.orq.ai:99999",
            "https://api.orq.ai:0",
            "https://api.orq.ai:port",
            "https://api..orq.ai",
            f"https://{'a' * 64}.ai",
            "https://api.orq.ai/a b",
            "https://api\n.orq.ai",
            "https://api.orq\x00.ai",
            "https://api.orq.ai\\v2",
            "https://[::1",
            None,
            b"https://api.orq.ai",
        ],
    )
    def test_what_no_path_can_be_added_to_is_refused(self, url: Any) -> None:
        """
        What is no plain http(s) URL is refused at once, and not repeated: it may have a password in it.
        """
        with pytest.raises(ConfigurationError, match=r"fragment; that of orq is not$") as caught:
            check_base_url(url, "orq")

        assert ("base_url", False) == (caught.value.setting, "pass-word" in str(caught.value))

    @pytest.mark.parametrize(
        ("key", "expected"),
        [("k-1", "k-1"), (" k-1\r\n", "k-1"), ("", None), (" \n", None), (None, None)],
    )
    def test_a_key_is_stripped(self, key: str | None, expected: str | None) -> None:
        """
        A trailing newline, as a file leaves it, is taken off; nothing is no key.
        """
        assert expected == check_api_key(key, "ORQ_API_KEY")

    @pytest.mark.parametrize("bad", ["a b", "a\nb", "a\tb", "a\x00b", "a\x7fb", "aüb", "a\u200bb", "a\u00a0b"])
    def test_a_key_that_no_header_can_hold_is_refused(self, bad: str) -> None:
        """
        A key with a blank, a control character or a letter beyond ASCII in it is refused and never repeated.
        """
        with pytest.raises(ConfigurationError, match=r"^the key from ORQ_API_KEY .* no HTTP header") as caught:
            check_api_key(f"{SECRET}{bad}", "ORQ_API_KEY")

        assert ("ORQ_API_KEY", False) == (caught.value.setting, SECRET in str(caught.value))

    @pytest.mark.parametrize(
        "check",
        [
            lambda: check_text("", "it"),
            lambda: check_text(" ", "it"),
            lambda: check_text(None, "it"),
            lambda: check_text(3, "it"),
            lambda: text_or(3, "it", "default"),
            lambda: text_or(False, "it", "default"),
            lambda: text_or(b"a", "it", "default"),
            lambda: check_names("tone", "it"),
            lambda: check_names(None, "it"),
            lambda: check_names(3, "it"),
            lambda: check_names(["tone", ""], "it"),
            lambda: check_names([["tone"]], "it"),
            lambda: check_names(b"tone", "it"),
            lambda: check_choice("c", "it", ("a", "b")),
            lambda: check_choice(None, "it", ("a", "b")),
            lambda: check_choice(["a"], "it", ("a", "b")),
            lambda: check_bool(1, "it"),
            lambda: check_bool(None, "it"),
            lambda: check_bool("true", "it"),
            lambda: check_millis(-1, "it"),
            lambda: check_millis(1.5, "it"),
            lambda: check_millis("5", "it"),
            lambda: check_millis(True, "it"),
            lambda: check_millis(None, "it"),
            lambda: check_offers("console", "it", "write"),
            lambda: check_offers(3, "it", "write"),
        ],
    )
    def test_an_argument_of_another_type_is_refused_by_name(self, check: Any) -> None:
        """
        What an exporter cannot use is a wrong setting, which the error names.
        """
        with pytest.raises(ConfigurationError, match=r"^it must") as caught:
            check()

        assert "it" == caught.value.setting

    def test_the_type_of_a_text_is_named(self) -> None:
        """
        Not its value, which may be a key.
        """
        with pytest.raises(ConfigurationError, match=r"^it must be a string, not bytes$"):
            text_or(SECRET.encode(), "it", "default")

    def test_an_argument_that_can_be_used_is_taken_as_it_is(self) -> None:
        """
        A text stands, nothing gives way to the default, names are a set.
        """
        check_choice("b", "it", ("a", "b"))
        check_bool(True, "it")
        check_bool(False, "it")
        check_millis(0, "it")
        check_offers(None, "it", "write")
        check_offers(sys.stdout, "it", "write")

        assert ("a", "given", "default", "default") == (
            check_text("a", "it"),
            text_or("given", "it", "default"),
            text_or(None, "it", "default"),
            text_or("", "it", "default"),
        )
        assert [frozenset(), {"a", "b"}] == [check_names((), "it"), check_names({"a", "b"}, "it")]

    def test_who_delivers_needs_a_key(self) -> None:
        """
        The error names the exporter and the variable to set.
        """
        with pytest.raises(ConfigurationError, match=r"'orq'.* ORQ_API_KEY") as caught:
            require_api_key(None, "orq", "ORQ_API_KEY")

        require_api_key("key", "orq", "ORQ_API_KEY")

        assert "ORQ_API_KEY" == caught.value.setting


class Published(TypedDict, total=False):
    """Some vendor's own fields."""

    word: Text
    reasons: dict[str, Text]


class TestNativeFields:
    @pytest.mark.parametrize("given", [{}, {"word": " a "}, {"reasons": {"tone": "kind"}, "word": "b"}])
    def test_what_is_published_is_taken_as_it_is(self, given: Any) -> None:
        """
        Nothing of it is changed, and nothing is nothing.
        """
        assert given == native_fields(record(value=True, native={"vendor": given}), "vendor", Published)
        assert {} == native_fields(record(value=True, native={"other": given}), "vendor", Published)

    @pytest.mark.parametrize(
        ("given", "field", "words"),
        [
            ({"wrd": "a"}, "wrd", "cannot set wrd; it can set reasons, word"),
            ({"word": 1}, "word", "cannot set word: Input should be a valid string"),
            ({"word": " "}, "word", "cannot set word: String should have at least 1 character"),
            ({"word": "a", "reasons": {"tone": 1}}, "reasons.tone", "cannot set reasons.tone: Input should be"),
        ],
    )
    def test_what_is_not_is_refused_by_its_path(self, given: Any, field: str, words: str) -> None:
        """
        The message says what may be set, or what is wrong with it.
        """
        with pytest.raises(InvalidFeedbackError, match=rf"^native\['vendor'\] {words}") as caught:
            native_fields(record(value=True, native={"vendor": given}), "vendor", Published)

        assert f"native.vendor.{field}" == caught.value.field
