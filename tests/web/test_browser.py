"""The element in a real Chromium, against the FastAPI example: two server processes, one store, three vendors."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect, sync_playwright

from otel_feedback.sandbox import Sandbox

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_chat"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_SECONDS = 60

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


# A thumb down and a comment; orq has no place for a comment.
JUDGED = {"orq": ["['bad']"], "braintrust": [({"rating": 0}, ["Wrong city"])], "weave": ["Wrong city", "👎"]}
NOTHING: dict[str, Any] = {"orq": [], "braintrust": [], "weave": []}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something."""
    end = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def started() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture
def sandbox(started: Sandbox) -> Sandbox:
    started.reset()
    return started


@pytest.fixture(scope="module")
def ports(started: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Two processes that serve the example, with one store."""
    ports = [free_port(), free_port()]
    places = [{"url": each.url, "headers": dict(each.headers)} for each in started.otlp_endpoints()[:3]]
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))},
        **started.environment(),
        "OTEL_FEEDBACK_EXPORTERS": "orq,braintrust,weave",
        "OTEL_FEEDBACK_STORE_URL": f"sqlite:///{tmp_path_factory.mktemp('store') / 'feedback.db'}",
        "OTEL_FEEDBACK_SIGNING_KEYS": "a key of thirty-two characters ..",
        "OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS": "0",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "CHAT_OTLP": json.dumps(places),
    }
    command = [sys.executable, "-m", "uvicorn", "app:app", "--log-level", "warning", "--port"]
    running = [subprocess.Popen([*command, str(port)], cwd=EXAMPLE, env=variables) for port in ports]
    try:
        until(lambda: all(is_open(port) for port in ports))
        yield ports
    finally:
        for each in running:
            each.terminate()
        codes = [each.wait(WAIT_SECONDS) for each in running]
    assert all(code in (0, -15) for code in codes)


@pytest.fixture
def page(ports: list[int]) -> Iterator[Page]:
    """A browser that shows the first process's page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{ports[0]}/")
        yield page
        browser.close()


def ask(page: Page, question: str) -> Any:
    """Ask, and answer the place of the turn."""
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask").click()
    return page.locator("article").last


def standing(sandbox: Sandbox) -> dict[str, Any]:
    """What stands at each vendor in the end."""
    effective = sandbox.state()["effective"]
    rows = [row for project in effective["braintrust"].values() for row in project.values()]
    return {
        "orq": sorted(str(each["value"]) for each in effective["orq"]),
        "braintrust": [(row["scores"], row["comments"]) for row in rows if row["scores"] or row["comments"]],
        "weave": sorted(each["payload"].get("emoji", each["payload"].get("note")) for each in effective["weave"]),
    }


def test_a_thumb_in_the_stream_a_comment_later_and_a_change_of_mind(
    page: Page, sandbox: Sandbox, ports: list[int]
) -> None:
    """
    Each vendor ends with what the person ended with, though another process took the change of mind.
    """
    turn = ask(page, "Where is Canberra?")
    good, bad = turn.get_by_role("button", name="Good answer"), turn.get_by_role("button", name="Bad answer")
    good.click()
    expect(turn.get_by_role("status")).to_have_text("Thank you")
    is_streaming = "stand-in does" not in turn.locator(".answered").inner_text()
    turn.get_by_label("Anything to add?").fill("Wrong city")
    turn.get_by_role("button", name="Send").click()
    expect(turn.locator(".answered")).to_contain_text("stand-in does")

    def at_the_other(route: Route) -> None:
        route.continue_(url=route.request.url.replace(f":{ports[0]}", f":{ports[1]}"))

    page.route("**/feedback**", at_the_other)
    page.reload()
    expect(good).to_have_attribute("aria-pressed", "true")
    with page.expect_response(lambda answer: answer.request.method == "POST") as changed:
        bad.click()
    expect(bad).to_have_attribute("aria-pressed", "true")
    until(lambda: standing(sandbox) == JUDGED)

    assert is_streaming
    assert (202, str(ports[1])) == (changed.value.status, changed.value.url.split(":")[2].split("/")[0])


def test_a_second_click_takes_back_what_was_sent(page: Page, sandbox: Sandbox) -> None:
    """
    Nothing is left at any vendor, and a page that is loaded again shows nothing.
    """
    turn = ask(page, "Where is Perth?")
    good = turn.get_by_role("button", name="Good answer")
    good.click()
    until(lambda: ["👍"] == standing(sandbox)["weave"])
    expect(turn.locator(".answered")).to_contain_text("stand-in does")
    good.click()
    expect(turn.get_by_role("status")).to_have_text("Taken back")
    until(lambda: standing(sandbox) == NOTHING)
    page.reload()

    expect(good).to_have_attribute("aria-pressed", "false")


def test_what_was_said_offline_is_sent_at_the_next_visit(page: Page, sandbox: Sandbox, ports: list[int]) -> None:
    """
    Only what it came to, and once; until then the person is told that it waits.
    """
    turn = ask(page, "Where is Hobart?")
    expect(turn.locator(".answered")).to_contain_text("stand-in does")
    good, bad = turn.get_by_role("button", name="Good answer"), turn.get_by_role("button", name="Bad answer")
    page.context.set_offline(True)
    good.click()
    expect(turn.get_by_role("status")).to_have_text("Will be sent when you are online")
    bad.click()
    page.goto("about:blank")
    page.context.set_offline(False)
    page.goto(f"http://127.0.0.1:{ports[0]}/")

    expect(bad).to_have_attribute("aria-pressed", "true")
    until(lambda: (["['bad']"], ["👎"]) == (standing(sandbox)["orq"], standing(sandbox)["weave"]))


def test_a_keyboard_is_enough(page: Page, sandbox: Sandbox) -> None:
    """
    Each control has a name and can be reached; a thumb says whether it is pressed.
    """
    turn = ask(page, "Where is Darwin?")
    expect(turn.locator(".answered")).to_contain_text("stand-in does")
    turn.get_by_role("button", name="Good answer").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(turn.get_by_role("button", name="Bad answer", pressed=True)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("Too hot")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    until(lambda: standing(sandbox)["weave"] == ["Too hot", "👎"])


def test_a_token_that_is_none_is_refused_to_the_persons_face(page: Page) -> None:
    """
    The page is told too, and the thumb stands up again.
    """
    told = page.evaluate(
        """() => new Promise((resolve) => {
            const element = document.createElement("otel-feedback");
            element.setAttribute("token", "of1_nonsense");
            document.body.append(element);
            element.addEventListener("feedback", (event) => resolve([event.detail, element]));
            customElements.whenDefined("otel-feedback").then(() => element.shadowRoot.querySelector("button").click());
        })"""
    )
    last = page.locator("otel-feedback").last

    assert {"state": "refused", "name": "rating"} == told[0]
    expect(last.get_by_role("status")).to_have_text("Could not be sent")
    expect(last.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")


def test_scales_labels_and_words_of_ones_own(page: Page, sandbox: Sandbox) -> None:
    """
    A scale is radio buttons, labels are boxes; a page replaces each text.
    """
    turn = ask(page, "Where is Sydney?")
    expect(turn.locator(".answered")).to_contain_text("stand-in does")
    page.evaluate(
        """() => {
            const given = document.querySelector("otel-feedback:last-of-type");
            const element = document.createElement("otel-feedback");
            for (const [name, value] of [["token", given.getAttribute("token")], ["name", "helpfulness"],
                ["scale", "1-5"], ["label-group", "How helpful?"], ["label-accepted", "Merci"]]) {
                element.setAttribute(name, value);
            }
            document.body.append(element);
        }"""
    )
    page.get_by_role("group", name="How helpful?").get_by_text("4").click()

    expect(page.locator("otel-feedback").last.get_by_role("status")).to_have_text("Merci")
    expect(page.get_by_role("radio", name="4")).to_be_checked()
    until(lambda: [{"helpfulness": 0.75}] == [scores for scores, _ in standing(sandbox)["braintrust"]])
