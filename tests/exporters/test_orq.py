from __future__ import annotations

import json
import logging
import random
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from exporter_bench import (
    ID,
    NOON,
    REFUSED,
    SECRET,
    STATUSES,
    TRACE,
    UNCLEAR,
    answer,
    answering,
    asked,
    changed,
    contract,
    judgements,
    paths,
    play,
    published,
    record,
    taken_back,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_feedback import OrqExporter
from otel_feedback._record import new_id
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import Result, RetryableFailure, Success, Unclear
from otel_feedback.exporters._http import HTTPOptions
from otel_feedback.exporters.orq import CHOICES, PRODUCTS, ulid, ulid_of
from otel_feedback.testing import ExporterContract

# What orq publishes of a ULID; the first digit holds the three topmost of 128 bits.
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
FEEDBACK, REMOVE = "/v2/feedback", "/v2/feedback/remove"
# What orq's page says of a workspace's own choices (VENDORS, orq, properties).
PUBLISHED_CHOICES = {
    "rating": ("good", "bad"),
    "defects": (
        "grammatical",
        "spelling",
        "hallucination",
        "repetition",
        "inappropriate",
        "off_topic",
        "incompleteness",
        "ambiguity",
    ),
    "interactions": ("saved", "selected", "deleted", "shared", "copied", "reported"),
}
STATUSES_HERE: Mapping[int, type[Result]] = {**STATUSES, 404: RetryableFailure, 409: Success}


def said_to_orq(exporter: OrqExporter, **said: Any) -> dict[str, Any]:
    """Answer what orq gets of a judgement: property and value, by kind of part."""
    return {part.kind: (part.body["property"], part.body["value"]) for part in exporter.parts(record(**said))}


class TestContract(ExporterContract):
    secret = SECRET

    def answered(self, status: int) -> OrqExporter:
        made = OrqExporter(SECRET, comment_property="comment", options=answering(status))
        made.start()
        return made

    @pytest.fixture
    def exporter(self) -> Iterator[OrqExporter]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200))
        exporter = OrqExporter(SECRET, comment_property="comment", options=HTTPOptions(transport=transport))
        exporter.start()
        yield exporter
        exporter.shutdown()


