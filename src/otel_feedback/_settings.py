"""What the environment says about the pipeline, read into one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from otel_feedback import environment_variables as env
from otel_feedback._dialects import is_unicode
from otel_feedback.exceptions import ConfigurationError

# In milliseconds eleven days: longer than anybody waits, and short enough for every platform's longest wait.
MAX_DIGITS = 9
MAX_NUMBER = 10**MAX_DIGITS - 1

# The fields that have choices, and the variable that lists them.
_CHOICES: Mapping[str, str] = {
    "on_unknown_key": env.OTEL_FEEDBACK_ON_UNKNOWN_KEY,
    "durability": env.OTEL_FEEDBACK_DURABILITY,
    "delivery": env.OTEL_FEEDBACK_DELIVERY,
    "on_unsampled": env.OTEL_FEEDBACK_ON_UNSAMPLED,
    "undeclared": env.OTEL_FEEDBACK_UNDECLARED,
}

# The fields that are numbers: the variable, the lowest and the highest. More threads than a hundred deliver no faster,
# and ten years are for ever.
NUMBERS: Mapping[str, tuple[str, int, int]] = {
    "key_wait_millis": (env.OTEL_FEEDBACK_KEY_WAIT_MILLIS, 0, MAX_NUMBER),
    "exit_timeout_millis": (env.OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS, 0, MAX_NUMBER),
    "max_queue_size": (env.OTEL_FEEDBACK_MAX_QUEUE_SIZE, 1, MAX_NUMBER),
    "max_export_batch_size": (env.OTEL_FEEDBACK_MAX_EXPORT_BATCH_SIZE, 1, 10_000),
    "concurrency": (env.OTEL_FEEDBACK_CONCURRENCY, 1, 100),
    "retention_days": (env.OTEL_FEEDBACK_RETENTION_DAYS, 1, 3_650),
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

        signing_keys: what tokens are signed with: the first one signs, all of them verify. Not in the `repr`.

        on_unsampled: what becomes of feedback on a span that was not sampled.

        undeclared: what becomes of feedback under a name that was not declared. Without `configure(feedback=…)` no
            name is: then it says nothing, and feedback is taken as it is.

        exit_timeout_millis: how long a process may go on delivering at its exit.

        max_queue_size: how many judgements may wait at a destination.

        max_export_batch_size: how many are taken at once for a destination.

        concurrency: how many threads deliver to a destination when there is much to do.

        retention_days: how long keys, and judgements that are settled everywhere, are kept.
    """

    disabled: bool = False
    exporters: tuple[str, ...] = ()
    store_url: str = env.VARIABLES[env.OTEL_FEEDBACK_STORE_URL].default
    key_wait_millis: int = 1_000
    on_unknown_key: Literal["raise", "park"] = "raise"
    durability: Literal["disk", "process"] = "disk"
    delivery: Literal["thread", "none"] = "thread"
    signing_keys: tuple[str, ...] = field(default=(), repr=False)
    on_unsampled: Literal["skip", "export"] = "skip"
    undeclared: Literal["allow", "warn", "refuse"] = "allow"
    exit_timeout_millis: int = 2_000
    max_queue_size: int = 1_000_000
    max_export_batch_size: int = 100
    concurrency: int = 4
    retention_days: int = 90

    def __post_init__(self) -> None:
        """Refuse what the environment could not say either."""
        for name, variable in _CHOICES.items():
            _check_choice(getattr(self, name), variable, name)
        keys = self.signing_keys
        if not isinstance(keys, tuple) or not all(isinstance(key, str) and key.strip() for key in keys):
            raise ConfigurationError("signing_keys is a tuple of texts, none of them empty", setting="signing_keys")
        if not all(map(is_unicode, keys)):
            raise ConfigurationError("a signing key is no UTF-8", setting="signing_keys")
        for name, (_, lowest, highest) in NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not lowest <= value <= highest:
                raise ConfigurationError(f"{name} must be a whole number, from {lowest} to {highest}", setting=name)

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
            key_wait_millis=_number("key_wait_millis", environ),
            on_unknown_key=cast('Literal["raise", "park"]', _choice(env.OTEL_FEEDBACK_ON_UNKNOWN_KEY, environ)),
            durability=cast('Literal["disk", "process"]', _choice(env.OTEL_FEEDBACK_DURABILITY, environ)),
            delivery=cast('Literal["thread", "none"]', _choice(env.OTEL_FEEDBACK_DELIVERY, environ)),
            signing_keys=_names(env.OTEL_FEEDBACK_SIGNING_KEYS, environ),
            on_unsampled=cast('Literal["skip", "export"]', _choice(env.OTEL_FEEDBACK_ON_UNSAMPLED, environ)),
            undeclared=cast('Literal["allow", "warn", "refuse"]', _choice(env.OTEL_FEEDBACK_UNDECLARED, environ)),
            exit_timeout_millis=_number("exit_timeout_millis", environ),
            max_queue_size=_number("max_queue_size", environ),
            max_export_batch_size=_number("max_export_batch_size", environ),
            concurrency=_number("concurrency", environ),
            retention_days=_number("retention_days", environ),
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


def _number(field: str, environ: Mapping[str, str] | None) -> int:
    """Read one of the whole numbers."""
    name, lowest, highest = NUMBERS[field]
    text = env.read(name, environ)
    # A longer text is no number that is meant, and int() of thousands of digits raises.
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else -1
    if not lowest <= number <= highest:
        raise ConfigurationError(f"{name} must be a whole number, from {lowest} to {highest}", setting=name)
    return number


def _names(name: str, environ: Mapping[str, str] | None) -> tuple[str, ...]:
    """Read comma-separated names, each once."""
    return env.names_in(env.read(name, environ))
