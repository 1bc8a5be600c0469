"""The Python blocks of the docs, and the examples in docstrings, pass ``mypy --strict`` and pyright.

The blocks of a page are one module, in which each line has its number in the page. So is the example of a docstring.
`tests.support.pages` says how a block is marked that shows an error on purpose.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import docstrings
from tests.support.docstrings import WITH_EXAMPLES, examples_of
from tests.support.pages import PAGES, ROOT, module_of, name_of

# A later block of a page may give a name a new meaning: `main`, `handle`, `stream`.
# The libraries that are skipped take longer than all the rest; pyright reads them.
MYPY = f"""
[mypy]
strict = true
python_version = 3.11
mypy_path = {ROOT}
allow_redefinition = true
disable_error_code = no-redef
[mypy-ailf.*,ailf_redis.*,ailf_memory.*]
follow_imports = silent
[mypy-anthropic.*,fakeredis.*,httpx.*,httpx2.*,openai.*,opentelemetry.*,prometheus_client.*,redis.*]
follow_imports = skip
"""
PYRIGHT = {
    "include": ["pages"],
    "extraPaths": [str(ROOT)],
    "pythonVersion": "3.11",
    "typeCheckingMode": "standard",
    "reportRedeclaration": False,
    "reportUnusedExpression": False,  # a doctest shows its value
}


def mypy(folder: Path, cache: Path) -> list[str]:
    """Return what mypy says of the modules in a folder, as lines ``module:line: message``."""
    (folder / "mypy.ini").write_text(MYPY)
    options = ["--config-file=mypy.ini", f"--cache-dir={cache}", "--no-error-summary", "--no-color-output"]
    done = checker(folder, "mypy", *options, "pages")
    return [line.removeprefix("pages/") for line in (done.stdout + done.stderr).splitlines()]


def pyright(folder: Path, cache: Path) -> list[str]:
    """Return what pyright says of the modules in a folder, as `mypy` does; it has no cache."""
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    done = checker(folder, "pyright", "--pythonpath", sys.executable, "--outputjson")
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except ValueError:
        raise AssertionError(f"pyright failed:\n{done.stdout}\n{done.stderr}") from None
    return [
        f"{Path(each['file']).name}:{each['range']['start']['line'] + 1}: "
        f"{' '.join(each['message'].split())} [{each.get('rule')}]"
        for each in found
    ]


def checker(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a type checker in a folder, and in a process of its own: it would leave much memory behind."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


WRONG = """# A page with errors

```python
number: int = "text"
```

<!-- not typed: the type is wrong on purpose -->
```python
number: int = "text"
```

```python
async def main():
    await main()
```
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("checks", "lines"), [(mypy, {4, 13, 14}), (pyright, {4})], ids=["mypy", "pyright"])
def test_the_blocks_are_typed(
    checks: Callable[[Path, Path], list[str]], lines: set[int], tmp_path: Path, cache: pytest.Cache
) -> None:
    """No page and no docstring has an error of types; those of a page that is wrong are found, with their lines."""
    wrong = tmp_path / "wrong.md"
    wrong.write_text(WRONG)
    (tmp_path / "pages").mkdir()
    modules = {}
    sources = [(page, module_of(page)) for page in (*PAGES, wrong) if "```python" in page.read_text()]
    sources += [(file, docstrings.module_of(test)) for file in WITH_EXAMPLES for test in examples_of(file)]
    for number, (path, source) in enumerate(sources):
        module = re.sub(r"\W", "_", f"{name_of(path)}_{number}") + ".py"
        modules[module] = name_of(path)
        (tmp_path / "pages" / module).write_text(source)
    said = []
    for line in checks(tmp_path, cache.mkdir("mypy-docs")):
        module, colon, rest = line.partition(":")
        said.append(modules.get(module, module) + colon + rest)
    expected = [each for each in said if each.startswith("wrong.md:")]
    found = "\n".join(each for each in said if each not in expected)
    if found:
        pytest.fail(f"{checks.__name__} says of the blocks and examples:\n{found}", pytrace=False)
    assert {int(each.split(":")[1]) for each in expected} == lines