class TestMapping:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("rating", True, ("rating", ["good"])),
            ("rating", False, ("rating", ["bad"])),
            ("thumb", True, ("rating", ["good"])),
            ("toxic", True, ("toxic", ["true"])),
            ("toxic", False, ("toxic", ["false"])),
            ("relevance", 0.5, ("relevance", 0.5)),
            ("tone", "warm", ("tone", ["warm"])),
            ("tone", ["warm", "short"], ("tone", ["warm", "short"])),
            ("rating", "good", ("rating", ["good"])),
            ("defects", "spelling", ("defects", ["spelling"])),
            ("defects", ["spelling", "off_topic"], ("defects", ["spelling", "off_topic"])),
            ("interactions", ["saved"], ("interactions", ["saved"])),
        ],
    )
    def test_each_value_has_its_property(self, name: str, value: object, expected: object) -> None:
        """
        A thumb is orq's rating; a choice is a list even when it is one; anything else is a declared property.
        """
        exporter = OrqExporter(properties=("toxic", "relevance", "tone"))

        assert {"value": expected} == said_to_orq(exporter, name=name, value=value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("toxic", True),
            ("relevance", 0.5),
            ("tone", "warm"),
            ("rating", "splendid"),
            ("rating", 0.5),
            ("defects", ["spelling", "loud"]),
            ("defects", True),
            ("interactions", "printed"),
            ("correction", "Paris"),
        ],
    )
    def test_what_orq_would_refuse_is_not_sent(self, name: str, value: object) -> None:
        """
        A name that nobody declared, or a label that orq does not publish, is not carried.
        """
        assert {} == said_to_orq(OrqExporter(), name=name, value=value)

    def test_a_number_keeps_its_scale_to_itself(self) -> None:
        """
        A number is sent as it was given: orq's property defines its range.
        """
        exporter = OrqExporter(properties=("stars",))

        assert {"value": ("stars", 4)} == said_to_orq(exporter, name="stars", value=4, scale=(1, 5))

    def test_the_names_of_thumbs_are_a_setting(self) -> None:
        """
        A boolean is a thumb under the configured names, and under no other.
        """
        exporter = OrqExporter(thumbs=("helpful",))

        assert {"value": ("rating", ["bad"])} == said_to_orq(exporter, name="helpful", value=False)
        assert {} == said_to_orq(exporter, name="rating", value=False)

    @pytest.mark.parametrize(
        ("correction", "expected"),
        [
            ("Paris", "Paris"),
            ({"b": [1, {"d": 1, "c": 2}], "a": None}, '{"a":null,"b":[1,{"c":2,"d":1}]}'),
            (["Zürich"], '["Zürich"]'),
            (7, "7"),
            (False, "false"),
        ],
    )
    def test_a_correction_is_a_string(self, correction: object, expected: str) -> None:
        """
        A correction that is no string is canonical JSON text: equal values are equal texts.
        """
        assert {"correction": ("correction", expected)} == said_to_orq(OrqExporter(), correction=correction)

    def test_a_comment_needs_a_property(self) -> None:
        """
        A comment goes under the property that the user names, and is not carried without one.
        """
        exporter = OrqExporter(comment_property="remark")

        assert {"comment": ("remark", "Spot on")} == said_to_orq(exporter, comment="Spot on")
        assert {} == said_to_orq(OrqExporter(), comment="Spot on")

    def test_what_has_no_place_is_carried_by_no_part(self) -> None:
        """
        Tags, metadata, the user and the time have no field at orq, and no part claims them.
        """
        parts = OrqExporter(comment_property="remark").parts(
            record(value=True, comment="c", correction="x", tags=["t"], user_id="u", metadata={"m": 1})
        )

        assert [{"value"}, {"correction"}, {"comment"}] == [set(part.carries) for part in parts]
        assert [] == OrqExporter().parts(record(tags=["t"]))

    def test_a_body_has_five_fields(self) -> None:
        """
        Property, value, trace, product and id: the product is always said, since orq's default is another.
        """
        (part,) = OrqExporter().parts(record(value=True))

        assert {
            "property": "rating",
            "value": ["good"],
            "trace_id": TRACE,
            "product": "otel",
            "id": ulid(ID),
        } == part.body

    def test_the_choices_are_the_published_ones(self) -> None:
        """
        Each label that every workspace has is sent as it is written, alone and with the others; none spelt otherwise.
        """
        exporter = OrqExporter()
        for name, labels in PUBLISHED_CHOICES.items():
            sent = [said_to_orq(exporter, name=name, value=label) for label in (*labels, [*labels])]
            otherwise = [said_to_orq(exporter, name=name, value=label.upper()) for label in labels]

            assert [{"value": (name, [label])} for label in labels] + [{"value": (name, [*labels])}] == sent
            assert [{}] * len(labels) == otherwise
        assert {name: frozenset(labels) for name, labels in PUBLISHED_CHOICES.items()} == CHOICES

    def test_the_products_are_the_published_ones(self, caplog: pytest.LogCaptureFixture) -> None:
        """
        Those of the contract, and one that orq has added since, are warned about by no word.
        """
        body = contract("orq", FEEDBACK).schema["allOf"][0]
        published_products = {*body["properties"]["product"]["enum"], "mcp_gateway"}
        for product in published_products:
            OrqExporter(product=product)

        assert ([], published_products) == (caplog.messages, PRODUCTS)

    def test_a_product_alone_says_nothing_of_the_property(self) -> None:
        """
        Under a name that orq does not know, a product of the application's is no reason to refuse the comment.
        """
        exporter = OrqExporter(comment_property="remark")
        native = {"orq": {"product": "agents"}}
        (part,) = exporter.parts(record("mood", value=0.5, comment="c", native=native))

        assert ("remark", "agents") == (part.body["property"], part.body["product"])


