"""Every environment variable that otel-feedback reads: one table, and the one function that reads it.

Nothing is read at import. Arguments win over the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

OTEL_FEEDBACK_DISABLED = "OTEL_FEEDBACK_DISABLED"
OTEL_FEEDBACK_EXPORTERS = "OTEL_FEEDBACK_EXPORTERS"
OTEL_FEEDBACK_STORE_URL = "OTEL_FEEDBACK_STORE_URL"
OTEL_FEEDBACK_KEY_WAIT_MILLIS = "OTEL_FEEDBACK_KEY_WAIT_MILLIS"
OTEL_FEEDBACK_ON_UNKNOWN_KEY = "OTEL_FEEDBACK_ON_UNKNOWN_KEY"
OTEL_FEEDBACK_DURABILITY = "OTEL_FEEDBACK_DURABILITY"
OTEL_FEEDBACK_DELIVERY = "OTEL_FEEDBACK_DELIVERY"
OTEL_FEEDBACK_SIGNING_KEYS = "OTEL_FEEDBACK_SIGNING_KEYS"
OTEL_FEEDBACK_ON_UNSAMPLED = "OTEL_FEEDBACK_ON_UNSAMPLED"
OTEL_FEEDBACK_UNDECLARED = "OTEL_FEEDBACK_UNDECLARED"
OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS = "OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS"
OTEL_FEEDBACK_MAX_QUEUE_SIZE = "OTEL_FEEDBACK_MAX_QUEUE_SIZE"
OTEL_FEEDBACK_MAX_EXPORT_BATCH_SIZE = "OTEL_FEEDBACK_MAX_EXPORT_BATCH_SIZE"
OTEL_FEEDBACK_CONCURRENCY = "OTEL_FEEDBACK_CONCURRENCY"
OTEL_FEEDBACK_RETENTION_DAYS = "OTEL_FEEDBACK_RETENTION_DAYS"
OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS = "OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS"
ORQ_API_KEY = "ORQ_API_KEY"
ORQ_BASE_URL = "ORQ_BASE_URL"
BRAINTRUST_API_KEY = "BRAINTRUST_API_KEY"
BRAINTRUST_API_URL = "BRAINTRUST_API_URL"
BRAINTRUST_PARENT = "BRAINTRUST_PARENT"
WANDB_API_KEY = "WANDB_API_KEY"
WANDB_ENTITY = "WANDB_ENTITY"
WANDB_PROJECT = "WANDB_PROJECT"
WANDB_BASE_URL = "WANDB_BASE_URL"
WF_TRACE_SERVER_URL = "WF_TRACE_SERVER_URL"


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table: what a variable is when nobody sets it, and what it means."""

    default: str
    meaning: str
    choices: tuple[str, ...] = ()
    secret: bool = False


VARIABLES: Mapping[str, Variable] = {
    OTEL_FEEDBACK_DISABLED: Variable("false", "`true` turns everything into no-ops", ("true", "false")),
    OTEL_FEEDBACK_EXPORTERS: Variable("", "comma-separated exporter names; none: records wait as unrouted"),
    OTEL_FEEDBACK_STORE_URL: Variable(
        "sqlite:///.otel_feedback/feedback.db", "`sqlite:///path` (four slashes: absolute) or `memory:`"
    ),
    OTEL_FEEDBACK_KEY_WAIT_MILLIS: Variable("1000", "how long a look-up waits for a key not yet there"),
    OTEL_FEEDBACK_ON_UNKNOWN_KEY: Variable(
        "raise", "then `raise`, or `park`: keep it until the key turns up", ("raise", "park")
    ),
    OTEL_FEEDBACK_DURABILITY: Variable(
        "disk", "`disk` survives a power cut, `process` a killed process", ("disk", "process")
    ),
    OTEL_FEEDBACK_DELIVERY: Variable("thread", "`none` where another process delivers", ("thread", "none")),
    OTEL_FEEDBACK_SIGNING_KEYS: Variable(
        "", "comma-separated keys of tokens, the newest first, which signs; none: tokens are refused", secret=True
    ),
    OTEL_FEEDBACK_ON_UNSAMPLED: Variable(
        "skip",
        "feedback on a span that was not sampled: `skip` it, or `export` it all the same",
        ("skip", "export"),
    ),
    OTEL_FEEDBACK_UNDECLARED: Variable(
        "allow",
        "feedback under a name that `configure(feedback=…)` has not: `allow` it, `warn` once a name, or `refuse` it",
        ("allow", "warn", "refuse"),
    ),
    OTEL_FEEDBACK_EXIT_TIMEOUT_MILLIS: Variable("2000", "how long a process may go on delivering at its exit"),
    OTEL_FEEDBACK_MAX_QUEUE_SIZE: Variable(
        "1000000", "how many judgements may wait at a destination; more are refused with `OutboxFullError`"
    ),
    OTEL_FEEDBACK_MAX_EXPORT_BATCH_SIZE: Variable("100", "how many judgements are taken at once for a destination"),
    OTEL_FEEDBACK_CONCURRENCY: Variable("4", "how many threads deliver to a destination when there is much to do"),
    OTEL_FEEDBACK_RETENTION_DAYS: Variable("90", "how long keys, and judgements that are settled everywhere, are kept"),
    OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS: Variable(
        "60000", "how long after the span's end feedback is held back from Braintrust"
    ),
    ORQ_API_KEY: Variable("", "key of the orq workspace", secret=True),
    ORQ_BASE_URL: Variable("https://api.orq.ai", "where orq is"),
    BRAINTRUST_API_KEY: Variable("", "key of the Braintrust organization", secret=True),
    BRAINTRUST_API_URL: Variable("https://api.braintrust.dev", "where Braintrust is"),
    BRAINTRUST_PARENT: Variable("", "`project_name:…`, `project_id:…` or `experiment_id:…`"),
    WANDB_API_KEY: Variable("", "key of the W&B user", secret=True),
    WANDB_ENTITY: Variable("", "the team"),
    WANDB_PROJECT: Variable("", "the project, or `entity/project`"),
    WANDB_BASE_URL: Variable("https://api.wandb.ai", "a W&B server of one's own; Weave is then at `/traces`"),
    WF_TRACE_SERVER_URL: Variable("", "where Weave's trace server is; wins over `WANDB_BASE_URL`"),
}


def read(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Read one variable of the table; unset, or blank as a compose file leaves it, is its default."""
    value = (os.environ if environ is None else environ).get(name, "").strip()
    return value or VARIABLES[name].default


def is_set(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether a variable of the table is set to something."""
    return bool((os.environ if environ is None else environ).get(name, "").strip())


def unknown(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Name the variables that look like ours and are none."""
    found = os.environ if environ is None else environ
    return tuple(sorted(name for name in found if name.startswith("OTEL_FEEDBACK_") and name not in VARIABLES))


def names_in(text: str) -> tuple[str, ...]:
    """Read comma-separated names, each once, in order."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
