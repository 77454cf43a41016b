"""The functions on top: the same pipeline, with one global provider."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

from otel_feedback import _active, processor
from otel_feedback._capture import capture, capture_span, collect_handles, current_handle, handle_of
from otel_feedback._correlate import CollectedHandles
from otel_feedback.provider import TOKEN_LIFETIME, FeedbackProvider

if TYPE_CHECKING:
    from datetime import timedelta

    from typing_extensions import Unpack

    from otel_feedback._declare import Declaration
    from otel_feedback._handle import FeedbackHandle
    from otel_feedback._record import Feedback, FeedbackOptions, FeedbackRecord, GivenValue, Receipt
    from otel_feedback._settings import Settings
    from otel_feedback._tokens import FeedbackGrant
    from otel_feedback.exporters import FeedbackExporter
    from otel_feedback.stores import Store

FeedbackSpanProcessor = processor.FeedbackSpanProcessor
install = processor.install

__all__ = ["CollectedHandles", "capture", "capture_span", "collect_handles", "current_handle", "handle_of"]


def configure(
    *,
    exporters: Sequence[FeedbackExporter] | None = None,
    store: Store | str | None = None,
    tracer_provider: Any = None,
    feedback: Mapping[str, Declaration] | None = None,
    redact: Callable[[Feedback], Feedback] | Mapping[str, Callable[[Feedback], Feedback]] | None = None,
    filters: Mapping[str, Callable[[FeedbackRecord], bool]] | None = None,
    settings: Settings | None = None,
) -> FeedbackProvider:
    """Build a provider, make it the global one, and start it; what was there before is shut down.

    Every argument that is left out comes from the environment. See `FeedbackProvider` for what each means.

    Raises:
        ConfigurationError: when a setting cannot be used, or this process delivers and an exporter lacks its key.

        StoreError: when the store cannot be opened or written.
    """
    provider = FeedbackProvider(
        exporters=exporters,
        store=store,
        tracer_provider=tracer_provider,
        feedback=feedback,
        redact=redact,
        filters=filters,
        settings=settings,
    ).start()
    set_feedback_provider(provider)
    return provider


def get_feedback_provider() -> FeedbackProvider:
    """Answer the global provider; where nobody configured one, configure it from the environment."""
    return cast("FeedbackProvider", _active.get_or_make())


def set_feedback_provider(provider: FeedbackProvider | None) -> None:
    """Make a provider the global one, or none; the one before is shut down."""
    if provider is not None:
        provider.see_spans()
    before = cast("FeedbackProvider | None", _active.put(provider))
    if before is not None and before is not provider:
        before.shutdown()


@overload
def record_feedback(
    target: FeedbackHandle | str,
    name: str,
    value: GivenValue | None = None,
    **options: Unpack[FeedbackOptions],
) -> Receipt: ...


@overload
def record_feedback(
    *,
    key: str,
    name: str,
    value: GivenValue | None = None,
    key_kind: str | None = None,
    **options: Unpack[FeedbackOptions],
) -> Receipt: ...


def record_feedback(target: Any = None, name: Any = None, value: Any = None, **options: Any) -> Receipt:
    """Record one judgement on exactly one call; it is durably accepted when this returns.

    Args:
        target: the call's `FeedbackHandle`, or a token of `issue_token`, which says who may judge under which names. A
            string is only ever a token; ids that your own service kept go through `FeedbackHandle.from_traceparent`.

        name: what is judged, such as `rating` or `helpfulness`.

        value: a `bool` is a thumb up or down, an `int` a number on a `scale`, a `float` one between 0 and 1 or on a
            `scale`, a `str` a label, a list of `str` several labels; or what was declared of the name.

        key: instead of a target, the app's own id under which the call was captured, or the model's response id. A
            key is no authorization: check who owns the answer.

        key_kind: looks only among `app`, `response` or `conversation` keys; by default among the first two.

        scale: the lowest and the highest number, both included; not needed where a `Rating` is declared.

        comment: what the person wrote.

        correction: what the answer should have been: text, or any JSON value.

        tags: words of yours to find it by.

        user_id: who judged. The same person's next judgement of the same call, name and source replaces this one;
            without a user every call is a judgement of its own.

        source: who judged: `human`, `llm` or `code`.

        metadata: anything else, as JSON.

        time_unix_nano: when it was judged, in nanoseconds since 1970 or as a datetime with a time zone; by default
            now.

        id: a UUID of your own; recording under the same id again replaces the judgement.

        to: the names of the exporters that it goes to; by default all.

        native: fields of one vendor's own API, as `{"weave": {"annotation_ref": …}}`.

        **options: the keyword arguments from `scale` on.

    Returns:
        The receipt: the id, what it survives, and where it goes.

    Raises:
        InvalidFeedbackError: when it is no judgement; `error.field` says which argument.

        UnknownTargetError: when no call is known for the key.

        InvalidTokenError: when the target is a string and no valid token, or one that grants another name or user.

        StoreError: when the store cannot take it; `OutboxFullError` when it is full.
    """
    return get_feedback_provider().record(target, name, value, **options)


@overload
async def arecord_feedback(
    target: FeedbackHandle | str,
    name: str,
    value: GivenValue | None = None,
    **options: Unpack[FeedbackOptions],
) -> Receipt: ...


@overload
async def arecord_feedback(
    *,
    key: str,
    name: str,
    value: GivenValue | None = None,
    key_kind: str | None = None,
    **options: Unpack[FeedbackOptions],
) -> Receipt: ...


async def arecord_feedback(target: Any = None, name: Any = None, value: Any = None, **options: Any) -> Receipt:
    """Record one judgement without blocking the event loop; see `record_feedback`."""
    return await get_feedback_provider().arecord(target, name, value, **options)


def record_many(feedback: Iterable[Feedback]) -> list[Receipt]:
    """Record several judgements in one transaction, all or none; see `FeedbackProvider.record_many`."""
    return get_feedback_provider().record_many(feedback)


def retract_feedback(
    record_id: str, *, target: FeedbackHandle | str | None = None, user_id: str | None = None
) -> Receipt:
    """Take a judgement back wherever that is possible; see `FeedbackProvider.retract`."""
    return get_feedback_provider().retract(record_id, target=target, user_id=user_id)


def issue_token(
    handle: FeedbackHandle,
    *,
    names: Sequence[str] | None = None,
    user_id: str | None = None,
    expires_in: timedelta = TOKEN_LIFETIME,
) -> str:
    """Sign a token with which a browser may judge one call; see `FeedbackProvider.issue_token`."""
    return get_feedback_provider().issue_token(handle, names=names, user_id=user_id, expires_in=expires_in)


def verify_token(token: str) -> FeedbackGrant:
    """Read a token of ours: what its holder may do; see `FeedbackProvider.verify_token`."""
    return get_feedback_provider().verify_token(token)


def bind_key(handle: FeedbackHandle, key: str, kind: str = "app") -> None:
    """Bind a key to a call, so that `record_feedback(key=…)` finds it."""
    get_feedback_provider().bind_key(handle, key, kind)
