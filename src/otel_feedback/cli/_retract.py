"""What `retract` and `forget` do: take back one judgement, erase a person."""

from __future__ import annotations

from otel_feedback.cli._pipeline import pipeline


def run_retract(record_id: str) -> None:
    """Take a judgement back, and tell what is to become of it."""
    with pipeline() as provider:
        receipt = provider.retract(record_id)
    print(receipt.id)  # noqa: T201 (a command's answer)
    for name, delivery in receipt.deliveries.items():
        # What is pending now is the retraction.
        told = "to be taken back" if delivery.state == "pending" else delivery.state
        why = f": {delivery.reason}" if delivery.reason else ""
        print(f"  {name} {told}{why}")  # noqa: T201 (a command's answer)


def run_forget(user_id: str) -> None:
    """Erase a person, and tell how much it was."""
    with pipeline() as provider:
        count = provider.forget(user_id=user_id)
    print(f"{count} erased of {user_id}")  # noqa: T201 (a command's answer)
