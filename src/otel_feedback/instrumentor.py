"""`FeedbackInstrumentor`: capture switched on by `opentelemetry-instrument`, without a line in the application.

The module needs the extra `[auto]`; only its entry point and `otel_feedback.FeedbackInstrumentor` load it.

Options come from the section `instrumentation/development: python: otel_feedback:` of OpenTelemetry's configuration
file, which hands each over as a keyword of `instrument()`, or from a call of that in code. OpenTelemetry would check
them against a dataclass in a class attribute `configuration`; there is none here, since it checks no type of a scalar,
and instruments once more, by the environment alone, where one is refused.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NoReturn

import pydantic
from opentelemetry import trace
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from otel_feedback import _active
from otel_feedback._settings import MAX_NUMBER, NUMBERS
from otel_feedback.exceptions import ConfigurationError, MissingExtraError
from otel_feedback.processor import install
from otel_feedback.provider import ENTRY_POINT_GROUP, start_from_environment

logger = logging.getLogger(__name__)

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # no stubs
except ImportError as error:
    raise MissingExtraError(
        "FeedbackInstrumentor needs opentelemetry-instrumentation: pip install 'otel-feedback[auto]'",
        extra="auto",
    ) from error

# What OpenTelemetry hands to every instrumentor; of these only the first concerns this one.
OF_EVERY_INSTRUMENTOR = frozenset({"tracer_provider", "meter_provider", "logger_provider", "event_logger_provider"})

Millis = Annotated[int, pydantic.Field(ge=0, le=MAX_NUMBER)]


def _between(field: str) -> Any:
    """Say between which numbers a setting has to be."""
    _, lowest, highest = NUMBERS[field]
    return pydantic.Field(ge=lowest, le=highest)


def _registered(names: list[str]) -> list[str]:
    """Refuse a name under which no exporter is registered; none is loaded before a call of a model is to be kept."""
    known = sorted(entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
    for name in names:
        if name not in known:
            raise PydanticCustomError(
                "unknown_exporter",
                "no exporter is registered as '{name}'; there are {known}",
                {"name": name, "known": ", ".join(known)},
            )
    return names


class InstrumentorOptions(TypedDict, total=False):
    """The options; each wins over the variable `OTEL_FEEDBACK_…` of its name, and means the same."""

    disabled: bool
    exporters: Annotated[list[str], pydantic.AfterValidator(_registered)]
    store_url: Annotated[str, pydantic.Field(min_length=1)]
    key_wait_millis: Millis
    on_unknown_key: Literal["raise", "park"]
    durability: Literal["disk", "process"]
    delivery: Literal["thread", "none"]
    signing_keys: list[Annotated[str, pydantic.StringConstraints(pattern=r"\S")]]
    on_unsampled: Literal["skip", "export"]
    undeclared: Literal["allow", "warn", "refuse"]
    exit_timeout_millis: Millis
    max_queue_size: Annotated[int, _between("max_queue_size")]
    max_export_batch_size: Annotated[int, _between("max_export_batch_size")]
    concurrency: Annotated[int, _between("concurrency")]
    retention_days: Annotated[int, _between("retention_days")]
    braintrust_hold_millis: Millis


OPTIONS = InstrumentorOptions.__annotations__.keys()
_OPTIONS = pydantic.TypeAdapter(InstrumentorOptions)


class FeedbackInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # the base is untyped
    """Installs the feedback span processor on the tracer provider that auto-instrumentation has set up.

    `instrument()` takes the options of `InstrumentorOptions`; in code, `exporters` may be objects as well as names,
    and `tracer_provider` says whose spans are seen. What is not given comes from the environment. The feedback
    provider itself is made when the first call of a model ends, or at the first use of a function of this package.

    An option that cannot be used raises nothing here, since that would cost the application its other
    instrumentations: it is told in the log, calls are not captured, and what records feedback raises it.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Need nothing of the application."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        """Say how the provider is made, and install the processor on the given tracer provider, else the global one."""
        # An empty value in a YAML file is none, and means what a missing one does.
        options = {name: kwargs[name] for name in kwargs.keys() - OF_EVERY_INSTRUMENTOR if kwargs[name] is not None}
        tracer_provider = kwargs.get("tracer_provider")
        try:
            arguments = _arguments(options)
        except ConfigurationError as error:
            logger.error("calls of models are not captured: %s", error)  # noqa: TRY400 (it says all there is)
            _active.set_default(partial(_refuse, str(error), error.setting))
            return
        if options and _active.get() is not None:
            logger.warning("otel-feedback was configured before: the options of FeedbackInstrumentor are not used")
        _active.set_default(partial(start_from_environment, tracer_provider=tracer_provider, **arguments))
        if not install(tracer_provider or trace.get_tracer_provider()):
            logger.warning(
                "no OpenTelemetry SDK is set up, so calls of models are not seen until there is one; "
                "opentelemetry-instrument sets it up where opentelemetry-distro is installed"
            )

    def _uninstrument(self, **kwargs: Any) -> None:  # noqa: ARG002 (the base's signature)
        """Forget the options; OpenTelemetry cannot remove a processor, and ours rests while feedback is disabled."""
        _active.set_default(start_from_environment)


def _refuse(message: str, setting: str | None) -> NoReturn:
    """Make no provider."""
    raise ConfigurationError(message, setting=setting)


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options into what a provider is made of.

    Raises:
        ConfigurationError: naming every option that cannot be used.
    """
    given = dict(options)
    exporters = given.pop("exporters") if _are_objects(given.get("exporters")) else None
    _check(given)
    hold_millis = given.pop("braintrust_hold_millis", None)
    if hold_millis is not None and exporters is not None:
        raise ConfigurationError(
            "the option braintrust_hold_millis is for an exporter that is named; BraintrustExporter(hold_millis=...) "
            "has its own",
            setting="braintrust_hold_millis",
        )
    for name in ("exporters", "signing_keys"):
        if name in given:
            given[name] = tuple(given[name])
    return {
        "given": given,
        "exporters": exporters,
        "exporter_options": {} if hold_millis is None else {"braintrust": {"hold_millis": hold_millis}},
    }


def _are_objects(exporters: object) -> bool:
    """Tell whether code has given exporters themselves, where the file has names."""
    return isinstance(exporters, (list, tuple)) and any(hasattr(each, "export") for each in exporters)


def _check(given: Mapping[str, Any]) -> None:
    """Refuse what is no option, or not what its option takes."""
    wrong = dict(_wrong(given))
    if wrong:
        raise ConfigurationError(
            "; ".join(
                f"the option {name} of otel_feedback cannot be used: {why}" for name, why in sorted(wrong.items())
            ),
            setting=min(wrong),
        )


def _wrong(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say which options cannot be used, and why; never what they were, since a store's URL may hold a password."""
    for name in given.keys() - OPTIONS:
        yield name, f"there is none of this name, but {', '.join(sorted(OPTIONS))}"
    try:
        _OPTIONS.validate_python({name: given[name] for name in given.keys() & OPTIONS}, strict=True)
    except pydantic.ValidationError as error:
        for each in error.errors(include_input=False, include_url=False):
            yield str(each["loc"][0]), each["msg"]
