"""The cost of instruments: of adding a message, and of a worker that fetches, handles and acks one.

    python benchmarks/instruments.py [--quick] [--runs 5] [CONTENDER …]

The rows are: no instrument; one that overrides every hook and does nothing; `ailf.otel` with the SDK's spans and
metrics, which are recorded and not exported; the same with metrics only; and `ailf.prometheus`. It needs the extras
``otel`` and ``prometheus``, and opentelemetry-sdk. Then comes the cost of a hook that no instrument overrides, and what
the core adds to its driver without any instrument.
"""

import time
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import bench
import memory
from bench import Column, Effort, Numbers

import ailf
from ailf.instruments import Instrument, Instruments

PLACES = ("memory", "redis")
COLUMNS = [Column(f"{place} {what}", less=True) for place in PLACES for what in ("add", "message")]
MESSAGES = 200
NANOSECONDS = 1e9


class Nothing(Instrument):
    """Overrides every hook."""

    def ignore(self, event: Any) -> None:
        """Do nothing."""

    message_sent = message_received = message_settled = message_died = waited = ignore
    lease_expired = messages_missed = messages_dropped = connection_lost = connection_restored = ignore

    def sending(self, destination: Any, headers: Any) -> Any:  # noqa: ARG002, D102 - as `Instrument`
        return headers

    def handling(self, handled: Any) -> Any:  # noqa: D102 - as `Instrument`
        return super().handling(handled)


def opentelemetry(**options: Any) -> Instrument:
    """Return `ailf.otel` with an SDK that exports nothing."""
    metrics = bench.peer("opentelemetry.sdk.metrics")
    reader = bench.peer("opentelemetry.sdk.metrics.export").InMemoryMetricReader()
    provider = bench.peer("opentelemetry.sdk.trace").TracerProvider(shutdown_on_exit=False)
    meters = metrics.MeterProvider([reader], shutdown_on_exit=False)
    made: Instrument = bench.peer("ailf.otel").OpenTelemetry(provider, meters, **options)
    return made


def prometheus() -> Instrument:
    """Return `ailf.prometheus` with a registry of its own."""
    made: Instrument = bench.peer("ailf.prometheus").Prometheus(bench.peer("prometheus_client").CollectorRegistry())
    return made


INSTRUMENTS: dict[str, Callable[[], list[Instrument]]] = {
    "off": list,
    "no-op": lambda: [Nothing()],
    "otel": lambda: [opentelemetry()],
    "otel, no spans": lambda: [opentelemetry(spans=())],
    "prometheus": lambda: [prometheus()],
}


def measure(instruments: Callable[[], list[Instrument]], url: str, seconds: float) -> Numbers:
    """Return the nanoseconds of each operation, with these instruments."""
    numbers: dict[str, float] = {}
    for place, where in zip(PLACES, ("memory://instruments", url), strict=True):
        bench.clear(url)
        with ailf.connect(where, instruments=instruments()) as backend:
            numbers[f"{place} add"] = bench.per_call(partial(backend.stream("added").add, 1), seconds) * 1000
            numbers[f"{place} message"] = message(backend, seconds)
    return numbers


def message(backend: ailf.Backend, seconds: float) -> float:
    """Return the nanoseconds in which a worker fetches, handles and acks one message: the least of several batches."""
    stream = backend.stream("handled", retention=ailf.Retention.settled())
    group = stream.group("g")
    took = []
    until = time.perf_counter() + seconds
    while not took or time.perf_counter() < until:
        stream.add_many([*range(MESSAGES)])
        left = [MESSAGES]

        def handle(_: object, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                group.stop()

        began = time.perf_counter()
        group.process(handle)
        took.append(time.perf_counter() - began)
    return min(took) / MESSAGES * NANOSECONDS


def unused(effort: Effort) -> float:
    """Return the nanoseconds that `add` spends on looking whether an instrument overrides its hooks."""
    scope = {"instruments": Instruments("memory://"), "observed": False}
    number = effort.pick(200_000, 2_000_000)
    looks = "if not observed and (instruments.message_sent or instruments.sending): raise SystemExit"
    look, nothing = (min(timeit.repeat(code, globals=scope, number=number, repeat=7)) for code in (looks, "pass"))
    return (look - nothing) / number * NANOSECONDS


def main() -> None:
    """Measure the chosen contenders, and print the table."""
    effort = bench.effort(__doc__)
    with bench.server() as url:
        contenders: dict[str, bench.Measure] = {
            name: partial(measure, each, url, effort.seconds) for name, each in INSTRUMENTS.items()
        }
        rows = bench.play(effort.chosen(contenders), effort.runs)
    bench.table("instruments, blocking, ns a call (in brackets: how many times better off is)", COLUMNS, rows, "off")
    print(f"\na hook that no instrument overrides: {unused(effort):.0f} ns a call")
    shares = {name: bench.Row([numbers]) for name, numbers in memory.core_cpu(4 * effort.seconds).items()}
    columns = [Column(name, less=True, digits=1) for name in shares["core's share"].rounds[0]]
    bench.table("the core without instruments, blocking, µs of CPU a call", columns, shares)


if __name__ == "__main__":
    main()
