"""What the feedback route answers, without a server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags

import otel_feedback as of
from otel_feedback.exceptions import ConfigurationError, OutboxFullError
from otel_feedback.testing import FakeClock, InMemoryFeedbackExporter
from otel_feedback.web import FeedbackEndpoint, RateLimit, WebRequest, WebResponse

HANDLE = of.FeedbackHandle(SpanContext(0xABC, 0xDEF, True, TraceFlags(1)))
OTHER = of.FeedbackHandle(SpanContext(0xABC, 0x123, True, TraceFlags(1)))
ID = "6f1c1e0e-5b0a-4b6e-9f43-0b6d8b2f9a11"
MANY = RateLimit(1_000_000, 60)
QUIET = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

Endpoint = Callable[..., FeedbackEndpoint]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider(clock: FakeClock) -> Iterator[of.FeedbackProvider]:
    settings = of.Settings(signing_keys=("a key of thirty-two characters ..",), delivery="none", key_wait_millis=0)
    with of.FeedbackProvider(
        exporters=[InMemoryFeedbackExporter("a")],
        store="memory:",
        settings=settings,
        clock=clock,
        tracer_provider=TracerProvider(),
    ) as made:
        yield made


@pytest.fixture
def endpoint(provider: of.FeedbackProvider, clock: FakeClock) -> Endpoint:
    def make(**options: Any) -> FeedbackEndpoint:
        return FeedbackEndpoint(
            **{"provider": provider, "clock": clock, "per_token": MANY, "per_address": MANY, **options}
        )

    return make


def post(said: Any, **options: Any) -> WebRequest:
    return WebRequest("POST", body=said if isinstance(said, bytes) else json.dumps(said).encode(), **options)


def delete(record_id: str, token: str | None = None, **options: Any) -> WebRequest:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return WebRequest("DELETE", f"/{record_id}", headers, **options)


def told(answer: WebResponse) -> tuple[int, Any]:
    """The status and what is wrong."""
    content = answer.content or {}
    return answer.status, content.get("error")


class TestRecording:
    def test_a_thumb_with_a_token_is_accepted(self, endpoint: Endpoint, provider: of.FeedbackProvider) -> None:
        """
        The receipt is the answer, and the judgement is the token's user's.
        """
        token = provider.issue_token(HANDLE, names=["rating"], user_id="u-42")
        answer = endpoint().respond(post({"token": token, "name": "rating", "value": True, "comment": "c"}))
        assert answer.content is not None
        record = provider._store.latest(answer.content["id"])

        assert record is not None
        assert (202, {**QUIET, "content-type": "application/json"}) == (answer.status, answer.headers)
        assert {"deliveries": {"a": "pending"}, "durability": "memory", "not_carried": {}, "id": record.id} == (
            answer.content
        )
        assert (HANDLE, "rating", True, "c", "u-42", "human") == (
            record.handle,
            record.name,
            record.value,
            record.comment,
            record.user_id,
            record.source,
        )

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    def test_a_token_may_stand_in_the_header(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, scheme: str
    ) -> None:
        """
        As RFC 6750 has it.
        """
        headers = {"authorization": f"{scheme} {provider.issue_token(HANDLE)}"}

        assert 202 == endpoint().respond(post({"name": "stars", "value": 4, "scale": [1, 5]}, headers=headers)).status

    def test_the_global_provider_records_by_default(self, provider: of.FeedbackProvider) -> None:
        """
        As it is when the request comes.
        """
        of.set_feedback_provider(provider)
        answer = FeedbackEndpoint().respond(post({"token": provider.issue_token(HANDLE), "name": "r", "value": True}))
        of.set_feedback_provider(None)

        assert 202 == answer.status

    def test_a_known_user_changes_their_mind(self, endpoint: Endpoint, provider: of.FeedbackProvider) -> None:
        """
        Two words of one user under one name are one judgement.
        """
        token, route = provider.issue_token(HANDLE, user_id="u-42"), endpoint()
        ids = [
            (route.respond(post({"token": token, "name": "rating", "value": value})).content or {})["id"]
            for value in (True, False)
        ]

        assert 1 == len(set(ids))

    def test_nobody_in_particular_changes_their_mind_by_an_id_of_theirs(
        self, endpoint: Endpoint, provider: of.FeedbackProvider
    ) -> None:
        """
        An id that nobody can guess says that it is the same person again; on another call it is taken.
        """
        route, said = endpoint(), {"name": "rating", "value": True, "id": ID}
        answers = [route.respond(post({"token": provider.issue_token(HANDLE), **said})) for _ in range(2)]
        elsewhere = route.respond(post({"token": provider.issue_token(OTHER), **said}))

        assert [ID, ID] == [(answer.content or {})["id"] for answer in answers]
        assert (409, {"error": "invalid", "field": "id"}) == (elsewhere.status, elsewhere.content)

    @pytest.mark.parametrize("record_id", [str(uuid.UUID(int=0x8 << 76 | 0x8 << 60)), "x", 7, ID[:-1], "x" * 36])
    def test_an_id_that_others_could_work_out_is_refused(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, record_id: Any
    ) -> None:
        """
        Else who knows a user could change what they said.
        """
        token = provider.issue_token(HANDLE)
        answer = endpoint().respond(post({"token": token, "name": "rating", "value": True, "id": record_id}))

        assert (400, {"error": "invalid", "field": "id"}) == (answer.status, answer.content)

    def test_a_known_users_id_is_theirs_whatever_the_browser_says(
        self, endpoint: Endpoint, provider: of.FeedbackProvider
    ) -> None:
        """
        So that what they say elsewhere is the same judgement.
        """
        token = provider.issue_token(HANDLE, user_id="u-42")
        answer = endpoint().respond(post({"token": token, "name": "rating", "value": True, "id": ID}))

        assert provider.record(HANDLE, "rating", False, user_id="u-42").id == (answer.content or {})["id"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "error"),
        [
            (b"", 400, "malformed"),
            (b"{", 400, "malformed"),
            (b"[]", 400, "malformed"),
            (b"\xff", 400, "malformed"),
            (b'{"value": NaN}', 400, "malformed"),
            (b'{"correction": ' + b"[" * 40 + b"]" * 40 + b"}", 400, "malformed"),
            (b"[" * 60_000, 400, "malformed"),
            (b'{"token": 7}', 400, "malformed"),
            (b'{"token": "a", "key": "b"}', 400, "token_and_key"),
            (b'{"user_id": "u-1"}', 400, "unknown_field"),
            (b'{"name": "rating", "value": true}', 401, "no_token"),
            (b'{"key": "m-1", "name": "rating", "value": true}', 401, "no_token"),
            (b'{"token": "x", "name": "rating", "value": true}', 401, "malformed"),
            (None, 413, "too_long"),
        ],
    )
    def test_what_is_no_feedback_is_refused(
        self, endpoint: Endpoint, body: bytes | None, status: int, error: str
    ) -> None:
        """
        With one word.
        """
        assert (status, error) == told(endpoint().respond(WebRequest("POST", body=body)))

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"value": True}, "name"),
            ({"name": "rating"}, "value"),
            ({"name": "rating", "value": 3}, "value"),
            ({"name": "rating", "value": {"a": 1}}, "value"),
            ({"name": "rating", "comment": 7}, "comment"),
            ({"name": "wandb.x", "value": True}, "name"),
        ],
    )
    def test_what_is_wrong_is_named_and_not_repeated(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, said: dict[str, Any], field: str | None
    ) -> None:
        """
        By the field, where it is one of the browser's.
        """
        answer = endpoint().respond(post({"token": provider.issue_token(HANDLE), **said}))

        assert (400, "invalid", field) == (*told(answer), (answer.content or {}).get("field"))

    @pytest.mark.parametrize(
        ("granted", "error"), [({"names": ["tone"]}, "name"), ({"expires_in": timedelta(seconds=1)}, "expired")]
    )
    def test_a_token_is_enforced(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, clock: FakeClock, granted: Any, error: str
    ) -> None:
        """
        The status says to get another one.
        """
        token = provider.issue_token(HANDLE, **granted)
        clock.advance(seconds=2)
        answer = endpoint().respond(post({"token": token, "name": "rating", "value": True}))

        assert (401, error, "Bearer") == (*told(answer), answer.headers["www-authenticate"])

    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "HEAD", "x"])
    def test_other_methods_are_none(self, endpoint: Endpoint, method: str) -> None:
        """
        The answer says which there are.
        """
        answer = endpoint().respond(WebRequest(method))

        assert (405, "method", "GET, POST, DELETE, OPTIONS") == (*told(answer), answer.headers["allow"])

    def test_there_is_nothing_below(self, endpoint: Endpoint) -> None:
        """
        Feedback goes to the route itself.
        """
        assert (404, "unknown") == told(endpoint().respond(post({}, path="/there")))

    def test_a_store_that_is_full_is_no_fault_of_the_browsers(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        It may try again, and the operator is told.
        """

        def full(_: Any) -> None:
            raise OutboxFullError("full", store="memory:", limit=1)

        monkeypatch.setattr(provider._store, "put_many", full)
        answer = endpoint().respond(post({"token": provider.issue_token(HANDLE), "name": "rating", "value": True}))

        assert (503, "unavailable", "5") == (*told(answer), answer.headers["retry-after"])

    @pytest.mark.parametrize(
        "options", [{"allow_origins": "https://a.example"}, {"allow_origins": [7]}, {"authorize": "yes"}]
    )
    def test_options_that_are_none_are_refused(self, endpoint: Endpoint, options: Any) -> None:
        """
        By name.
        """
        with pytest.raises(ConfigurationError) as caught:
            endpoint(**options)

        assert [caught.value.setting] == list(options)

    @given(st.binary() | st.dictionaries(st.text(), st.text()).map(lambda said: json.dumps(said).encode()))
    def test_whatever_comes_is_answered(self, body: bytes) -> None:
        """
        Nothing raises, and nothing is repeated.
        """
        answer = FeedbackEndpoint(per_address=MANY).respond(WebRequest("POST", body=body))

        assert answer.status in (400, 401)
        assert len(answer.body) < 60