class TestIdentity:
    @given(number=st.uuids())
    def test_any_uuid_is_a_ulid(self, number: uuid.UUID) -> None:
        """
        The 128 bits of any UUID are a valid ULID, and nothing of them is lost.
        """
        text = ulid(str(number))

        assert ULID.fullmatch(text)
        assert number.int == sum(
            "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(char) << 5 * place for place, char in enumerate(reversed(text))
        )

    def test_a_hundred_thousand_ids_come_back_from_their_ulids(self) -> None:
        """
        Each of our ids, a UUIDv7, is a ULID of orq's pattern with the same time, and no two are the same.
        """
        rng, digits = random.Random(7), {char: number for number, char in enumerate("0123456789ABCDEFGHJKMNPQRSTVWXYZ")}
        seen = set()
        for number in range(100_000):
            identifier = new_id(NOON + number * 1_000_000, rng)
            text = ulid(identifier)
            bits = 0
            for char in text:
                bits = bits << 5 | digits[char]
            assert identifier == str(uuid.UUID(int=bits))
            assert ULID.fullmatch(text)
            assert (NOON + number * 1_000_000) // 1_000_000 == bits >> 80
            seen.add(text)

        assert 100_000 == len(seen)

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            ("00000000-0000-0000-0000-000000000000", "0" * 26),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", "7" + "Z" * 25),
            ("0188bac7-4afa-78aa-bc3b-bd1eef28d881", "01H2XCEJQTF2NBREXX3VQJHP41"),
        ],
    )
    def test_known_ulids(self, number: str, expected: str) -> None:
        """
        The ends of the range, and a pair that another library agrees on.
        """
        assert expected == ulid(number)

    def test_the_ids_of_changes_never_change(self) -> None:
        """
        What another version of this library has sent is removed and repeated under the same ids.
        """
        assert [ulid(ID), "2KWNYGD9HDG37SEKBD54NDHJWX", "38CVJWMMRJGHW8PPBTKK55H0V4"] == [
            ulid_of(ID, revision) for revision in (0, 1, 2)
        ]

    def test_each_part_and_each_revision_has_an_id_of_its_own(self) -> None:
        """
        The ids are the same on every try, and differ between parts and between revisions.
        """
        exporter = OrqExporter(comment_property="remark")
        ids = [
            part.body["id"]
            for revision in (0, 1, 2, 0, 1, 2)
            for part in exporter.parts(record(value=True, comment="c", correction="x", revision=revision))
        ]

        assert ids[:9] == ids[9:]
        assert 9 == len(set(ids))


