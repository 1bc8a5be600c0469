"""``ailf run``: run an app in worker processes; see `ailf.runner`."""

from typing import Annotated, Final

import typer

from ailf.checks import MAX_SECONDS
from ailf.cli.command import Cli, group
from ailf.cli.exits import USAGE, CommandError
from ailf.registry import plugin_for
from ailf.runner import RunnerOptions, run
from ailf.runner.options import GRACE, LAST_PORT, LEVELS, WAIT

__all__ = ["APP"]

APP: Final = group("", "")


@APP.command("run")
def run_app(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="The ailf.App, such as shop.jobs:app.")],
    *,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="The number of worker processes.")] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="Replace workers when a Python file here changes.")] = False,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0.001, max=MAX_SECONDS, help="Seconds that workers have to end after a stop."),
    ] = GRACE,
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=MAX_SECONDS, help="Seconds for which workers wait for the backend.")
    ] = WAIT,
    host: Annotated[str, typer.Option("--host", help="Where health and metrics are served.")] = "127.0.0.1",
    health_port: Annotated[
        int | None,
        typer.Option("--health-port", metavar="PORT", min=0, max=LAST_PORT, help="The port of /health and /ready."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", metavar="PORT", min=0, max=LAST_PORT, help="The port of /metrics; may be the same."
        ),
    ] = None,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="LEVEL", help=f"One of {', '.join(LEVELS)}.")
    ] = "info",
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="The backend's URL, for an app that names none.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", metavar="NAME", help="The backend's name in a configuration file."),
    ] = None,
) -> int:
    """Run an app in worker processes until SIGTERM or Ctrl-C, which drain them; SIGHUP replaces them."""
    if log_level not in LEVELS:
        raise CommandError(f"--log-level takes one of {', '.join(LEVELS)}, not {log_level!r}", USAGE)
    chosen = Cli(url, context).url() if url or context else None
    if chosen is not None:
        plugin_for(chosen, "ailf_connect", "blocking")  # refuses a wrong URL before workers do
    options = RunnerOptions(
        target=target,
        workers=workers,
        reload=reload,
        grace=grace,
        wait=wait,
        host=host,
        health_port=health_port,
        metrics_port=metrics_port,
        log_level=log_level,
        url=chosen,
    )
    return run(options)
