"""Fixtures for tests that install packages with entry points."""

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pluggy
import pytest

from ailf import hookspecs, registry

InstallPackage = Callable[..., None]


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test a registry without loaded plugins."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    monkeypatch.setattr(registry, "_manager", manager)
    monkeypatch.setattr(registry, "_broken", set())


@pytest.fixture
def install_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstallPackage:
    """Install a distribution of one module, which is its plugin in a group of entry points, as pip does."""
    monkeypatch.syspath_prepend(tmp_path)

    def installed(group: str, name: str, source: str, *, package: str, module: str, version: str = "1.0") -> None:
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(dedent(source))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return installed
