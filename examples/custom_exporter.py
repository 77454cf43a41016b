"""An exporter of your own: judgements to a webhook of the team's chat. Run it with WEBHOOK_URL set."""

import os
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import otel_feedback as of


class WebhookExporter(of.HTTPFeedbackExporter):
    """Posts one line a judgement. All it needs to say is what to send (`parts`) and how (`exchange`)."""

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-team": "support"}

    def parts(self, record: of.FeedbackRecord) -> Sequence[of.Part]:
        line = f"{record.name}: {record.value} {record.comment or ''}".strip()
        carries = frozenset({"value", "comment"}) & set(record.said)
        return [of.Part(record=record, kind="line", body={"text": line}, carries=carries)]

    def exchange(self, parts: Sequence[of.Part]) -> of.Exchange[Sequence[of.Result]]:
        return of.one_by_one(parts, self.post)

    def post(self, part: of.Part) -> of.Exchange[of.Result]:
        if part.action != "create":
            return of.Skipped("a line in a chat cannot be changed")
        response = yield self.request("POST", "/hook", part.body)
        return self.result(response)


def main() -> None:
    trace.set_tracer_provider(TracerProvider())
    webhook = WebhookExporter(name="webhook", base_url=os.environ["WEBHOOK_URL"])
    with of.configure(exporters=[webhook], store="memory:") as feedback:
        with of.capture_span("answer") as handle:
            pass
        receipt = of.record_feedback(handle, "rating", True, comment="Spot on", tags=["demo"])
        feedback.force_flush()
        print(feedback.status(receipt.id).deliveries["webhook"].state)
        print("not carried:", *receipt.not_carried["webhook"])


if __name__ == "__main__":
    main()
