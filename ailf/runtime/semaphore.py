"""Lets one at a time through: those of one process who want the same thing from a backend."""

from collections import deque

from ailf.runtime.base import Event, Runtime

__all__ = ["Turnstile"]


class Turnstile:
    """Lets one at a time through, in the order of arrival."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._guard = runtime.guard()
        self._line: deque[Event] = deque()

    @property
    def busy(self) -> bool:
        """Whether somebody is inside."""
        return bool(self._line)

    async def enter(self, timeout: float) -> Event | None:
        """Return one's turn when it has come; None after so many seconds."""
        turn = self._runtime.event()
        with self._guard:
            self._line.append(turn)
            if self._line[0] is turn:
                turn.set()
        try:
            came = await turn.wait(None if timeout == float("inf") else timeout)
        except BaseException:
            self.leave(turn)
            raise
        if not came:
            self.leave(turn)
        return turn if came else None

    def leave(self, turn: Event) -> None:
        """Let the next one in."""
        with self._guard:
            self._line.remove(turn)
            if self._line:
                self._line[0].set()
