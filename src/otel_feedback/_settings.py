"""What the environment says about the pipeline, read into one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from otel_feedback import environment_variables as env
from otel_feedback.exceptions import ConfigurationError

# Eleven days: longer than anybody waits, and short enough for every platform's longest wait.
MAX_MILLIS_DIGITS = 9

# The fields that have choices, and the variable that lists them.
_CHOICES: Mapping[str, str] = {
    "on_unknown_key": env.OTEL_FEEDBACK_ON_UNKNOWN_KEY,
    "durability": env.OTEL_FEEDBACK_DURABILITY,
    "delivery": env.OTEL_FEEDBACK_DELIVERY,
    "on_unsampled": env.OTEL_FEEDBACK_ON_UNSAMPLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a pipeline; `environment_variables` says what each means.

    Raises:
        ConfigurationError: when a setting has none of its choices, which would otherwise do nothing, or is negative.

    Args:
        disabled: everything is a no-op.

        exporters: the names of the exporters.

        store_url: where the store is.

        key_wait_millis: how long a look-up waits for a key that is not there yet.

        on_unknown_key: what happens then.

        durability: what an accepted judgement survives.

        delivery: whether this process delivers.

        on_unsampled: what becomes of feedback on a span that was not sampled.

        exit_timeout_millis: how long a process may go on delivering at its exit.
    """

    disabled: bool = False
    exporters: tuple[str, ...] = ()
    store_url: str = env.VARIABLES[env.OTEL_FEEDBACK_STORE_URL].default
    key_wait_millis: int = 1_000
    on_unknown_key: Literal["raise", "park"] = "raise"
    durability: Literal["disk", "process"] = "disk"
    delivery: Literal["thread", "none"] = "thread"
    on_unsampled: Literal["skip", "export"] = "skip"
    exit_timeout_millis: int = 2_000

    def __post_init__(self) -> None:
        """Refuse what the environment could not say either."""
        for name, variable in _CHOICES.items():
            _check_choice(getattr(self, name), variable, name)
        for name in ("key_wait_millis", "exit_timeout_millis"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must be 0 or more", setting=name)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from the environment.

        Raises:
            ConfigurationError: naming the variable that cannot be read.
        """
        return cls(
            disabled=_choice(env.OTEL_FEEDBACK_DISABLED, environ) == "true",
            exporters=_names(env.OTEL_FEEDBACK_EXPORTERS, environ),
            store_url=env.read(env.OTEL_FEEDBACK_STORE_URL, environ),
            key_wait_millis=_millis(env.OTEL_FEEDBACK_KEY_WAIT_MILLIS, environ),
            on_unknown_key=cast('Literal["raise", "park"]', _choice(env.OTEL_FEEDBACK_ON_UNKNOWN_KEY, environ)),
            durability=cast('Literal["disk", "process"]', _choice(env.OTEL_FEEDBACK_DURABILITY, environ)),
            delivery=cast('Literal["thread", "none"]', _choice(env.OTEL_FEEDBACK_DELIVERY, environ)),
            on_unsampled=cast('Literal["skip", "export"]', _choice(env.OTEL_FEEDBACK_ON_UNSAMPLED, environ)),
            exit_timeout_millis=_millis(env.OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS, environ),
        )


def _choice(name: str, environ: Mapping[str, str] | None) -> str:
    """Read one of a variable's choices, in any case."""
    text = env.read(name, environ).lower()
    _check_choice(text, name, name)
    return text


def _check_choice(value: str, variable: str, setting: str) -> None:
    """Refuse what is none of a variable's choices."""
    choices = env.VARIABLES[variable].choices
    if value not in choices:
        raise ConfigurationError(f"{setting} must be one of {', '.join(choices)}", setting=setting)


def _millis(name: str, environ: Mapping[str, str] | None) -> int:
    """Read a number of milliseconds."""
    text = env.read(name, environ)
    if not text.isascii() or not text.isdigit() or len(text) > MAX_MILLIS_DIGITS:
        raise ConfigurationError(
            f"{name} must be a whole number of milliseconds, from 0 to {'9' * MAX_MILLIS_DIGITS}", setting=name
        )
    return int(text)


def _names(name: str, environ: Mapping[str, str] | None) -> tuple[str, ...]:
    """Read comma-separated names, each once."""
    parts = (part.strip() for part in env.read(name, environ).split(","))
    return tuple(dict.fromkeys(part for part in parts if part))
