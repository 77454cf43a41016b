"""A handle in a text that a browser may hold: what it says, and that nobody else can write one."""

from __future__ import annotations

import base64
import hmac
import random
import string
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags

import otel_feedback as of
from otel_feedback._tokens import MAX_TOKEN_CHARS, PREFIX, read_token, write_token
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError, InvalidTokenError
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import FakeClock, InMemoryFeedbackExporter

KEY, OLD, OTHER = "a key of thirty-two characters ..", "the key before it: it verifies", "the key of somebody else"
CONTEXT = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, TraceFlags(1))
HANDLE = of.FeedbackHandle(CONTEXT)
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
GRANT = of.FeedbackGrant(HANDLE, NOW + timedelta(days=30))
TOKEN = write_token(GRANT, KEY)
ALPHABET = string.ascii_letters + string.digits + "-_"

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_ROUTES = ("braintrust.parent", "braintrust_row_id", "otel_feedback.to", "gen_ai.conversation.id")
GRANTS = st.builds(
    of.FeedbackGrant,
    st.builds(
        of.FeedbackHandle,
        st.builds(
            lambda trace_id, span_id, flags: SpanContext(trace_id, span_id, True, TraceFlags(flags)),
            st.integers(1, (1 << 128) - 1),
            st.integers(1, (1 << 64) - 1),
            st.integers(0, 255),
        ),
        st.just(0) | st.integers(1, (1 << 64) - 1),
        attributes=st.fixed_dictionaries({}, optional=dict.fromkeys(_ROUTES, _TEXTS)),
    ),
    st.datetimes(datetime(2026, 1, 2), datetime(9999, 12, 31), timezones=st.just(timezone.utc)).map(  # noqa: DTZ001 (bounds)
        lambda moment: moment.replace(microsecond=0)
    ),
    st.none() | st.lists(_TEXTS, min_size=1, max_size=4).map(tuple),
    st.none() | _TEXTS,
)


def refused(token: str, *, keys: Any = (KEY,), now: datetime = NOW) -> str:
    """Say why a token is refused; the message has no more of it than any other."""
    with pytest.raises(InvalidTokenError) as caught:
        read_token(token, keys, now=now)
    assert not token or str(token) not in str(caught.value)
    return caught.value.reason


def mutated(token: str, rng: random.Random) -> str:
    """Change a token in one of the ways in which texts go wrong, or are made to."""
    at, other = rng.randrange(len(token)), rng.randrange(len(token))
    ways = (
        lambda: token[:at] + rng.choice(ALPHABET) + token[at + 1 :],
        lambda: token[:at] + chr(rng.randrange(0x250)) + token[at + 1 :],
        lambda: token[:at],
        lambda: token[at:],
        lambda: token[:at] + token[at + 1 :],
        lambda: token[:at] + rng.choice(ALPHABET) + token[at:],
        lambda: token + rng.choice(ALPHABET + "=\n ."),
        lambda: token[: min(at, other)] + token[max(at, other) :],
        token.swapcase,
        lambda: token + token[len(PREFIX) :],
        lambda: PREFIX + "".join(rng.choices(ALPHABET, k=len(token) - len(PREFIX))),
    )
    return rng.choice(ways)()


def accepted_of(count: int, seed: int) -> list[str]:
    """Try so many wrong tokens, and list those that are taken: changed, expired, of another key, of another time."""
    rng = random.Random(seed)
    sources = [
        TOKEN,
        write_token(replace(GRANT, names=("rating",), user_id="u-42"), KEY),
        write_token(replace(GRANT, handle=replace(HANDLE, root=7, attributes={"otel_feedback.to": "a,b"})), KEY),
    ]
    strange = [write_token(GRANT, OTHER), write_token(GRANT, KEY.upper()), write_token(GRANT, KEY + " ")]
    late = [write_token(replace(GRANT, expires_at=NOW - timedelta(seconds=age)), KEY) for age in (0, 1, 10**9)]
    found = []
    for _ in range(count):
        tried = rng.choice(strange + late) if rng.random() < 0.05 else mutated(rng.choice(sources), rng)
        if tried in sources:
            continue
        try:
            read_token(tried, (KEY, OLD), now=NOW)
        except InvalidTokenError:
            continue
        found.append(tried)
    return found


