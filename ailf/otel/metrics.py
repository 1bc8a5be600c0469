"""The metrics: those of the semantic conventions for messaging, and those of ailf."""

from collections.abc import Sequence
from typing import Final

from ailf.otel.api import metrics

__all__ = ["Metrics"]

DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The buckets of the conventions, in seconds."""

LONG_DURATIONS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
"""The buckets for times in a queue, and of interruptions, in seconds."""


class Metrics:
    """The metrics of one instrument."""

    def __init__(self, meter: metrics.Meter) -> None:
        def seconds(name: str, description: str, buckets: Sequence[float] = DURATIONS) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=buckets)

        counter = meter.create_counter
        self.sent = counter("messaging.client.sent.messages", "{message}", "Messages that were sent, or failed to be.")
        self.consumed = counter("messaging.client.consumed.messages", "{message}", "Messages that were received.")
        self.operation_duration = seconds("messaging.client.operation.duration", "Duration of a send.")
        self.process_duration = seconds("messaging.process.duration", "Duration of a handler.")
        self.queue_duration = seconds(
            "ailf.queue.duration", "Time from adding a message to receiving it.", LONG_DURATIONS
        )
        self.settled = counter("ailf.settled.messages", "{message}", "Deliveries that were settled, by outcome.")
        self.dead = counter("ailf.dead.messages", "{message}", "Messages that became dead letters, by reason.")
        self.wait_duration = seconds("ailf.wait.duration", "Duration of `acquire` of locks and rate limiters.")
        self.lost_leases = counter("ailf.lost.leases", "{lease}", "Leases of messages, locks and permits that ended.")
        self.gap_duration = seconds(
            "ailf.gap.duration", "Interruptions in which subscriptions may have missed messages.", LONG_DURATIONS
        )
        self.dropped = counter(
            "ailf.dropped.messages", "{message}", "Messages that did not fit a subscription's buffer."
        )
        self.outages = counter("ailf.outages", "{outage}", "Outages of the backend that have begun.")
        self.outage_duration = seconds(
            "ailf.outage.duration", "Outages of the backend that have ended.", LONG_DURATIONS
        )
