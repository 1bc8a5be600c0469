"""Scripts of folders that are no packages, imported by tests."""

import importlib.util
import sys
import types
from pathlib import Path


def imported(path: Path) -> types.ModuleType:
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # attrs looks a class's module up there
    spec.loader.exec_module(module)
    return module