class TestRetracting:
    def test_what_was_said_is_taken_back(self, endpoint: Endpoint, provider: of.FeedbackProvider) -> None:
        """
        By whoever said it, with the token by which it was said.
        """
        token, route = provider.issue_token(HANDLE, user_id="u-42"), endpoint()
        said = route.respond(post({"token": token, "name": "rating", "value": True})).content or {}
        answer = route.respond(delete(said["id"], token))
        latest = provider._store.latest(said["id"])

        assert latest is not None
        assert (202, said["id"], True) == (answer.status, (answer.content or {})["id"], latest.retracts)

    @pytest.mark.parametrize(
        ("target", "granted", "expected"),
        [
            (OTHER, {"user_id": "u-42"}, (404, "unknown")),
            (HANDLE, {"user_id": "u-43"}, (404, "unknown")),
            (HANDLE, {}, (404, "unknown")),
            (HANDLE, {"user_id": "u-42", "names": ["tone"]}, (401, "name")),
        ],
    )
    def test_nobody_takes_back_what_others_said(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, target: Any, granted: Any, expected: Any
    ) -> None:
        """
        Of what is not theirs nobody learns that it is there.
        """
        receipt = provider.record(HANDLE, "rating", True, user_id="u-42")
        answer = endpoint().respond(delete(receipt.id, provider.issue_token(target, **granted)))

        assert (expected, "pending") == (told(answer), provider.status(receipt.id).deliveries["a"].state)

    @pytest.mark.parametrize("record_id", ["", ID, "x", "a/b"])
    def test_what_is_not_there_is_unknown(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, record_id: str
    ) -> None:
        """
        An id that is none is one that nobody has.
        """
        assert (404, "unknown") == told(endpoint().respond(delete(record_id, provider.issue_token(HANDLE))))

    def test_a_token_in_the_body_will_do(self, endpoint: Endpoint, provider: of.FeedbackProvider) -> None:
        """
        For who cannot set headers.
        """
        receipt, token = provider.record(HANDLE, "rating", True), provider.issue_token(HANDLE)
        body = json.dumps({"token": token}).encode()

        assert 202 == endpoint().respond(delete(receipt.id, body=body)).status


