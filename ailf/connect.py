"""Opening a backend by URL: `connect` and `connect_async`."""

from collections.abc import Iterable
from typing import Any

from ailf.backend import AsyncBackend, Backend, _open
from ailf.checks import check_seconds
from ailf.instruments import Instrument, as_instruments
from ailf.logs import About, Log
from ailf.registry import open_plugin
from ailf.runtime import run
from ailf.urls import environment_url

__all__ = ["connect", "connect_async"]

log = Log("ailf")

DEFAULT_URL = "memory://"


def connect(
    url: str | None = None,
    *,
    wait: float = 0.0,
    instruments: Iterable[Instrument] = (),
    namespace: str | None = None,
    timeout: float | None = None,
    **options: Any,
) -> "Backend":
    """Open a backend by its URL, and check that it answers.

    >>> import ailf
    >>> with ailf.connect("memory://") as backend:  # or "redis://localhost:6379/0"
    ...     first = backend.stream("tasks").add({"page": 1})

    Arguments:
        url: ``redis://host:6379/0``, ``memory://``, …; the command ``ailf backends`` lists the schemes. None: the value
            of the environment variable ``AILF_URL``, or else ``memory://``, which is logged as a warning.
        wait: Seconds for which opening is retried while the backend can't be reached, is not ready, or doesn't answer.
            Any other error is raised at once. The last try may end later.
        instruments: Objects that observe the backend, of classes derived from `ailf.instruments.Instrument`; beside
            those of installed packages.
        namespace: The beginning of all names in the backend; None: that of the URL, or the backend's default.
        timeout: Seconds for one call; None: that of the URL, or the backend's default.
        options: Further options of the backend. Each may be an option of the URL instead, but not both. Some are
            keywords only: for Redis ``username``, ``password``, ``credentials``, and ``tls_verify=False``, which
            switches the verification of TLS off.

    Raises:
        InvalidArgumentError: No backend for the scheme is installed, the backend doesn't know an option, or it is given
            twice, the URL or ``AILF_URL`` is empty, ``wait`` isn't a number of seconds, or an instrument is none.
        UnsupportedError: The backend's package is missing, or has no blocking flavour, or the server is too old.
        ConnectionLostError: The server can't be reached.
        BackendTimeoutError: The server doesn't answer.
        PermissionDeniedError: The server refuses the credentials.
    """
    wait = check_seconds("wait", wait)
    observers = as_instruments(instruments)
    chosen = _chosen(url)
    backend: Backend
    backend, found = open_plugin(chosen, "ailf_connect", "blocking", _given(namespace, timeout, options))
    try:
        backend.instrument(*observers, *found)
        run(_open(backend.engine, wait))
    except BaseException:
        backend.close()
        raise
    return backend


def connect_async(
    url: str | None = None,
    *,
    wait: float = 0.0,
    instruments: Iterable[Instrument] = (),
    namespace: str | None = None,
    timeout: float | None = None,
    **options: Any,
) -> "AsyncBackend":
    """Return the asyncio backend of a URL, to be entered: ``async with ailf.connect_async(…) as backend``.

    It can be awaited instead: ``backend = await ailf.connect_async(…)``. Both check that the backend answers, and raise
    the errors of `connect`.

    Arguments:
        url: See `connect`.
        wait: See `connect`; the seconds are counted from when the backend is entered or awaited.
        instruments: See `connect`.
        namespace: See `connect`.
        timeout: See `connect`.
        options: See `connect`.

    Raises:
        InvalidArgumentError: As for `connect`.
        UnsupportedError: The backend's package is missing, or has no asyncio flavour.
    """
    wait = check_seconds("wait", wait)
    observers = as_instruments(instruments)
    chosen = _chosen(url)
    backend: AsyncBackend
    backend, found = open_plugin(chosen, "ailf_connect_async", "asyncio", _given(namespace, timeout, options))
    backend.instrument(*observers, *found)
    backend.engine.patience = wait
    return backend


def _given(namespace: str | None, timeout: float | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return all options that were given as keywords."""
    common = {"namespace": namespace, "timeout": timeout}
    return {name: value for name, value in common.items() if value is not None} | options


def _chosen(url: str | None) -> str:
    """Return the URL to open: the argument, or that of the environment, or that of the memory backend."""
    chosen = environment_url() if url is None else url
    if chosen is not None:
        return chosen
    log.warning(
        About(DEFAULT_URL, {"backend": DEFAULT_URL}),
        "no URL was given and AILF_URL is not set: this backend is in memory, where no other process sees it. "
        "Set AILF_URL; or pass memory:// to choose this backend without a warning",
    )
    return DEFAULT_URL