class TestRequests:
    def test_one_call_a_part(self) -> None:
        """
        Each part is posted by itself, with the key as a bearer.
        """
        exporter = OrqExporter(SECRET, base_url="https://my.orq.ai/")
        requests, results = play(exporter.exchange(exporter.parts(record(value=True, correction="x"))))

        assert [Success("HTTP 200")] * 2 == results
        assert [("https://my.orq.ai/v2/feedback", f"Bearer {SECRET}")] * 2 == [
            (str(request.url), request.headers["authorization"]) for request in requests
        ]

    def test_a_change_removes_what_was_there_first(self) -> None:
        """
        A changed judgement is the removal of the revision that is there and a creation under a new id.
        """
        exporter = OrqExporter()
        before, after = record(value=True, revision=1), record(value=False, revision=2)
        requests, results = play(exporter.exchange(changed(exporter, before, after)))

        where = {"trace_id": TRACE, "product": "otel"}
        assert [Success("HTTP 200")] == results
        assert [
            (REMOVE, {**where, "id": ulid_of(ID, 1)}),
            (FEEDBACK, {**where, "id": ulid_of(ID, 2), "property": "rating", "value": ["bad"]}),
        ] == [asked(request) for request in requests]

    def test_a_change_removes_every_revision_that_may_be_there(self) -> None:
        """
        Where answers were lost, each revision that may have arrived is removed, the newest first, before the new one.
        """
        exporter = OrqExporter()
        parts = changed(exporter, record(value=True, revision=4), record(value=False, revision=5))
        requests, results = play(exporter.exchange([replace(part, revisions=(4, 2, 0)) for part in parts]))

        assert [Success("HTTP 200")] == results
        assert [ulid_of(ID, revision) for revision in (4, 2, 0, 5)] == [asked(each)[1]["id"] for each in requests]

    def test_a_revision_that_never_arrived_does_not_hold_the_others_up(self) -> None:
        """
        Of those that may be there, a 404 is as good as a removal, and the next is removed all the same.
        """
        exporter = OrqExporter()
        parts = taken_back(exporter.parts(record(value=True, revision=2)))
        said = (answer(404), answer(200), answer(404))
        requests, results = play(exporter.exchange([replace(part, revisions=(2, 1, 0)) for part in parts]), *said)

        assert ([REMOVE] * 3, [Success("HTTP 404: it was not there")]) == (paths(requests), results)

    @pytest.mark.parametrize("failure", [answer(500), answer(429), UNCLEAR, REFUSED])
    def test_a_removal_that_fails_ends_the_removals(self, failure: Any) -> None:
        """
        Nothing else is asked of a vendor that does not answer, and nothing is created.
        """
        exporter = OrqExporter()
        parts = changed(exporter, record(value=True, revision=1), record(value=False, revision=2))
        requests, (result,) = play(
            exporter.exchange([replace(part, revisions=(1, 0)) for part in parts]), answer(200), failure
        )

        assert ([REMOVE, REMOVE], True) == (paths(requests), isinstance(result, (RetryableFailure, Unclear)))

    @pytest.mark.parametrize("failure", [answer(401), answer(422), answer(429), answer(500), UNCLEAR, REFUSED])
    @pytest.mark.parametrize(
        ("before", "gone"), [((), ()), ((answer(200),), (2,)), ((answer(200), answer(404), answer(200)), (2, 1, 0))]
    )
    def test_a_failure_tells_what_was_removed_before_it(
        self, before: tuple[httpx.Response, ...], gone: tuple[int, ...], failure: Any
    ) -> None:
        """
        Another try need not remove it again, be it that a removal failed or the creation after all of them.
        """
        exporter = OrqExporter()
        parts = changed(exporter, record(value=True, revision=2), record(value=False, revision=3))
        asking = exporter.exchange([replace(part, revisions=(2, 1, 0)) for part in parts])

        assert [gone] == [result.removed for result in play(asking, *before, failure)[1]]

    def test_what_was_never_there_is_as_good_as_removed(self) -> None:
        """
        A removal that orq answers 404 to is a success: the part is not there.
        """
        exporter = OrqExporter()
        parts = taken_back(exporter.parts(record(value=True)))

        assert [Success("HTTP 404: it was not there")] == play(exporter.exchange(parts), answer(404))[1]

    def test_a_removal_is_all_there_is_of_a_retraction(self) -> None:
        """
        What is taken back is removed, in each revision that may be there, and not created again.
        """
        exporter = OrqExporter()
        parts = taken_back(exporter.parts(record(value=True, revision=1)))
        requests, results = play(exporter.exchange([replace(part, revisions=(1, 0)) for part in parts]))

        assert ([REMOVE, REMOVE], [Success("HTTP 200")]) == (paths(requests), results)
        assert [ulid_of(ID, 1), ulid_of(ID, 0)] == [asked(request)[1]["id"] for request in requests]

    @pytest.mark.parametrize("status", [status for status in STATUSES if status >= 300 and status != 404])
    def test_nothing_is_created_while_the_old_one_stands(self, status: int) -> None:
        """
        A removal that fails is the result of the change; both ratings never stand side by side.
        """
        exporter = OrqExporter()
        parts = changed(exporter, record(value=True), record(value=False, revision=1))
        requests, results = play(exporter.exchange(parts), answer(status))

        assert ([REMOVE], [STATUSES[status]]) == (paths(requests), [type(result) for result in results])

    def test_silence_at_a_removal_is_the_result(self) -> None:
        """
        Without an answer to the removal nothing is created.
        """
        exporter = OrqExporter()
        parts = changed(exporter, record(value=True), record(value=False, revision=1))
        requests, results = play(exporter.exchange(parts), UNCLEAR)

        assert ([REMOVE], [UNCLEAR.result]) == (paths(requests), results)

    @pytest.mark.parametrize(("status", "expected"), STATUSES_HERE.items())
    def test_each_status_has_its_result(self, status: int, expected: type[Result]) -> None:
        """
        The shared table, but that a 404 may be a trace that has not arrived yet, and a 409 is our own id.
        """
        exporter = OrqExporter()
        _, results = play(exporter.exchange(exporter.parts(record(value=True))), answer(status))

        assert [expected] == [type(result) for result in results]

    def test_an_id_that_is_there_already_has_arrived(self) -> None:
        """
        After a lost answer a 409 to the same id says that the first try came through.
        """
        exporter = OrqExporter()
        (part,) = exporter.parts(record(value=True))
        lost = play(exporter.exchange([part]), UNCLEAR)[1]
        again = play(exporter.exchange([part]), answer(409, {"message": "id already exists"}))[1]

        assert ([UNCLEAR.result], [Success("HTTP 409: it is there already")]) == (lost, again)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
    def test_the_key_is_in_no_reason(self, status: int) -> None:
        """
        An error that echoes the authorization loses its text.
        """
        exporter = OrqExporter(SECRET)
        _, (result,) = play(
            exporter.exchange(exporter.parts(record(value=True))),
            lambda request: answer(status, {"message": f"Invalid API key: {request.headers['authorization']}"}),
        )

        assert (False, False) == (SECRET in result.reason, "Invalid" in result.reason)

    @pytest.mark.parametrize(
        ("body", "ending"),
        [({"message": "Trace not found"}, " Trace not found"), ({}, ""), (b"not JSON", "")],
    )
    def test_a_404_has_a_grace_and_a_hint(self, body: object, ending: str) -> None:
        """
        A 404 is tried again for six hours, and its reason asks what may be wrong.
        """
        exporter = OrqExporter()
        _, results = play(exporter.exchange(exporter.parts(record(value=True))), answer(404, body))

        reason = f"HTTP 404: has the trace arrived, and is the property defined in the workspace?{ending}"
        assert [RetryableFailure(reason, give_up_after_millis=6 * 60 * 60 * 1_000)] == results

    def test_orqs_message_is_in_the_reason(self) -> None:
        """
        A refusal says what orq says.
        """
        exporter = OrqExporter()
        _, (result,) = play(
            exporter.exchange(exporter.parts(record(value=True))), answer(400, {"message": "trace_id is malformed"})
        )

        assert "HTTP 400: trace_id is malformed" == result.reason

    @pytest.mark.parametrize("status", [400, 404, 422, 500])
    def test_what_was_said_is_in_no_reason(self, status: int) -> None:
        """
        An error that echoes the correction loses its text.
        """
        exporter = OrqExporter()
        parts = exporter.parts(record(correction="It is Canberra, not Sydney"))
        _, (result,) = play(
            exporter.exchange(parts), lambda request: answer(status, {"message": request.content.decode()})
        )

        assert "Canberra" not in result.reason

    @settings(max_examples=200)
    @given(judgement=judgements())
    def test_every_body_keeps_to_the_contract(self, judgement: Any) -> None:
        """
        Whatever is said, each request to create or remove is valid by the published contract.
        """
        exporter = OrqExporter(properties=("relevance", "toxic", "defects"), comment_property="remark")
        before = exporter.parts(judgement)
        requests, _ = play(exporter.exchange([*before, *taken_back(before)]))

        for request in requests:
            path, body = asked(request)
            assert [] == list(contract("orq", path).iter_errors(body))
            assert ULID.fullmatch(body["id"])
            assert not isinstance(body.get("value"), bool)

    def test_every_body_keeps_to_orqs_own_page(self) -> None:
        """
        The same by the page that orq publishes.
        """
        validator = published("orq", FEEDBACK)
        exporter = OrqExporter(properties=("relevance", "toxic"), comment_property="remark")

        @settings(max_examples=200)
        @given(judgement=judgements())
        def check(judgement: Any) -> None:
            for part in exporter.parts(judgement):
                assert [] == list(validator.iter_errors(json.loads(json.dumps(part.body))))

        check()


