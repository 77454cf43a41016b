import pytest
from sandbox_bench import CHILD, NOON, ROOT, TRACE, span

from otel_feedback.sandbox._page import MAX_ROWS, MAX_TEXT_CHARACTERS


def page(bench, query=""):
    return bench.request("GET", f"/{query}")


def test_it_needs_nothing_from_elsewhere(bench):
    """
    The page is one document: no script, no address but its own, and a policy that forbids the rest.
    """
    answer = page(bench)

    assert "default-src 'none'; style-src 'unsafe-inline'" == answer.headers["content-security-policy"]
    assert not any(each in answer.text for each in ("<script", "http://", "https://", "@import", "<img"))


def test_what_clients_send_is_only_text(bench):
    """
    Names, values, users and ids from clients cannot become markup.
    """
    evil = "<script>alert('x')</script>"
    bench.export("weave", span(name=evil, gen_ai__operation__name=evil, gen_ai__request__model=evil))
    bench.weave(id=evil, feedback_type=evil, payload={"value": evil}, creator=evil)
    bench.weave(weave_ref=evil, payload={"emoji": "👍"})
    bench.call("orq", f"/{evil}")
    bench.request("POST", "/faults", json={"path": evil})
    text = page(bench).text

    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6


def test_a_lone_surrogate_does_not_break_it(bench):
    """
    Text that is JSON and no UTF-8 is shown with a mark in its place.
    """
    content = b'{"feedback": [{"id": "x", "comment": "\\ud800!"}]}'
    bench.call("braintrust", f"/v1/project_logs/{bench.project}/feedback", content=content)

    assert "?!" in page(bench).text


@pytest.mark.parametrize(("query", "meta"), [("", 0), ("?refresh=5", 1), ("?refresh=0", 0), ("?refresh=<b>", 0)])
def test_it_refreshes_only_when_asked(bench, query, meta):
    """
    Refreshing is off unless one of the offered intervals is asked for.
    """
    text = page(bench, query).text

    assert meta == text.count('http-equiv="refresh" content="5"')
    assert meta == text.count('<a href="/?refresh=5" aria-current="true">')


def test_feedback_stands_beside_its_span(bench):
    """
    A span's row holds the feedback on it, vendor by vendor; what is about the trace stands above.
    """
    for vendor in ("orq", "braintrust", "weave"):
        bench.export(vendor, span(name="outer"), span(CHILD, ROOT, name="inner"))
    bench.orq()
    bench.braintrust({"id": CHILD, "scores": {"helpful": 1}, "metadata": {"user_id": "u-42"}})
    bench.weave(span_id=CHILD)
    bench.weave(span_id=CHILD, id="018f1f2a")
    bench.weave(span_id=CHILD, id="018f1f2a")
    text = page(bench).text
    whole, outer, inner = text.split('<div class="row">')[1:4]

    assert "the trace as a whole" in whole
    assert "rating" in whole
    assert "outer" in outer
    assert 'class="feedback' not in outer
    assert "inner" in inner
    assert all(each in inner for each in ("helpful", "by u-42", "👍", "×2", "--depth:1"))


def test_a_span_names_each_vendor_once(bench):
    """
    A span in both of Weave's views is drawn once, with one mark.
    """
    bench.export("weave", span(name="twice"))
    bench.export("weave", span(name="twice"), path="/agents/otel/v1/traces")
    text = page(bench).text

    assert (1, 1) == (text.count("<b>twice</b>"), text.count('<span class="vendor weave">W&amp;B Weave</span>'))


def test_orphans_and_flags_come_first(bench):
    """
    What is wrong is counted, explained, and stands before the traces; flags of one kind share a line.
    """
    bench.orq(trace_id=TRACE.upper())
    bench.orq(trace_id=TRACE.upper(), value="x")
    text = page(bench).text

    assert "2 orphaned: on no span" in text
    assert "capitals never match" in text
    assert text.index("orphaned") < text.index("No span has arrived yet")


def test_without_trouble_it_says_so(bench):
    """
    With nothing wrong the page says that in one line.
    """
    assert "Nothing is orphaned and nothing is flagged." in page(bench).text


def test_flags_without_orphans_have_no_list_of_orphans(bench):
    """
    An empty list has no heading.
    """
    bench.call("orq", "/nowhere")
    text = page(bench).text

    assert ("1 flagged" in text, "orphaned:" in text) == (True, False)


def test_many_examples_of_a_flag_are_counted(bench):
    """
    A flag's line shows a few examples and how many more there are.
    """
    for each in range(8):
        bench.call("orq", f"/nowhere/{each}")

    assert "and 2 more" in page(bench).text


def test_planned_faults_are_shown(bench):
    """
    A planned fault is shown with how much of it is left.
    """
    bench.request("POST", "/faults", json={"vendor": "orq", "times": 3})
    bench.request("POST", "/faults", json={"times": None})
    text = page(bench).text

    assert "3 left" in text
    assert "any vendor" in text
    assert "until cleared, 0 so far" in text


def test_what_has_no_place_in_a_trace_is_listed(bench):
    """
    Feedback on a conversation, or taken back before its span came, is neither orphan nor beside a span.
    """
    bench.export("weave", span(gen_ai__conversation__id="c"), path="/agents/otel/v1/traces")
    ref = "weave:///acme/chat/agent_conversation/c"
    bench.weave(weave_ref=ref, feedback_type="wandb.agent_user_feedback", payload={}, scorer_tags=["good"])
    bench.orq(id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    bench.call("orq", "/v2/feedback/remove", {"id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "trace_id": TRACE, "product": "otel"})
    text = page(bench).text

    assert "On a conversation, or taken back" in text
    assert 'class="feedback gone"' in text


def test_the_newest_trace_comes_first(bench):
    """
    Traces are in the order of their beginning, backwards.
    """
    bench.export("orq", span(name="older"))
    bench.export("orq", span(trace_id="f" * 32, name="newer", start=NOON + 1))
    text = page(bench).text

    assert text.index("newer") < text.index("older")


def test_a_circle_of_parents_is_drawn_once(bench):
    """
    Spans that are each other's parents, or their own, are drawn and end.
    """
    bench.export("orq", span(ROOT, CHILD, name="one"), span(CHILD, ROOT, name="two"))
    bench.export("orq", span(ROOT, ROOT, trace_id="f" * 32, name="own"))
    text = page(bench).text

    assert [1, 1, 1] == [text.count(f"<b>{name}</b>") for name in ("one", "two", "own")]


def test_a_very_deep_or_long_trace_is_cut(bench):
    """
    A trace of more spans than a page can show is cut and says so; depth ends the indentation.
    """
    count = MAX_ROWS + 2
    ids = [f"{each:016x}" for each in range(1, count + 1)]
    bench.export("orq", *(span(each, parent) for each, parent in zip(ids, [None, *ids], strict=False)))
    text = page(bench).text

    assert "and 2 more spans" in text
    assert "--depth:13" not in text


def test_a_long_list_is_cut(bench):
    """
    A list of more lines than a page can show is cut and says so.
    """
    bench.braintrust(*({"id": f"row {each}", "comment": "c"} for each in range(MAX_ROWS + 1)))

    assert "and 1 more" in page(bench).text


def test_long_text_is_cut(bench):
    """
    A long comment is cut; the JSON has all of it.
    """
    bench.braintrust({"id": ROOT, "comment": "x" * 1_000})
    text = page(bench).text

    assert "x" * MAX_TEXT_CHARACTERS + "…" in text
    assert "x" * 1_000 in text  # in the fold with everything that each vendor shows
