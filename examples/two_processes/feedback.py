"""The feedback endpoint: another process, started later, that knows nothing but the message id and the store."""

import sys

import otel_feedback as of

message_id, thumb = sys.argv[1], sys.argv[2]

try:
    receipt = of.record_feedback(key=message_id, name="rating", value=thumb == "up", user_id="u-42")
except of.UnknownTargetError as error:
    sys.exit(str(error))

print(receipt.id)
is_delivered = of.get_feedback_provider().force_flush()
print("delivered" if is_delivered else "kept, and delivered by the next process")
