import copy
import inspect
import pickle
from typing import Any

import pytest

from otel_feedback import exceptions
from otel_feedback.exceptions import (
    ConfigurationError,
    FeedbackError,
    InvalidFeedbackError,
    InvalidTokenError,
    MissingExtraError,
    OutboxFullError,
    StoreError,
    UnknownTargetError,
)

# Each error, the built-in that it is too, and its facts.
TREE = [
    (ConfigurationError, ValueError, {"setting": "OTEL_FEEDBACK_DELIVERY"}),
    (InvalidFeedbackError, ValueError, {"field": "value", "value": 7}),
    (UnknownTargetError, LookupError, {"key": "msg-17", "key_kind": "app", "store": "memory:"}),
    (InvalidTokenError, ValueError, {"reason": "expired"}),
    (StoreError, OSError, {"store": "sqlite:///f.db"}),
    (OutboxFullError, StoreError, {"store": "sqlite:///f.db", "limit": 10}),
    (MissingExtraError, ImportError, {"extra": "cli"}),
]


@pytest.mark.parametrize(("kind", "built_in", "facts"), TREE)
def test_an_error_is_a_feedback_error_and_the_fitting_built_in_with_its_facts_as_attributes(
    kind: Any, built_in: Any, facts: Any
) -> None:
    """
    Who catches either class gets it, reads the message as its text, and the facts by name.
    """
    error = kind("what happened", **facts)

    assert isinstance(error, FeedbackError)
    assert isinstance(error, built_in)
    assert "what happened" == str(error)
    assert facts == {name: getattr(error, name) for name in facts}


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301 (our own)
@pytest.mark.parametrize(("kind", "built_in", "facts"), TREE)
def test_an_error_crosses_to_another_process_whole(kind: Any, built_in: Any, facts: Any, again: Any) -> None:
    """
    A copied or unpickled error has the class, the message and the facts of the first.
    """
    other = again(kind("what happened", **facts))

    assert (kind, "what happened", ("what happened",)) == (type(other), str(other), other.args)
    assert facts == {name: getattr(other, name) for name in facts}


def test_what_is_added_to_an_error_crosses_with_it() -> None:
    """
    An attribute that somebody set on an error, as `add_note` does, does not keep it from being unpickled.
    """
    error = ConfigurationError("what happened", setting="x")
    error.seen_by = "a worker"  # type: ignore[attr-defined]  # that is what is tested

    assert "a worker" == pickle.loads(pickle.dumps(error)).seen_by  # noqa: S301 (our own)


def test_the_tree_is_complete() -> None:
    """
    Every error of the module has a row in the table above, and no other does.
    """
    defined = {
        error
        for _, error in inspect.getmembers(exceptions, inspect.isclass)
        if error.__module__ == exceptions.__name__ and error is not FeedbackError
    }

    assert defined == {kind for kind, _, _ in TREE}


@pytest.mark.parametrize(("kind", "built_in"), [(kind, built_in) for kind, built_in, _ in TREE])
def test_the_drawing_of_the_tree_is_true(kind: Any, built_in: Any) -> None:
    """
    The docstring has one line for each error: below its parent, or with the built-in that it is too.
    """
    drawn = (exceptions.__doc__ or "").splitlines()
    lines = [line for line in drawn if f"── {kind.__name__} " in line]

    assert 1 == len(lines)
    assert built_in.__name__ in (drawn[drawn.index(lines[0]) - 1] if built_in is StoreError else lines[0])
