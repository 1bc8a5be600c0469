"""``ailf doctor``: check a backend and what is stored in it, and say how to mend it."""

import itertools
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from ailf.backend import Backend
from ailf.cli.checks import dead_letter_findings, latency_finding, opening_finding, stream_findings
from ailf.cli.command import Cli, command, group
from ailf.cli.exits import DONE, FAILED, code_for
from ailf.cli.survey import Survey, left_out, openable
from ailf.cli.text import counted, visible
from ailf.driver import Capability, Finding, Level
from ailf.errors import AilfError, InvalidArgumentError
from ailf.runtime import run
from ailf.safe_text import text_of

__all__ = ["APP", "findings_table"]

APP: Final = group("", "")

PINGS: Final = 20
ARRIVAL: Final = 5.0
"""Seconds that a published message may take to arrive."""

STYLES: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@command(APP, "doctor")
def doctor(
    cli: Cli,
    *,
    interval: Annotated[
        float, typer.Option("--interval", min=0, max=600, help="Seconds between two counts of dead letters.")
    ] = 1.0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="The most streams to look at.")] = 10_000,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
) -> int:
    """Check a backend and what is stored in it; say how to mend it. Exit with 1 if a check fails."""
    try:
        backend = cli.open()
    except AilfError as error:
        if isinstance(error, InvalidArgumentError):
            raise
        finding = opening_finding(error)
        cli.show([finding], findings_table([finding]))
        return code_for(error)
    with backend, cli.working("checking"):
        findings = list(_findings(backend, interval, limit))
    cli.show(findings, findings_table(findings))
    bad = {Level.FAIL, Level.WARN} if strict else {Level.FAIL}
    return FAILED if any(each.level in bad for each in findings) else DONE


def _findings(backend: Backend, interval: float, limit: int) -> Iterator[Finding]:
    yield Finding("reachable", Level.OK, backend.url)
    yield latency_finding([_timed_ping(backend) for _ in range(PINGS)])
    if Capability.PUBSUB in backend.capabilities:
        yield _pubsub_finding(backend)
    try:
        yield from run(backend.engine.driver.diagnose())
    except AilfError as error:
        yield Finding("diagnosis", Level.WARN, f"the backend can't be asked about itself: {text_of(error)}")
    if Capability.STREAM in backend.capabilities:
        yield from _streams_findings(backend, interval, limit)


def _timed_ping(backend: Backend) -> float:
    begin = time.perf_counter()
    backend.ping()
    return time.perf_counter() - begin


def _pubsub_finding(backend: Backend) -> Finding:
    """Publish to a channel of our own and receive it."""
    channel = f"ailf.doctor.{secrets.token_hex(8)}"
    pubsub = backend.pubsub()
    try:
        with pubsub.listen(channel) as messages:
            begin = time.perf_counter()
            pubsub.publish(channel, channel)
            if messages.get(ARRIVAL) is None:
                return Finding("pub/sub", Level.FAIL, f"a message didn't arrive within {ARRIVAL:g} s")
            took = time.perf_counter() - begin
    except AilfError as error:
        mend = "give the user the rights to publish and to subscribe in its namespace"
        return Finding("pub/sub", Level.FAIL, f"it doesn't work: {text_of(error)}", mend)
    return Finding("pub/sub", Level.OK, f"a message arrives after {took * 1000:.1f} ms")


def _streams_findings(backend: Backend, interval: float, limit: int) -> Iterator[Finding]:
    try:
        names = list(itertools.islice(backend.streams(), limit + 1))
        survey = Survey(backend)
        known, others = openable(names[:limit])
        streams = survey.states(known)
    except AilfError as error:
        mend = "give the user of this command the rights to list; see Rights in the guide of the backend"
        yield Finding("streams", Level.WARN, f"streams and groups can't be checked: {text_of(error)}", mend)
        return
    if len(names) > limit:
        yield Finding(
            "streams",
            Level.WARN,
            f"there are more than {counted(limit, 'stream')}, and only that many were checked",
            "raise --limit to check all",
        )
    if others:
        yield Finding("streams", Level.WARN, left_out("stream", others), "see which program writes these keys")
    yield from stream_findings(streams)
    begin = time.monotonic()
    time.sleep(interval)
    infos = survey.group_infos((stream.name, each.name) for stream in streams for each in stream.groups)
    later = {each: info.dead for each, info in infos.items()}
    yield dead_letter_findings(streams, later, time.monotonic() - begin)


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the table of findings, each with what mends it below."""
    made = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for each in findings:
        style = STYLES[each.level]
        made.add_row(Text(each.level.value, style), Text(visible(each.check)), Text(visible(each.message)))
        if each.mend:
            made.add_row("", "", Text(f"-> {visible(each.mend)}", "cyan"))
    return made
