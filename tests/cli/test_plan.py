"""The command that shows what each vendor would get, and sends nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from otel_feedback import Feedback, FeedbackHandle, FeedbackProvider, InvalidFeedbackError
from otel_feedback.cli._plan import EXAMPLE_CALL, judgement_of, read_judgement, value_of
from otel_feedback.sandbox import Sandbox

COMMAND = (sys.executable, "-m", "otel_feedback", "plan")
CALL = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JUDGEMENT = {
    "name": "rating",
    "value": True,
    "comment": "words",
    "user_id": "u1",
    "id": "01999c8d-0000-7000-8000-000000000001",
}
KEYS = {
    "ORQ_API_KEY": "secret-of-orq",
    "BRAINTRUST_API_KEY": "secret-of-braintrust",
    "BRAINTRUST_PARENT": "project_name:ours",
    "WANDB_API_KEY": "secret-of-weave",
    "WANDB_ENTITY": "team",
    "WANDB_PROJECT": "ours",
}
ALL = {**KEYS, "OTEL_FEEDBACK_EXPORTERS": "orq,braintrust,weave,otlp,console"}


def run(*arguments: str, given: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **variables},
        input=given,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def planned(*arguments: str, given: str = "", **variables: str) -> Mapping[str, Any]:
    """Run the command for a machine, and read its answer."""
    done = run(*arguments, "--json", given=given, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    plans: Mapping[str, Any] = json.loads(done.stdout)
    return plans


def without_time(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out of a body of Weave's when it was recorded."""
    payload = body.get("payload", {})
    return {**body, "payload": {name: value for name, value in payload.items() if name != "recorded_at"}}