class TestNative:
    @pytest.mark.parametrize(
        ("native", "expected"),
        [
            ({"property": "tone"}, ("tone", ["good"], "otel")),
            ({"value": ["bad"]}, ("rating", ["bad"], "otel")),
            ({"value": "good"}, ("rating", "good", "otel")),
            ({"property": "score", "value": 7}, ("score", 7, "otel")),
            ({"product": "agents"}, ("rating", ["good"], "agents")),
        ],
    )
    def test_each_published_field_can_be_set(self, native: dict[str, Any], expected: tuple[str, object, str]) -> None:
        """
        Property, value and product, each alone or together.
        """
        (part,) = OrqExporter().parts(record(value=True, native={"orq": native}))

        assert expected == (part.body["property"], part.body["value"], part.body["product"])

    @pytest.mark.parametrize(
        "native",
        [
            {"id": ulid(ID)},
            {"trace_id": TRACE},
            {"authorization": "x"},
            {"property": 7},
            {"property": None},
            {"value": True},
            {"value": None},
            {"value": [1]},
            {"value": {"a": 1}},
            {"product": 1},
            {"property": ""},
            {"property": " "},
            {"value": ""},
            {"value": []},
            {"value": [""]},
            {"value": ["good", ""]},
            {"product": ""},
        ],
    )
    def test_ids_and_wrong_types_are_refused(self, native: dict[str, Any]) -> None:
        """
        What is not published, or of another type, is refused before acceptance.
        """
        with pytest.raises(InvalidFeedbackError, match="native"):
            OrqExporter().parts(record(value=True, native={"orq": native}))

    @pytest.mark.parametrize(
        "said",
        [
            {"comment": "c", "native": {"orq": {"property": "tone"}}},
            {"name": "tone", "value": "warm", "native": {"orq": {"value": ["cold"]}}},
        ],
    )
    def test_half_of_a_property_is_refused(self, said: dict[str, Any]) -> None:
        """
        A property without a value, or a value without one, would be dropped in silence.
        """
        with pytest.raises(InvalidFeedbackError) as caught:
            OrqExporter().parts(record(**said))

        assert "native.orq" == caught.value.field

    def test_another_exporters_fields_are_not_ours(self) -> None:
        """
        Fields are given by the exporter's name, not by the vendor's.
        """
        given_to_other = record(value=True, native={"orq": {"property": "tone"}})

        assert "rating" == OrqExporter(name="orq-eu").parts(given_to_other)[0].body["property"]