class TestForm:
    @given(GRANTS)
    def test_what_is_written_is_read(self, grant: of.FeedbackGrant) -> None:
        """
        Ids, flags, root, route, names, user and end come back as they went; a span that is its own root has none.
        """
        handle = grant.handle
        root = 0 if handle.root == handle.context.span_id else handle.root

        assert replace(grant, handle=replace(handle, root=root)) == read_token(write_token(grant, KEY), (KEY,), now=NOW)

    def test_only_what_routes_is_in_it(self) -> None:
        """
        A model's name, or a user's, is nobody's business in a browser.
        """
        handle = replace(HANDLE, attributes={"gen_ai.request.model": "m", "user.id": "u", "otel_feedback.to": "a"})
        found = read_token(write_token(replace(GRANT, handle=handle), KEY), (KEY,), now=NOW)

        assert {"otel_feedback.to": "a"} == found.handle.attributes

    @pytest.mark.parametrize(
        "handle",
        [
            HANDLE,
            replace(HANDLE, root=7),
            replace(HANDLE, root=7, attributes={"braintrust.parent": "project_name:chat"}),
        ],
    )
    def test_the_plain_case_is_short(self, handle: of.FeedbackHandle) -> None:
        """
        It fits into a header, a cookie, an address and an attribute of HTML as it is.
        """
        token = write_token(replace(GRANT, handle=handle), KEY)

        assert len(token) <= 120
        assert set(token) <= set(ALPHABET)

    def test_it_stays_readable(self) -> None:
        """
        What an earlier release has issued holds: this is such a token, byte by byte.
        """
        body = (
            b"\x03"
            + bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
            + bytes.fromhex("b7ad6b7169203331")
            + b"\x01"
            + (1_800_000_000).to_bytes(5, "big")
            + (7).to_bytes(8, "big")
            + b'{"p":"project_name:chat","n":["rating"],"u":"u-42"}'
        )
        signature = hmac.new(KEY.encode(), b"of1_" + body, "sha256").digest()[:16]
        token = "of1_" + base64.urlsafe_b64encode(body + signature).decode().rstrip("=")
        attributes = {"braintrust.parent": "project_name:chat"}
        grant = of.FeedbackGrant(
            of.FeedbackHandle(CONTEXT, 7, attributes=attributes),
            datetime(2027, 1, 15, 8, tzinfo=timezone.utc),
            ("rating",),
            "u-42",
        )

        assert (token, grant) == (write_token(grant, KEY), read_token(token, (KEY,), now=NOW))


class TestForgery:
    def test_nothing_that_was_changed_is_taken(self) -> None:
        """
        Whatever is done to a token, it is none any more; the long form is below.
        """
        assert [] == accepted_of(20_000, seed=1)

    @pytest.mark.chaos
    def test_none_of_a_million_changed_ones_is_taken(self) -> None:
        """
        The same a million times.
        """
        assert [] == accepted_of(1_000_000, seed=2)

    def test_the_harness_finds_a_check_that_is_not_strict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Were the text not held against what we would write, two texts would be one token.
        """
        monkeypatch.setattr("otel_feedback._tokens._text", lambda packed: _Anything())

        assert accepted_of(20_000, seed=1)

    @pytest.mark.parametrize(
        "token",
        [
            "",
            "of1_",
            "0af7651916cd43dd8448eb211c80319c",
            HANDLE.to_traceparent(),
            TOKEN.replace("of1_", "of2_"),
            TOKEN[len(PREFIX) :],
            TOKEN + "=",
            f" {TOKEN}",
            f"{TOKEN}\n",
            TOKEN[:40],
            "of1_" + "A" * MAX_TOKEN_CHARS,
            "of1_é" + TOKEN[5:],
            "of1_\ud800",
        ],
    )
    def test_what_is_no_token_is_malformed(self, token: str) -> None:
        """
        Raw ids, other versions and half of a token are told from one that was signed by somebody else.
        """
        assert "malformed" == refused(token)

    @pytest.mark.parametrize("token", [None, 7, TOKEN.encode(), [TOKEN], {"token": TOKEN}])
    def test_what_is_no_text_is_malformed(self, token: Any) -> None:
        """
        A body may have anything in a token's place.
        """
        assert "malformed" == refused(token)

    def test_another_key_is_another_hand(self) -> None:
        """
        A token of another deployment, or one that was signed before a key was taken out, is refused.
        """
        assert "signature" == refused(write_token(GRANT, OTHER))
        assert "signature" == refused(TOKEN, keys=(OLD,))

    def test_it_ends_to_the_second(self) -> None:
        """
        At its end it is over.
        """
        assert GRANT == read_token(TOKEN, (KEY,), now=GRANT.expires_at - timedelta(microseconds=1))
        assert "expired" == refused(TOKEN, now=GRANT.expires_at)

    def test_keys_are_changed_without_losing_a_token(self) -> None:
        """
        The newest key signs, and those before it still verify.
        """
        assert GRANT == read_token(write_token(GRANT, OLD), (KEY, OLD), now=NOW)


class _Anything(str):
    """Equals every text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class Closed(MemoryStore):
    """A store that cannot be opened."""

    def open(self) -> None:
        raise AssertionError("it was opened")


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture
def exporter() -> InMemoryFeedbackExporter:
    """What the judgements go to."""
    return InMemoryFeedbackExporter("a")


