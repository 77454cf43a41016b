"""What holds a database is told before this process forks and afterwards, on both sides."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Forkable(Protocol):
    """What a fork must not meet in the middle of something."""

    def before_fork(self) -> None:
        """Let no thread be in it until `after_fork`."""
        ...

    def after_fork(self, *, is_child: bool) -> None:
        """Let it be used again."""
        ...


# Everything of this process that a fork concerns.
_FORKABLES: weakref.WeakSet[Forkable] = weakref.WeakSet()
# Held while a process forks: two forks take turns, and nothing new comes in between.
_FORKING = threading.RLock()
_held: list[Forkable] = []


def tell_of_forks(forkable: Forkable) -> None:
    """Tell an object of every fork from now on, as long as somebody else holds it."""
    with _FORKING:
        _FORKABLES.add(forkable)


def _before() -> None:
    _FORKING.acquire()
    for forkable in list(_FORKABLES):  # a finaliser may make another one meanwhile
        forkable.before_fork()
        _held.append(forkable)


def _after(*, is_child: bool) -> None:
    try:
        while _held:
            _held.pop().after_fork(is_child=is_child)
    finally:
        _FORKING.release()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows forks nothing)
    os.register_at_fork(
        before=_before, after_in_parent=lambda: _after(is_child=False), after_in_child=lambda: _after(is_child=True)
    )
