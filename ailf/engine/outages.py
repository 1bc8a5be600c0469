"""What the log says of an outage of the backend: a line when it begins, one when it ends, and few between.

All of one backend report to one `OutageLog`: subscriptions, workers, waiting acquires, the thread that renews leases.
Each of them tries again by itself, some several times a second, so none writes a line for each failure.
"""

import logging
import threading
from typing import Final

from ailf.driver import BackendDriver

__all__ = ["OutageLog"]

log = logging.getLogger("ailf.backend")

EVERY: Final = 10.0
"""Seconds between two lines of one outage."""

FORGOTTEN: Final = 60.0
"""Seconds without a failure after which an outage is over, although nobody has found the backend again."""


class OutageLog:
    """The outages of one backend. It may be told of them from any thread.

    Arguments:
        driver: The backend's.
    """

    def __init__(self, driver: BackendDriver) -> None:
        self._driver = driver
        self._now = driver.runtime.now
        self._guard = threading.Lock()
        self._since: float | None = None
        self._ended = self._said = self._failed = float("-inf")

    def failed(self, what: str, error: Exception) -> None:
        """Note that something could not be done, which is tried again."""
        with self._guard:
            now = self._now()
            if now - self._failed > FORGOTTEN:
                self._since = None
            self._failed = now
            if self._since is None:
                if now - self._ended < self._driver.timeout:  # that request began before the end of the last outage
                    return
                self._since, said = now, "is away, and what needs it tries on"
            elif now - self._said >= EVERY:
                said = f"is still away after {now - self._since:.0f} s"
            else:
                return
            self._said = now
        log.warning("the backend %s %s: %s: %s", self._driver.url, said, what, error)

    def worked(self) -> None:
        """Note that something was done that had failed before."""
        with self._guard:
            since, self._since = self._since, None
            if since is None:
                return
            self._ended = self._now()
        log.warning("the backend %s is back after %.2f s", self._driver.url, self._ended - since)
