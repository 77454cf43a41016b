"""Declare once what people may say, and let each judgement be checked and completed by it."""

from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of

FEEDBACK = {
    "helpfulness": of.Rating(1, 5),
    "effort": of.Rating(1, 7, lower_is_better=True),
    "tone": of.Labels("warm", "cold"),
    "topics": of.Labels("code", "law", "music", multiple=True),
    "answered": of.Thumb(),
    "toxic": of.Flag(lower_is_better=True),
    "reason": of.Text(),
}

provider = of.configure(
    feedback=FEEDBACK,
    filters={"console": lambda record: record.name != "toxic"},
    exporters=[of.ConsoleFeedbackExporter()],
    store="memory:",
    tracer_provider=TracerProvider(),
)

with of.capture_span("answer") as handle:
    pass

of.record_feedback(handle, "helpfulness", 5)
kept_back = of.record_feedback(handle, "toxic", False)
try:
    of.record_feedback(handle, "tone", "lukewarm")
except of.InvalidFeedbackError as error:
    refusal = str(error)

provider.force_flush()
print(refusal)
print(provider.status(kept_back.id).deliveries["console"].reason)