@pytest.fixture
def provider(exporter: InMemoryFeedbackExporter, clock: FakeClock) -> Iterator[of.FeedbackProvider]:
    """A provider with two keys, which records only."""
    settings = of.Settings(signing_keys=(KEY, OLD), delivery="none", key_wait_millis=0)
    with of.FeedbackProvider(
        exporters=[exporter], store="memory:", settings=settings, clock=clock, tracer_provider=TracerProvider()
    ) as made:
        yield made


class TestIssuing:
    def test_a_token_grants_what_it_was_issued_for(self, provider: of.FeedbackProvider, clock: FakeClock) -> None:
        """
        The call, the names, the user, and thirty days unless told otherwise.
        """
        token = provider.issue_token(HANDLE, names=["rating", "tone", "rating"], user_id="u-42")
        grant = provider.verify_token(token)
        short = provider.verify_token(provider.issue_token(HANDLE, expires_in=timedelta(milliseconds=1_500)))
        now = datetime.fromtimestamp(clock.time_unix_nano() / 1e9, tz=timezone.utc)

        assert (HANDLE, ("rating", "tone"), "u-42") == (grant.handle, grant.names, grant.user_id)
        assert timedelta(days=30) <= grant.expires_at - now < timedelta(days=30, seconds=1)
        assert timedelta(seconds=1.5) <= short.expires_at - now < timedelta(seconds=2.5)

    def test_it_asks_nobody(self) -> None:
        """
        No store is opened or read: a token is there before the first item of a stream.
        """
        settings = of.Settings(signing_keys=(KEY,), delivery="none")
        provider = of.FeedbackProvider(exporters=[], store=Closed(), settings=settings)

        assert HANDLE == provider.verify_token(provider.issue_token(HANDLE)).handle

    @pytest.mark.parametrize(
        ("given_arguments", "field"),
        [
            ({"handle": None}, "target"),
            ({"handle": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "target"),
            ({"handle": of.FeedbackHandle(SpanContext(0, 0, False))}, "target"),
            ({"names": "rating"}, "names"),
            ({"names": []}, "names"),
            ({"names": [""]}, "name"),
            ({"names": [f"name-{number}" for number in range(400)]}, "names"),
            ({"user_id": ""}, "user_id"),
            ({"user_id": 7}, "user_id"),
            ({"expires_in": timedelta(0)}, "expires_in"),
            ({"expires_in": 3600}, "expires_in"),
            ({"expires_in": timedelta.max}, "expires_in"),
        ],
    )
    def test_what_cannot_be_granted_is_refused(
        self, provider: of.FeedbackProvider, given_arguments: Any, field: str
    ) -> None:
        """
        The error names the argument.
        """
        with pytest.raises(InvalidFeedbackError) as caught:
            provider.issue_token(**{"handle": HANDLE, **given_arguments})

        assert field == caught.value.field

    def test_without_a_key_there_is_no_token(self) -> None:
        """
        Never an unsigned one: the error says what to set, and what comes is refused.
        """
        settings = of.Settings(delivery="none")
        with of.FeedbackProvider(exporters=[], store="memory:", settings=settings) as provider:
            with pytest.raises(ConfigurationError, match="OTEL_FEEDBACK_SIGNING_KEYS") as caught:
                provider.issue_token(HANDLE)
            with pytest.raises(InvalidTokenError, match="OTEL_FEEDBACK_SIGNING_KEYS") as refusal:
                provider.record(TOKEN, "rating", True)

        assert ("OTEL_FEEDBACK_SIGNING_KEYS", "no_keys") == (caught.value.setting, refusal.value.reason)

    def test_switched_off_there_is_an_empty_one(self) -> None:
        """
        And nothing is recorded under it.
        """
        with of.FeedbackProvider(settings=of.Settings(disabled=True)) as provider:
            token = provider.issue_token(HANDLE)

            assert ("", {}) == (token, provider.record(token, "rating", True).deliveries)

    def test_the_keys_are_shown_nowhere(self, provider: of.FeedbackProvider) -> None:
        """
        Neither a setting's repr nor a judgement's has a key or a token in it.
        """
        feedback = of.Feedback(target=provider.issue_token(HANDLE), name="rating", value=True)
        shown = f"{provider.settings!r} {provider!r} {feedback!r}"

        assert (False, False) == (KEY in shown, PREFIX in shown)

    @pytest.mark.parametrize("keys", ["a key", ["a key"], ("",), (" ",), (7,), None, (KEY, "\udcff")])
    def test_keys_that_are_none_are_refused(self, keys: Any) -> None:
        """
        A text alone would be a key a letter.
        """
        with pytest.raises(ConfigurationError) as caught:
            of.Settings(signing_keys=keys)

        assert "signing_keys" == caught.value.setting

    def test_keys_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Comma-separated, the newest first.
        """
        monkeypatch.setenv("OTEL_FEEDBACK_SIGNING_KEYS", f" {KEY} ,{OLD},")

        assert (KEY, OLD) == of.Settings.from_environment().signing_keys


class TestRecording:
    def test_a_token_is_as_good_as_its_handle(self, provider: of.FeedbackProvider) -> None:
        """
        The same person's word on the same call is the same judgement, by token or by handle.
        """
        token = provider.issue_token(HANDLE, names=["rating"], user_id="u-42")
        by_token = provider.record(token, "rating", True)
        by_handle = provider.record(HANDLE, "rating", False, user_id="u-42")
        record = provider._store.latest(by_token.id)

        assert record is not None
        assert (by_token.id, 1, HANDLE, "u-42") == (by_handle.id, record.revision, record.handle, record.user_id)

    @pytest.mark.parametrize(
        ("granted", "said", "reason"),
        [
            ({"names": ["rating"]}, {"name": "tone"}, "name"),
            ({"user_id": "u-1"}, {"user_id": "u-2"}, "user"),
            ({"expires_in": timedelta(seconds=1)}, {}, "expired"),
        ],
    )
    def test_another_name_user_or_time_is_refused(
        self, provider: of.FeedbackProvider, clock: FakeClock, granted: Any, said: Any, reason: str
    ) -> None:
        """
        Nothing is stored.
        """
        token = provider.issue_token(HANDLE, **granted)
        clock.advance(seconds=2)
        with pytest.raises(InvalidTokenError) as caught:
            provider.record(token, **{"name": "rating", "value": True, **said})

        assert (reason, {}) == (caught.value.reason, provider.stats())

    @pytest.mark.parametrize(
        ("granted", "said", "user"), [("u-1", "u-1", "u-1"), ("u-1", None, "u-1"), (None, "u-2", "u-2")]
    )
    def test_a_token_without_a_user_leaves_it_to_the_app(
        self, provider: of.FeedbackProvider, granted: str | None, said: str | None, user: str
    ) -> None:
        """
        Who judges may be said by the token, by the app, or by both of them alike.
        """
        receipt = provider.record(provider.issue_token(HANDLE, user_id=granted), "rating", True, user_id=said)
        record = provider._store.latest(receipt.id)

        assert record is not None
        assert user == record.user_id

    def test_what_is_hidden_of_a_user_is_hidden_of_a_tokens_user(self, clock: FakeClock) -> None:
        """
        Redaction sees the user whom the token names.
        """
        seen = []

        def redact(feedback: of.Feedback) -> of.Feedback:
            seen.append(feedback.user_id)
            return replace(feedback, user_id="somebody")

        settings = of.Settings(signing_keys=(KEY,), delivery="none")
        with of.FeedbackProvider(exporters=[], store="memory:", settings=settings, clock=clock, redact=redact) as made:
            receipt = made.record(made.issue_token(HANDLE, user_id="u-42"), "rating", True)
            record = made._store.latest(receipt.id)

        assert record is not None
        assert (["u-42"], "somebody") == (seen, record.user_id)

    def test_a_hook_that_names_another_call_is_taken_at_its_word(self, clock: FakeClock) -> None:
        """
        By a handle, or by a token of ours; what it put in the place of a key is looked up under no key.
        """
        settings = of.Settings(signing_keys=(KEY,), delivery="none", key_wait_millis=0)
        issuer = of.FeedbackProvider(exporters=[], store="memory:", settings=settings, clock=clock)
        stranger = of.FeedbackHandle(SpanContext(7, 7, True, TraceFlags(1)))
        for target in (HANDLE, issuer.issue_token(HANDLE)):
            with of.FeedbackProvider(
                exporters=[],
                store="memory:",
                settings=settings,
                clock=clock,
                redact=lambda feedback, target=target: replace(feedback, key=None, target=target),
            ) as made:
                made.bind_key(stranger, "None")
                record = made._store.latest(made.record(key="m-1", name="rating", value=True).id)

            assert record is not None
            assert HANDLE.span_id == record.handle.span_id

    def test_the_route_is_in_the_token(self, provider: of.FeedbackProvider) -> None:
        """
        Where the call asked its feedback to go is where it goes, from a browser as well.
        """
        token = provider.issue_token(replace(HANDLE, attributes={"otel_feedback.to": "acme"}))

        assert ["acme"] == list(provider.record(token, "rating", True).deliveries)

    def test_the_global_functions_are_the_providers(self, provider: of.FeedbackProvider) -> None:
        """
        A captured call's handle makes a token inside of the call, and feedback comes back by it.
        """
        of.set_feedback_provider(provider)
        tracer = provider._tracer_provider.get_tracer("app")
        with tracer.start_as_current_span("outer"), of.capture_span("answer") as handle:
            token = of.issue_token(handle, names=["rating"], expires_in=timedelta(hours=1))
        found = of.verify_token(token)
        receipt = of.record_feedback(token, "rating", True)
        of.set_feedback_provider(None)

        assert (handle.span_id, handle.root_span_id) == (found.handle.span_id, found.handle.root_span_id)
        assert "pending" == receipt.deliveries["a"].state


class TestRetracting:
    def test_a_token_takes_back_what_its_holder_said(self, provider: of.FeedbackProvider) -> None:
        """
        By the global function as well.
        """
        of.set_feedback_provider(provider)
        token = provider.issue_token(HANDLE, user_id="ada")
        receipt = provider.record(token, "rating", True)
        of.retract_feedback(receipt.id, target=token)
        of.set_feedback_provider(None)
        latest = provider._store.latest(receipt.id)

        assert latest is not None
        assert latest.retracts

    @pytest.mark.parametrize(
        "asked",
        [
            {"target": HANDLE},
            {"target": HANDLE, "user_id": "bob"},
            {"target": of.FeedbackHandle(SpanContext(1, 2, True, TraceFlags(1))), "user_id": "ada"},
        ],
    )
    def test_nobody_takes_back_what_another_said(self, provider: of.FeedbackProvider, asked: Any) -> None:
        """
        Nor what was said of another call; it is as unknown to them as any id.
        """
        receipt = provider.record(HANDLE, "rating", True, user_id="ada")
        with pytest.raises(of.UnknownTargetError, match=receipt.id):
            provider.retract(receipt.id, **asked)

        assert "pending" == provider.status(receipt.id).deliveries["a"].state

    def test_what_waits_for_its_key_is_nobodys_yet(self, exporter: InMemoryFeedbackExporter) -> None:
        """
        Which call it is about is not known; who recorded it takes it back by its id alone.
        """
        settings = of.Settings(signing_keys=(KEY,), delivery="none", key_wait_millis=0, on_unknown_key="park")
        with of.FeedbackProvider(exporters=[exporter], store="memory:", settings=settings) as provider:
            receipt = provider.record(key="m-1", name="rating", value=True)
            with pytest.raises(of.UnknownTargetError):
                provider.retract(receipt.id, target=provider.issue_token(HANDLE))
            before = provider.status(receipt.id)
            provider.retract(receipt.id)

        assert "parked" == before.deliveries["a"].state

    def test_a_token_that_is_none_takes_nothing_back(self, provider: of.FeedbackProvider) -> None:
        """
        One for other names neither.
        """
        receipt = provider.record(HANDLE, "rating", True)
        for token, reason in (("of1_x", "malformed"), (provider.issue_token(HANDLE, names=["tone"]), "name")):
            with pytest.raises(InvalidTokenError) as caught:
                provider.retract(receipt.id, target=token)
            assert reason == caught.value.reason