def singles(path: str, body: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Write a request as the plan does, which shows each part by itself: a batch of Weave's is several creations."""
    if not path.endswith("/batch/create"):
        return [(path, without_time(body))]
    return [(path.replace("/batch", ""), without_time(item)) for item in body["batch"]]


def test_what_is_planned_is_what_is_sent(monkeypatch: pytest.MonkeyPatch):
    """
    The requests that the command shows are those that the vendors get of the same judgement, and it makes none itself.
    """
    with Sandbox(port=0) as sandbox:
        variables = {**sandbox.environment(), "OTEL_FEEDBACK_EXPORTERS": "orq,weave"}
        plans = planned("-", given=json.dumps({**JUDGEMENT, "traceparent": CALL}), **variables)
        made_by_plan = sandbox.requests
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with FeedbackProvider(store="memory:") as provider:
            provider.record_many([Feedback(target=FeedbackHandle.from_traceparent(CALL), **JUDGEMENT)])  # type: ignore[arg-type]
            provider.force_flush()
        sent = [item for each in sandbox.requests for item in singles(each.path, each.json())]
        parts = [part for plan in plans.values() for part in plan["parts"]]
        shown = [(part["url"].removeprefix(sandbox.url), without_time(part["body"])) for part in parts]

    assert [] == made_by_plan
    assert 3 == len(shown)
    assert sorted(sent, key=str) == sorted(shown, key=str)


def test_a_person_reads_where_it_goes_what_is_in_it_and_what_is_missing():
    """
    Each destination has its name, its requests and what it has no place for; no key is in it, and nothing is coloured.
    """
    done = run("rating", "--value", "true", "--comment", "good", "--correction", "Paris", "--tag", "a", **ALL)

    assert (done.returncode, done.stderr) == (0, "")
    for name in ("orq", "braintrust", "weave", "otlp", "console"):
        assert f"\n{name}\n" in f"\n{done.stdout}".replace(" \n", "\n")
    assert "POST https://api.orq.ai/v2/feedback" in done.stdout
    assert "no place for: comment, tags" in done.stdout
    assert "waits for its span, 60 s at the most" in done.stdout
    assert "Nothing was sent, and nothing was stored." in done.stdout
    assert "secret-of" not in done.stdout
    assert "\x1b" not in done.stdout


def test_no_key_is_needed():
    """
    Somebody who plans has not always the keys of production.
    """
    plans = planned("rating", "--value", "true", **{**ALL, "ORQ_API_KEY": "", "WANDB_API_KEY": ""})

    assert {"orq": None, "weave": None} == {name: plans[name]["skipped"] for name in ("orq", "weave")}


def test_a_place_that_is_not_configured_is_told():
    """
    Without a project nothing could be sent; a span that names its own needs none.
    """
    without = {**ALL, "BRAINTRUST_PARENT": "", "WANDB_PROJECT": ""}
    plans = planned("rating", "--value", "true", **without)
    own = {"traceparent": CALL, "attributes": {"braintrust.parent": "project_name:theirs"}}
    given = json.dumps({"name": "rating", "value": True, "to": ["braintrust"], **own})
    (theirs,) = planned("-", given=given, **without)["braintrust"]["parts"]

    assert "set BRAINTRUST_PARENT" in plans["braintrust"]["parts"][0]["refused"]
    assert "set WANDB_ENTITY and WANDB_PROJECT" in plans["weave"]["parts"][0]["refused"]
    assert "theirs" in theirs["asks_first"]


def test_what_has_to_be_asked_first_is_shown_and_not_asked():
    """
    A project of Braintrust that is known by name has to be looked up before the address of its feedback is known.
    """
    arguments = ("rating", "--value", "true")
    (part,) = planned(*arguments, **ALL)["braintrust"]["parts"]
    read = run(*arguments, **ALL).stdout

    assert part["asks_first"].startswith("GET https://api.braintrust.dev/v1/project?")
    assert "url" not in part
    assert 60_000 == part["held_millis"]
    assert "asks first: GET https://api.braintrust.dev/v1/project?" in read


def test_what_an_exporter_would_refuse_is_told_with_its_reason():
    """
    A span whose own parent nobody can read would never arrive: that is what the plan is for.
    """
    call = {"traceparent": CALL, "attributes": {"braintrust.parent": "nonsense"}}
    given = json.dumps({"name": "rating", "value": True, **call})
    (part,) = planned("-", given=given, **ALL)["braintrust"]["parts"]
    read = run("-", given=given, **ALL).stdout

    assert "braintrust.parent is not of the form" in part["refused"]
    assert "would not be sent: the span's braintrust.parent is not of the form" in read


def test_a_call_that_was_not_sampled_is_skipped():
    """
    What would be skipped says why, and what it would have been.
    """
    given = ("rating", "--value", "true", "--traceparent", CALL[:-1] + "0")
    plans = planned(*given, **ALL)
    read = run(*given, **ALL).stdout

    assert {"unsampled"} == {plans[name]["skipped"] for name in ("orq", "braintrust", "weave")}
    assert "orq  skipped (unsampled); it would have been:" in read


def test_options_win_over_what_is_read():
    """
    A judgement on standard input may be varied by options, and `--to` names where it goes.
    """
    given = json.dumps({"name": "helpfulness", "value": 4, "scale": [1, 5], "user_id": "u1"})
    plans = planned("-", "--value", "2", "--to", "console", "--user-id", "u2", given=given, **ALL)

    assert ["console"] == list(plans)
    (part,) = plans["console"]["parts"]
    body = part["body"]
    assert ("helpfulness", 2, [1, 5], "u2") == (body["name"], body["value"], body["scale"], body["user_id"])


def test_a_destination_that_can_carry_nothing_says_so():
    """
    orq holds neither a comment nor tags by themselves, where no property was set for them.
    """
    done = run("rating", "--comment", "good", "--to", "orq", **ALL)

    assert "orq  nothing that it could carry" in done.stdout
    assert "no place for: comment" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "given", "variables", "words"),
    [
        (("rating", "--value", "7", "--scale", "1", "5"), "", ALL, "value"),
        (("rating",), "", ALL, "nothing was said"),
        (("-",), "[1]", ALL, "expected a judgement as a JSON object"),
        (("-",), "{", ALL, "expected a judgement as a JSON object"),
        (("-",), '{"nmae": "rating"}', ALL, "a judgement has no 'nmae' here; it has name, value"),
        (("-",), '{"name": "rating", "key": "answer-1"}', ALL, "a judgement has no 'key' here"),
        (("rating", "--value", "true", "--traceparent", "nonsense"), "", ALL, "traceparent"),
        (("rating", "--value", "true", "--to", "phoenix"), "", ALL, "to names no exporter"),
        (("rating", "--value", "true"), "", {"OTEL_FEEDBACK_EXPORTERS": ""}, "OTEL_FEEDBACK_EXPORTERS names no"),
        (("rating", "--value", "true"), "", {**ALL, "OTEL_FEEDBACK_DISABLED": "true"}, "OTEL_FEEDBACK_DISABLED is set"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_sentence(
    arguments: tuple[str, ...], given: str, variables: Mapping[str, str], words: str
):
    """
    A judgement that would be refused, or a pipeline that is not there, ends with status 1 and one line.
    """
    done = run(*arguments, given=given, **variables)

    assert 1 == done.returncode
    assert "" == done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("otel-feedback: ")
    assert words in line


def test_the_version_is_the_packages():
    """
    `--version` says what a bug report needs.
    """
    done = subprocess.run([*COMMAND[:-1], "--version"], capture_output=True, text=True, timeout=60, check=False)

    name, version = done.stdout.split()
    assert (0, "otel-feedback") == (done.returncode, name)
    assert version[0].isdigit()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("4", 4),
        ("0.5", 0.5),
        ('["a", "b"]', ["a", "b"]),
        ("warm", "warm"),
        ('"4"', "4"),
        ("null", "null"),
        ("{}", "{}"),
    ],
)
def test_a_value_is_read_as_it_is_typed(text: str, value: object):
    """
    What is JSON and can be a value is one; any other word is a label.
    """
    read = value_of(text)

    assert (type(value), value) == (type(read), read)


def test_a_judgement_without_a_call_is_about_the_example():
    """
    Somebody who only wants to see the shapes needs no trace.
    """
    feedback = judgement_of({"name": "rating", "value": True})

    assert feedback.target == FeedbackHandle.from_traceparent(EXAMPLE_CALL)
    assert ("rating", True) == (feedback.name, feedback.value)


def test_a_judgement_is_read_as_an_object():
    """
    Anything else is refused, and the message shows the form.
    """
    assert {"name": "rating"} == read_judgement('{"name": "rating"}')
    with pytest.raises(InvalidFeedbackError, match="expected a judgement as a JSON object"):
        read_judgement("true")