class TestKeys:
    def test_the_app_says_whose_a_key_is(self, endpoint: Endpoint, provider: of.FeedbackProvider) -> None:
        """
        It sees the framework's request and the key, and answers who judges.
        """
        provider.bind_key(HANDLE, "m-1")
        provider.handle_for_key("m-1")
        route = endpoint(authorize=lambda request, key: {("session", "m-1"): "ada"}.get((request, key)))
        said = {"key": "m-1", "name": "rating", "value": True}
        mine = route.respond(post(said, native="session"))
        others = route.respond(post(said, native="another"))
        unknown = endpoint(authorize=lambda request, key: "ada").respond(post({**said, "key": "m-2"}))
        record = provider._store.latest((mine.content or {})["id"])

        assert record is not None
        assert (202, HANDLE, "ada") == (mine.status, record.handle, record.user_id)
        assert [(401, "not_authorized"), (404, "unknown")] == [told(others), told(unknown)]

    def test_by_a_key_it_is_taken_back(self, endpoint: Endpoint, provider: of.FeedbackProvider) -> None:
        """
        What the same user said of the call that it names.
        """
        provider.bind_key(HANDLE, "m-1")
        provider.handle_for_key("m-1")
        receipt = provider.record(key="m-1", name="rating", value=True, user_id="ada")
        body = b'{"key": "m-1"}'
        refused = endpoint(authorize=lambda *_: "bob").respond(delete(receipt.id, body=body))
        done = endpoint(authorize=lambda *_: "ada").respond(delete(receipt.id, body=body))

        assert [(404, "unknown"), (202, None)] == [told(refused), told(done)]

    def test_the_apps_own_bearer_token_is_none_of_ours(self, endpoint: Endpoint, provider: of.FeedbackProvider) -> None:
        """
        Beside a key, the header is for `authorize` to read.
        """
        provider.bind_key(HANDLE, "m-1")
        provider.handle_for_key("m-1")
        said = {"key": "m-1", "name": "rating", "value": True}
        answer = endpoint(authorize=lambda *_: "ada").respond(post(said, headers={"authorization": "Bearer a.session"}))

        assert (202, None) == told(answer)

    @pytest.mark.parametrize(
        ("headers", "origins", "status"),
        [
            ({"origin": "https://evil.example", "host": "chat.example"}, [], 401),
            ({"origin": "https://evil.example", "host": "chat.example"}, ["https://chat.example"], 401),
            ({"origin": "null", "host": "chat.example"}, [], 401),
            ({"sec-fetch-site": "cross-site"}, [], 401),
            ({"sec-fetch-site": "same-site", "origin": "https://a.chat.example"}, [], 401),
            ({"sec-fetch-site": "same-origin", "origin": "https://chat.example", "host": "inside:8000"}, [], 202),
            ({"sec-fetch-site": "none"}, [], 202),
            ({"origin": "https://chat.example", "host": "chat.example"}, [], 202),
            ({"origin": "https://page.example", "sec-fetch-site": "cross-site"}, ["https://page.example"], 202),
            ({"origin": "https://page.example", "sec-fetch-site": "cross-site"}, ["*"], 401),
            ({}, [], 202),
        ],
    )
    def test_a_page_of_another_site_does_not_judge_with_the_persons_cookie(
        self,
        endpoint: Endpoint,
        provider: of.FeedbackProvider,
        headers: dict[str, str],
        origins: list[str],
        status: int,
    ) -> None:
        """
        Nor is `authorize` asked; pages of the own origin, of allowed ones, and what is no browser may.
        """
        asked: list[str] = []
        provider.bind_key(HANDLE, "m-1")
        provider.handle_for_key("m-1")
        route = endpoint(authorize=lambda _, key: asked.append(key) or "ada", allow_origins=origins)
        answer = route.respond(post({"key": "m-1", "name": "rating", "value": True}, headers=headers))

        assert (status, ["m-1"] if status == 202 else []) == (answer.status, asked)


