"""Declare: what feedback an application takes, name by name, and how that is checked.

Everything about declarations lives here, as values and pure functions; this file knows no store, no exporter and no
setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from otel_feedback._record import (
    Feedback,
    FeedbackValue,
    check_name,
    ends_of,
    identifier,
    is_number,
    native_of,
)
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError

Native = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a name of feedback takes: one of `Rating`, `Labels`, `Thumb`, `Flag` and `Text`.

    A comment, a correction or tags may be given under every declared name, with or without a value.

    Args:
        native: by exporter's name, what is set of that vendor's own fields for every judgement of this name, as in
            `native={"orq": {"property": "quality"}}`; what a call sets wins, field by field.

    Raises:
        ConfigurationError: when it contradicts itself.
    """

    native: Native = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Copy what is set of vendors' own fields, and refuse what no JSON has a word for."""
        _set_native(self, self.native)

    @property
    def takes(self) -> str:
        """Say in words what a value may be."""
        raise NotImplementedError

    @property
    def samples(self) -> Sequence[FeedbackValue]:
        """Some values that may be given, the ends of a range and every label among them."""
        raise NotImplementedError

    def fits(self, value: object) -> bool:
        """Tell whether a value may be given."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Rating(Declaration):
    """A number from `low` to `high`, both included; a call gives no `scale`.

    Args:
        low: the lowest number.

        high: the highest number.

        lower_is_better: whether `low` is the best, as of an effort or a number of mistakes. Where a vendor holds
            fractions it then gets 1 for `low`.

        native: see `Declaration`.

    Raises:
        ConfigurationError: when these are not two finite numbers, the lower one first.
    """

    low: float
    high: float
    lower_is_better: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Take the ends as plain numbers."""
        with _as_configuration("Rating(low, high)"):
            low, high = ends_of((self.low, self.high))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        _check_bool(self.lower_is_better, "lower_is_better")
        _set_native(self, self.native)

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest number."""
        return self.low, self.high

    @property
    def takes(self) -> str:
        """Say in words what a value may be."""
        return f"a number from {self.low} to {self.high}, both included"

    @property
    def samples(self) -> Sequence[FeedbackValue]:
        """Both ends."""
        return self.low, self.high

    def fits(self, value: object) -> bool:
        """Tell whether a number lies within the range."""
        return is_number(value) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True, init=False)
class Labels(Declaration):
    """One of a few words, or several of them.

    Args:
        labels: the words, as in `Labels("warm", "cold")`.

        multiple: whether a judgement may have several, given as a list; one alone may then be given as a string too.

        native: see `Declaration`.

    Raises:
        ConfigurationError: when there is none, one of them twice, or one that is no label.
    """

    labels: tuple[str, ...]
    multiple: bool

    def __init__(self, *labels: str, multiple: bool = False, native: Native = MappingProxyType({})) -> None:
        with _as_configuration("Labels('warm', 'cold') takes its labels one by one"):
            checked = tuple(identifier(label, "a label") for label in labels)
        if not checked or len(set(checked)) < len(checked):
            raise ConfigurationError("Labels('warm', 'cold') takes one label or more, each once", setting="feedback")
        object.__setattr__(self, "labels", checked)
        object.__setattr__(self, "multiple", _check_bool(multiple, "multiple"))
        _set_native(self, native)

    def __repr__(self) -> str:
        """Write it as it is made."""
        options = (", multiple=True" if self.multiple else "") + (f", native={self.native!r}" if self.native else "")
        return f"Labels({', '.join(map(repr, self.labels))}{options})"

    @property
    def takes(self) -> str:
        """Say in words what a value may be."""
        count = "one or more" if self.multiple else "one"
        return f"{count} of {', '.join(map(repr, self.labels))}"

    @property
    def samples(self) -> Sequence[FeedbackValue]:
        """Every label."""
        return [(label,) if self.multiple else label for label in self.labels]

    def fits(self, value: object) -> bool:
        """Tell whether a value is a label, or where several may be given, labels."""
        if isinstance(value, str):
            return value in self.labels
        if not self.multiple or not isinstance(value, Sequence) or not value:
            return False
        return all(isinstance(each, str) and each in self.labels for each in value)


@dataclass(frozen=True, slots=True)
class _Boolean(Declaration):
    """True or false, whatever that says."""

    @property
    def samples(self) -> Sequence[FeedbackValue]:
        """Both."""
        return True, False

    def fits(self, value: object) -> bool:
        """Tell whether a value is a boolean; 0 and 1 are numbers."""
        return isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Thumb(_Boolean):
    """A thumb up (`True`) or down (`False`): praise or blame of the answer, which vendors show as such.

    Args:
        native: see `Declaration`.
    """

    @property
    def takes(self) -> str:
        """Say in words what a value may be."""
        return "a thumb: True is up, False is down"


@dataclass(frozen=True, slots=True)
class Flag(_Boolean):
    """Any other boolean, as whether an answer was toxic: neither praise nor blame.

    Args:
        lower_is_better: whether `False` is the better one. Where a vendor holds fractions it then gets 1 for `False`.

        native: see `Declaration`.
    """

    lower_is_better: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the direction."""
        _check_bool(self.lower_is_better, "lower_is_better")
        _set_native(self, self.native)

    @property
    def takes(self) -> str:
        """Say in words what a value may be."""
        return "True or False"


