"""Outages of a backend in the log: one line at the beginning, one at the end, and one every `LOG_INTERVAL` seconds.

Subscriptions, workers, waiting acquires and the renewal thread of a backend report to one `OutageLog`. Each of them
retries by itself, some several times a second, so none of them logs its failures.
"""

import threading
from typing import Final

from ailf.driver import BackendDriver
from ailf.errors import BackendTimeoutError, ConnectionLostError
from ailf.instruments import ConnectionLost, ConnectionRestored, Instruments
from ailf.logs import About, Log

__all__ = ["AWAY", "OutageLog"]

log = Log("ailf.backend")

AWAY: Final = (ConnectionLostError, BackendTimeoutError)
"""The errors of a backend that is unavailable and may come back."""

LOG_INTERVAL: Final = 10.0
"""Seconds between two log lines of one outage."""

FORGET_AFTER: Final = 60.0
"""Seconds without a failure after which an outage has ended, although no request has succeeded."""


class OutageLog:
    """Logs the outages of one backend. Any thread may report to it.

    Arguments:
        driver: The backend's driver.
        instruments: The instruments that observe the backend.
    """

    def __init__(self, driver: BackendDriver, instruments: Instruments | None = None) -> None:
        self._driver = driver
        self._instruments = instruments or Instruments(driver.url)
        self._now = driver.runtime.now
        self._guard = threading.Lock()
        self._since: float | None = None
        self._ended = self._logged = self._failed = float("-inf")

    def failed(self, what: str, error: Exception) -> None:
        """Report that an operation, `what`, has failed and is going to be retried."""
        with self._guard:
            now = self._now()
            if now - self._failed > FORGET_AFTER:
                self._since = None
            self._failed = now
            if self._since is None:
                if now - self._ended < self._driver.timeout:  # that request began before the end of the last outage
                    return
                self._since, state = now, "it is unavailable, and failed operations are retried"
                begins = True
            elif now - self._logged >= LOG_INTERVAL:
                state = f"it is still unavailable after {now - self._since:.0f} s"
                begins = False
            else:
                return
            self._logged = now
        log.warning(self._about(), "%s: %s: %s", state, what, error)
        if begins and self._instruments.connection_lost:
            self._instruments.emit_in_thread(ConnectionLost(self._driver.url, error))

    def worked(self) -> None:
        """Report that an operation that had failed has succeeded."""
        with self._guard:
            since, self._since = self._since, None
            if since is None:
                return
            self._ended = self._now()
        log.warning(self._about(), "it is back after %.2f s", self._ended - since)
        if self._instruments.connection_restored:
            self._instruments.emit_in_thread(ConnectionRestored(self._driver.url, self._ended - since))

    def _about(self) -> About:
        return About(f"the backend {self._driver.url}", {"backend": self._driver.url})