class TestScript:
    def test_the_element_is_served_once(self, endpoint: Endpoint) -> None:
        """
        With a tag, by which a browser that has it is told so.
        """
        script = endpoint().respond(WebRequest("GET", "/otel-feedback.js"))
        known = {"if-none-match": script.headers["etag"]}
        again = endpoint().respond(WebRequest("GET", "/otel-feedback.js", known))

        assert "text/javascript; charset=utf-8" == script.headers["content-type"]
        assert b'customElements.define("otel-feedback"' in script.body
        assert (304, b"") == (again.status, again.body)


class TestLimits:
    def test_a_token_is_not_used_without_end(
        self, endpoint: Endpoint, provider: of.FeedbackProvider, clock: FakeClock
    ) -> None:
        """
        The answer says when one may come again; another token is not concerned.
        """
        route = endpoint(per_token=RateLimit(2, 10))
        token, other = provider.issue_token(HANDLE), provider.issue_token(OTHER)
        said = {"name": "rating", "value": True}
        answers = [route.respond(post({"token": each, **said})) for each in (token, token, token, other)]
        clock.advance(seconds=5)
        later = route.respond(post({"token": token, **said}))

        assert [202, 202, 429, 202, 202] == [answer.status for answer in (*answers, later)]
        assert "5" == answers[2].headers["retry-after"]

    def test_an_address_does_not_ask_without_end(self, endpoint: Endpoint) -> None:
        """
        Whatever it asks; a preflight is free.
        """
        route = endpoint(per_address=RateLimit(1, 10))
        answers = [route.respond(WebRequest("POST", address=address)) for address in ("a", "a", "b")]

        assert [400, 429, 400] == [answer.status for answer in answers]
        assert 204 == route.respond(WebRequest("OPTIONS", address="a")).status

    def test_who_asked_longest_ago_is_forgotten_first(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        However many ask, no more are remembered than fit.
        """
        monkeypatch.setattr("otel_feedback.web._limits.MAX_BUCKETS", 2)
        route = endpoint(per_address=RateLimit(1, 60))
        asked = [route.respond(post({}, address=each)).status for each in ("a", "b", "a", "c", "b", "a")]

        assert [401, 401, 429, 401, 401, 401] == asked

    @pytest.mark.parametrize("limit", [(0, 1), (1, 0), (-1, 1)])
    def test_a_limit_that_is_none_is_refused(self, limit: Any) -> None:
        """
        It would let nobody through, or everybody.
        """
        with pytest.raises(ConfigurationError):
            RateLimit(*limit)


class TestCORS:
    @pytest.mark.parametrize(
        ("allowed", "origin", "expected"),
        [
            ([], "https://a.example", {}),
            (["https://a.example"], None, {}),
            (["https://a.example/"], "https://a.example", {"access-control-allow-origin": "https://a.example"}),
            (["*"], "https://b.example", {"access-control-allow-origin": "https://b.example"}),
            (["https://a.example"], "https://b.example", {"vary": "origin"}),
            (["https://a.example"], "null", {"vary": "origin"}),
        ],
    )
    def test_only_pages_of_allowed_origins_may_read(
        self, endpoint: Endpoint, allowed: list[str], origin: str | None, expected: dict[str, str]
    ) -> None:
        """
        Before they ask, and with every answer.
        """
        headers = {} if origin is None else {"origin": origin}
        for method, status in (("OPTIONS", 204), ("POST", 400)):
            answer = endpoint(allow_origins=allowed).respond(WebRequest(method, headers=headers))
            found = {name: value for name, value in answer.headers.items() if name not in {*QUIET, "content-type"}}

            assert (status, expected) == (answer.status, {name: found.get(name) for name in expected})
            assert len(found) >= len(expected)
            assert ("access-control-allow-origin" in found) == ("access-control-allow-origin" in expected)