@dataclass(frozen=True, slots=True)
class Text(Declaration):
    """A label in anybody's own words, of one line; longer text is a `comment`.

    Args:
        native: see `Declaration`.
    """

    @property
    def takes(self) -> str:
        """Say in words what a value may be."""
        return "a string of one line; longer text is a comment"

    @property
    def samples(self) -> Sequence[FeedbackValue]:
        """Any text."""
        return ("text",)

    def fits(self, value: object) -> bool:
        """Tell whether a value is a text; that it is one of one line is checked of every label."""
        return isinstance(value, str)


class Schema:
    """What an application has declared, and how a judgement is checked against it and completed by it.

    Args:
        declared: by name, what it takes.

    Raises:
        ConfigurationError: when a name can be nobody's, or what stands under it is no declaration.
    """

    def __init__(self, declared: Mapping[str, Declaration] = MappingProxyType({})) -> None:
        if not isinstance(declared, Mapping):
            raise ConfigurationError(
                'feedback maps names to what they take, as in {"helpfulness": Rating(1, 5)}', setting="feedback"
            )
        for name, each in declared.items():
            with _as_configuration("feedback"):
                check_name(name)
            if not isinstance(each, Declaration):
                raise ConfigurationError(
                    f"feedback[{name!r}] must be a Rating, Labels, Thumb, Flag or Text, as in Thumb()",
                    setting="feedback",
                )
        self.declared = MappingProxyType(dict(declared))

    def check(self, feedback: Feedback) -> None:
        """Refuse a value, or a scale, other than what was declared of its name.

        Raises:
            InvalidFeedbackError: saying what to give instead, never what was given.
        """
        declared = self.of(feedback.name)
        if declared is None or feedback.value is None:
            return
        if not declared.fits(feedback.value):
            raise InvalidFeedbackError(
                f"{feedback.name!r} takes {declared.takes}, as declared: give that, or declare it otherwise",
                field="value",
                value=feedback.value,
            )
        if isinstance(declared, Rating) and feedback.scale is not None and not _is_scale(feedback.scale, declared):
            raise InvalidFeedbackError(
                f"{feedback.name!r} is declared from {declared.low} to {declared.high}: leave out its scale",
                field="scale",
                value=feedback.scale,
            )

    def completed(self, feedback: Feedback) -> Feedback:
        """Give a judgement the scale and the vendors' own fields that were declared of its name."""
        declared = self.of(feedback.name)
        if declared is None:
            return feedback
        feedback = replace(feedback, native=_merged(declared.native, feedback.native))
        if not isinstance(declared, Rating) or not is_number(feedback.value):
            return feedback
        has_another = feedback.scale is not None and not _is_scale(feedback.scale, declared)
        return feedback if has_another else replace(feedback, scale=declared.scale)

    def is_thumb(self, name: object) -> bool | None:
        """Tell whether a name was declared a thumb; `None` where it was not declared."""
        declared = self.of(name)
        return None if declared is None else isinstance(declared, Thumb)

    def lower_is_better(self, name: object) -> bool:
        """Tell in which direction the values of a name go."""
        declared = self.of(name)
        return isinstance(declared, (Rating, Flag)) and declared.lower_is_better

    def of(self, name: object) -> Declaration | None:
        """Answer what was declared of a name."""
        return self.declared.get(name) if isinstance(name, str) else None


def _is_scale(scale: object, rating: Rating) -> bool:
    """Tell whether a scale that was given is the declared one."""
    return isinstance(scale, (tuple, list)) and tuple(scale) == rating.scale


def _merged(declared: Native, given: object) -> Any:
    """Put what a call sets of vendors' own fields over what was declared; what is no mapping is refused later."""
    if given is None:
        return declared
    if not isinstance(given, Mapping):
        return given
    merged: dict[str, Any] = {**declared, **given}
    for name in declared.keys() & given.keys():
        if isinstance(given[name], Mapping):
            merged[name] = {**declared[name], **given[name]}
    return merged


def _set_native(declaration: Declaration, native: object) -> None:
    """Copy what is set of vendors' own fields into a declaration that is being made."""
    with _as_configuration("feedback"):
        object.__setattr__(declaration, "native", native_of(native))


def _check_bool(given: object, name: str) -> bool:
    """Refuse what is neither true nor false."""
    if not isinstance(given, bool):
        raise ConfigurationError(f"{name} must be True or False", setting="feedback")
    return given


@contextmanager
def _as_configuration(what: str) -> Iterator[None]:
    """Say of what is wrong in a declaration that it is the application's setting, not somebody's judgement."""
    try:
        yield
    except InvalidFeedbackError as error:
        raise ConfigurationError(f"{what}: {error}", setting="feedback") from None
