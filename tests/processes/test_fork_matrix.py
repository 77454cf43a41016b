"""Every way to begin a process, and every way to end one: nothing is lost, nothing hangs, and delivery goes on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_runs import Gunicorn, Ran, run

from otel_feedback.sandbox import Fault, Sandbox
from vendor_account import HOUR_MILLIS, Account, account, deliver_the_rest, settings_at, unsettled

BEGINNINGS = ("os.fork", "fork", "spawn", "forkserver")
STATES = (("configured-before", "quiet"), ("configured-before", "busy"), ("configured-after", "quiet"))

# The quick ones, and one of the slow ones; all of them are in the long form.
SHORT = [
    ("os.fork", "configured-before", "busy"),
    ("os.fork", "configured-after", "quiet"),
    ("fork", "configured-before", "quiet"),
    ("forkserver", "configured-before", "quiet"),
]

# The two seconds that a process may go on delivering at its end, and what a machine with much to do needs besides.
MOST_SECONDS_TO_END = 2 + 8

# What a process that delivers to three vendors has, each once; where there is much to do, up to four for a vendor.
THREADS = [
    "otel-feedback-correlate=1",
    "otel-feedback-deliver-braintrust=1",
    "otel-feedback-deliver-keep=1",
    "otel-feedback-deliver-orq=1",
    "otel-feedback-deliver-weave=1",
]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The three vendors."""
    with Sandbox(port=0) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The file that all processes share."""
    return tmp_path / "feedback.db"


@pytest.fixture
def settings(sandbox: Sandbox, store: Path) -> dict[str, str]:
    """All that the processes are told."""
    # A child that configures before its parent does waits for the parent's key.
    return {**settings_at(sandbox, store), "OTEL_FEEDBACK_KEY_WAIT_MILLIS": "20000"}


def without_helpers(names: list[str]) -> list[str]:
    """Count the threads of a vendor as one engine's, if they are no more than one engine has."""
    return [re.sub(r"^(otel-feedback-deliver-(?:orq|braintrust|weave))=[1-4]$", r"\1=1", name) for name in names]


def wrongs(ran: Ran, sandbox: Sandbox, store: Path) -> dict[str, Any]:
    """Be the next process, and name everything that ought not to be; where something hung, where it was."""
    stats = deliver_the_rest(sandbox, store, ahead_millis=HOUR_MILLIS)
    found: dict[str, Any] = {
        "hung": ran.errors if ran.exit_code is None or "Timeout (" in ran.errors else "",
        "slow to end": {label: each for label, each in ran.seconds_to_end.items() if each > MOST_SECONDS_TO_END},
        "unsettled": unsettled(stats),
        "found elsewhere": ran.misfound,
        "unseen from outside": [label for label, answer in ran.said("seen") if answer != "yes"],
        "threads": {label: names for label, *names in ran.said("threads") if without_helpers(names) != THREADS},
    }
    account_of_all = account(sandbox.state(), ran.acknowledged)
    if account_of_all != Account():
        found["account"] = account_of_all
    return {name: each for name, each in found.items() if each}


# How each child ends, and with which exit code.
ENDS = {
    "returns": 0,
    "os-exit": 0,
    "sys-exit": 0,
    "raises": 1,
    "shuts-down": 0,
    "thread-to-the-end": 0,
    "daemons-at-exit": 0,
    "closed-loop": 0,
    "shutdown-in-the-middle": 0,
}


def check_matrix(ran: Ran, sandbox: Sandbox, store: Path) -> None:
    """All that is asserted of a parent and its children."""
    assert wrongs(ran, sandbox, store) == {}
    assert (0, ENDS) == (ran.exit_code, ran.exits)
    assert [["yes"]] == ran.said("parent-delivers")
    # Each child judged the parent's call by its key, and the parent each child's.
    labels = {each.label for each in ran.acknowledged}
    assert {f"{label}-of-parent" for label in ENDS} | {f"parent-of-{label}" for label in ENDS} <= labels


@pytest.mark.parametrize(("beginning", "configured", "activity"), SHORT)
def test_children_that_end_in_every_way_lose_nothing(
    sandbox: Sandbox, store: Path, settings: dict[str, str], beginning: str, configured: str, activity: str
) -> None:
    """
    Nine children end each in another way: in time, with all that was accepted delivered by them or by whoever is next.
    """
    check_matrix(run("forking_parent.py", beginning, configured, activity, settings=settings), sandbox, store)


@pytest.mark.chaos
@pytest.mark.parametrize("repetition", range(3))
@pytest.mark.parametrize(("configured", "activity"), STATES)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_children_of_every_beginning_lose_nothing(
    sandbox: Sandbox,
    store: Path,
    settings: dict[str, str],
    beginning: str,
    configured: str,
    activity: str,
    repetition: int,
) -> None:
    """
    The same for every way to begin a process, before and after the pipeline is configured, and while threads record.
    """
    check_matrix(run("forking_parent.py", beginning, configured, activity, settings=settings), sandbox, store)


