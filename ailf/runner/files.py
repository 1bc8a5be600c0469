"""The Python files below a folder, to notice changes of them by polling."""

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["MOST_FILES", "changed", "snapshot"]

MOST_FILES = 10_000
"""The most files that are watched."""

SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
"""Folders that are not watched, beside hidden ones and virtual environments."""


def snapshot(root: Path) -> dict[Path, tuple[int, int]]:
    """Return the time of change and the size of each Python file below a folder."""
    found: dict[Path, tuple[int, int]] = {}
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders[:] = [each for each in folders if _is_watched(folder / each)]
        for path in (folder / each for each in files if each.endswith(".py")):
            try:
                status = path.stat()
            except OSError:  # it has just been removed
                continue
            found[path] = status.st_mtime_ns, status.st_size
            if len(found) >= MOST_FILES:
                return found
    return found


def _is_watched(folder: Path) -> bool:
    is_environment = (folder / "pyvenv.cfg").exists()
    return not folder.name.startswith(".") and folder.name not in SKIPPED and not is_environment


def changed(before: Mapping[Path, object], after: Mapping[Path, object]) -> list[Path]:
    """Return the paths that were changed, added or removed, sorted."""
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
