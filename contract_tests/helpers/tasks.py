"""Tasks that are cancelled."""

import asyncio
from typing import Any

__all__ = ["cancel"]


async def cancel(task: "asyncio.Future[Any]", *, at_each_step: bool) -> None:
    """Cancel a task once, or at each step of the event loop until it has ended, as scopes of anyio do."""
    task.cancel()
    while at_each_step and not task.done():
        await asyncio.sleep(0)
        task.cancel()