def test_children_end_in_time_where_no_vendor_answers(sandbox: Sandbox, store: Path, settings: dict[str, str]) -> None:
    """
    A vendor that takes requests and answers none delays no end beyond the limit; the next process delivers.
    """
    sandbox.inject(Fault(kind="slow", delay_millis=600_000, times=None))
    ran = run("forking_parent.py", "fork", "configured-before", "unanswered", settings=settings)
    sandbox.clear_faults()

    assert wrongs(ran, sandbox, store) == {}
    assert (0, ENDS) == (ran.exit_code, ran.exits)


def test_the_matrix_finds_a_missing_pid_check(sandbox: Sandbox, store: Path, settings: dict[str, str]) -> None:
    """
    Seeded bug: a provider that takes its parent's threads for its own. The children deliver nothing, and write no key.
    """
    settings |= {"FORK_PATIENCE_SECONDS": "2"}
    ran = run("forking_parent.py", "fork", "configured-before", "quiet", "no-pid-check", settings=settings, patience=10)

    found = wrongs(ran, sandbox, store)
    assert {"threads", "unseen from outside"} <= found.keys()
    assert [] in found["threads"].values()


@pytest.mark.parametrize(
    ("part", "exits"),
    [
        ("nested", {f"depth-{depth}": 0 for depth in range(3)}),
        ("thread-exits", {"child": 0}),
        ("parent-shuts-down", {"outliving": 0, "late": 0}),
    ],
)
def test_forks_where_nobody_expects_them_lose_nothing(
    sandbox: Sandbox, store: Path, settings: dict[str, str], part: str, exits: dict[str, int]
) -> None:
    """
    A fork in a fork, in a thread that is not the main one, and beside a parent that shuts down, are forks like others.
    """
    ran = run("forks_in_forks.py", part, settings=settings)

    assert wrongs(ran, sandbox, store) == {}
    assert (0, exits) == (ran.exit_code, ran.exits)


def test_many_first_uses_in_a_fresh_child_start_one_pipeline(
    sandbox: Sandbox, store: Path, settings: dict[str, str]
) -> None:
    """
    Sixteen threads that begin at the same moment in a forked child find one engine: each of its threads is there once.
    """
    ran = run("first_use.py", settings=settings)

    assert wrongs(ran, sandbox, store) == {}
    ((label, *names),) = ran.said("threads")
    assert ("child", THREADS) == (label, without_helpers(names))
    assert (17, {"child": 0}) == (len(ran.acknowledged), ran.exits)


def test_a_prefork_pool_loses_nothing(sandbox: Sandbox, store: Path, settings: dict[str, str]) -> None:
    """
    Workers of a pool as Celery's serve tasks; one is killed and replaced, and all that was accepted arrives.
    """
    ran = run("prefork_pool.py", settings=settings)

    assert wrongs(ran, sandbox, store) == {}
    assert {"worker-0": 0, "worker-1": 0, "worker-2": -9, "replacement": 0} == ran.exits
    assert len(ran.acknowledged) == 1 + 3 * 4 + 4 + 1


@pytest.mark.parametrize(
    ("worker", "configured"),
    [
        ("sync", "preload"),
        ("gthread", "preload"),
        pytest.param("sync", "first-use", marks=pytest.mark.chaos),
        pytest.param("gthread", "first-use", marks=pytest.mark.chaos),
    ],
)
def test_gunicorns_workers_lose_nothing(
    sandbox: Sandbox, store: Path, settings: dict[str, str], worker: str, configured: str
) -> None:
    """
    Preloaded workers serve; one is killed and replaced, the others end in time when the server is told to end.
    """
    pytest.importorskip("gunicorn", reason="needs gunicorn: pip install gunicorn")
    with Gunicorn(worker, {**settings, "FORK_CONFIGURED": configured}) as server:
        first = [server.request(number) for number in range(20)]
        os.kill(first[0], signal.SIGKILL)
        second = [server.request(number) for number in range(20, 40)]
        ran = server.stop()

    assert wrongs(ran, sandbox, store) == {}
    assert (0, True) == (ran.exit_code, ran.ended_at - server.told_at < MOST_SECONDS_TO_END)
    assert first[0] not in second
    assert 2 * 40 + (configured == "preload") == len(ran.acknowledged)


def test_nothing_is_imported_once_the_pipeline_is_configured(
    sandbox: Sandbox, store: Path, settings: dict[str, str]
) -> None:
    """
    A fork while another thread imports leaves the child a lock that nobody releases; so nothing is imported late.
    """
    ran = run("late_imports.py", settings=settings)

    assert wrongs(ran, sandbox, store) == {}
    assert [["yes"]] == ran.said("delivered")
    assert [] == ran.said("imports")
    assert [] == ran.said("loaded")
