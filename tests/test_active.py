"""The slot of the current provider: made once, by one thread, and never at the application's cost."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from otel_feedback import FeedbackProvider, MemoryStore, Settings, _active, processor
from otel_feedback.exceptions import ConfigurationError


def a_provider(*, disabled: bool = False) -> FeedbackProvider:
    return FeedbackProvider(settings=Settings(disabled=disabled), store=MemoryStore())


@pytest.fixture(autouse=True)
def _default() -> Iterator[None]:
    """How a provider is made by default is put back."""
    before = _active._slot.make
    yield
    _active.set_default(before)


def failing_with(error: Exception, calls: list[str]) -> Callable[[], FeedbackProvider]:
    def make() -> FeedbackProvider:
        calls.append("made")
        raise error

    return make


def test_putting_answers_the_provider_before() -> None:
    """
    Whoever replaces the current provider gets the one that was there, to shut it down.
    """
    first, second = a_provider(), a_provider()

    assert [None, first, second] == [_active.put(first), _active.put(second), _active.put(None)]


def test_a_provider_is_made_once_for_all_threads_that_ask() -> None:
    """
    Of eight threads that find no provider one makes it, and all get that one.
    """
    made: list[FeedbackProvider] = []
    barrier = threading.Barrier(8)
    answered: list[object] = []

    def make() -> FeedbackProvider:
        made.append(a_provider())
        return made[-1]

    def ask() -> None:
        barrier.wait()
        answered.append(_active.get_or_make())

    _active.set_default(make)
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 1 == len(made)
    assert made * 8 == answered


def test_nobody_uses_the_provider_while_it_is_being_made() -> None:
    """
    What making a provider itself captures, in an instrumented store, is not captured, and asking for it is an error.
    """
    seen: list[object] = []

    def make() -> FeedbackProvider:
        seen.append(_active.for_capture())
        with pytest.raises(ConfigurationError, match="still being made"):
            _active.get_or_make()
        return a_provider()

    _active.set_default(make)

    assert _active.for_capture() is _active.get()
    assert [None] == seen


def test_capture_stays_off_where_no_provider_can_be_made(caplog: pytest.LogCaptureFixture) -> None:
    """
    A failing configuration is tried once, logged once, and never raised into a captured call.
    """
    calls: list[str] = []
    _active.set_default(failing_with(ConfigurationError("OTEL_FEEDBACK_DURABILITY must be one of disk"), calls))

    assert [None, None] == [_active.for_capture(), _active.for_capture()]
    assert ["made"] == calls
    assert [logging.ERROR] == [record.levelno for record in caplog.records]


def test_capture_is_on_again_once_somebody_configures(caplog: pytest.LogCaptureFixture) -> None:
    """
    After a failure, a provider that is configured by hand is used, and its removal lets the default be tried again.
    """
    calls: list[str] = []
    _active.set_default(failing_with(ValueError("no"), calls))
    _active.for_capture()
    provider = a_provider()

    _active.put(provider)
    assert provider is _active.for_capture()
    _active.put(None)
    assert _active.for_capture() is None
    assert 2 == len(calls)


def test_a_disabled_provider_captures_nothing() -> None:
    """
    A provider that is switched off is there, but not for capture.
    """
    provider = a_provider(disabled=True)
    _active.put(provider)

    assert (provider, None) == (_active.get(), _active.for_capture())


def test_without_a_default_there_is_no_provider() -> None:
    """
    Where nobody said how a provider is made, asking for one is an error that says so.
    """
    _active.set_default(_active._make_none)

    with pytest.raises(ConfigurationError, match="nobody has said"):
        _active.get_or_make()


def fail(error: BaseException) -> None:
    raise error


class Recorder:
    """Where capture's failures are counted, or cannot be."""

    def __init__(self, *, is_broken: bool = False) -> None:
        self.is_broken = is_broken
        self.errors: list[BaseException] = []

    def capture_failed(self, error: BaseException) -> None:
        self.errors.append(error)
        if self.is_broken:
            raise RuntimeError("and the log is full")


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_guard_counts_what_goes_wrong_and_lets_nothing_through(is_broken: bool) -> None:
    """
    An exception inside the guard ends at the provider's count, even where counting fails too.
    """
    recorder, error = Recorder(is_broken=is_broken), ValueError("broken")

    with _active.guarded(recorder):  # type: ignore[arg-type]  # only the counting is used
        fail(error)

    assert [error] == recorder.errors


def test_the_guard_needs_no_provider() -> None:
    """
    Before there is a provider there is nobody to count, and still nothing gets through.
    """
    done = []
    with _active.guarded(None):
        done.append("tried")
        int("broken")

    assert ["tried"] == done


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_guard_lets_the_end_of_the_program_through(error: type[BaseException]) -> None:
    """
    What ends a program or a generator is no failure of capture.
    """
    recorder = Recorder()

    with pytest.raises(error), _active.guarded(recorder):  # type: ignore[arg-type]  # only the counting is used
        fail(error())

    assert [] == recorder.errors


FORK = """
import os, threading
from otel_feedback import _active, processor

is_held, is_done = threading.Event(), threading.Event()

def hold():
    with _active._lock, processor._installing:
        is_held.set()
        is_done.wait()

threading.Thread(target=hold).start()
is_held.wait()
child = os.fork()
if child == 0:
    os._exit(int(not (_active._lock.acquire(timeout=10) and processor._installing.acquire(timeout=10))))
status = os.waitpid(child, 0)[1]
is_done.set()
print(status)
"""


def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    """
    A fork while another thread configures leaves the child with locks that nobody holds.
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]

    assert "0\n" == subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(("module", "lock"), [(_active, "_lock"), (processor, "_installing")])
def test_after_a_fork_the_locks_are_new(module: Any, lock: str) -> None:
    """
    What is done in the child, seen from a thread: a lock that another thread holds is free again.
    """
    is_held, is_done = threading.Event(), threading.Event()

    def hold(held: Any) -> None:
        with held:
            is_held.set()
            is_done.wait(10)

    thread = threading.Thread(target=hold, args=(getattr(module, lock),))
    thread.start()
    assert is_held.wait(10)
    was_free = getattr(module, lock).acquire(blocking=False)
    module._after_fork()
    is_free = getattr(module, lock).acquire(blocking=False)
    getattr(module, lock).release()
    is_done.set()
    thread.join()

    assert (False, True) == (was_free, is_free)


def test_the_text_of_a_foreign_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """
    Why capture is off is said by the error's name where it is none of ours: its text may hold a key.
    """
    _active.set_default(failing_with(ValueError("cannot parse sk-secret"), []))
    _active.for_capture()

    assert ("ValueError" in caplog.text, "sk-secret" in caplog.text) == (True, False)