class TestConstructor:
    def test_arguments_win_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Key and URL come from the environment where they are not given.
        """
        monkeypatch.setenv("ORQ_API_KEY", " key-1\n")
        monkeypatch.setenv("ORQ_BASE_URL", "https://orq.internal/")

        assert ("https://orq.internal", "Bearer key-1") == (
            OrqExporter().base_url,
            OrqExporter().headers["authorization"],
        )
        assert ("https://my.orq.ai", "Bearer key-2") == (
            OrqExporter(base_url="https://my.orq.ai").base_url,
            OrqExporter("key-2").headers["authorization"],
        )

    def test_the_default_is_the_published_address(self) -> None:
        """
        Without a setting feedback goes to the address on orq's page.
        """
        assert "https://api.orq.ai" == OrqExporter().base_url

    def test_to_record_it_needs_no_key_and_to_deliver_it_does(self) -> None:
        """
        A process that only records makes the exporter without a key; starting it is refused.
        """
        exporter = OrqExporter()

        with pytest.raises(ConfigurationError, match="the exporter 'orq' has no key: set ORQ_API_KEY"):
            exporter.start()

    @pytest.mark.parametrize(
        ("setting", "given_value"),
        [
            ("api_key", 3),
            ("base_url", 3),
            ("name", ""),
            ("name", None),
            ("options", 3),
            ("thumbs", "rating"),
            ("thumbs", [""]),
            ("properties", "tone"),
            ("properties", 3),
            ("comment_property", ""),
            ("comment_property", 3),
            ("product", ""),
            ("product", ["otel"]),
        ],
    )
    def test_a_wrong_argument_is_refused_by_name(self, setting: str, given_value: Any) -> None:
        """
        What would fail later, or do nothing in silence, is refused when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            OrqExporter(**{setting: given_value})

        assert setting == caught.value.setting

    def test_an_unknown_product_is_warned_about(self, caplog: pytest.LogCaptureFixture) -> None:
        """
        The list of products grows: an unknown one is sent all the same, with a warning.
        """
        caplog.set_level(logging.WARNING)
        (part,) = OrqExporter(product="next-year").parts(record(value=True))

        assert "next-year" == part.body["product"]
        assert ["orq: 'next-year' is no product that otel-feedback knows; sending it all the same"] == caplog.messages

    @pytest.mark.parametrize("choice", ["rating", "defects", "interactions"])
    def test_a_choice_is_no_place_for_comments(self, choice: str) -> None:
        """
        orq would refuse each text; that is said when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            OrqExporter(comment_property=choice)

        assert (f"orq's {choice} is a choice and takes no text", "comment_property") == (
            str(caught.value),
            caught.value.setting,
        )

    def test_its_repr_has_no_key(self) -> None:
        """
        The repr names the exporter and its place.
        """
        assert "<OrqExporter name='orq' base_url='https://api.orq.ai'>" == repr(OrqExporter(SECRET))
