"""The documentation site: ``make docs`` builds it from the pages of this folder and from docstrings.

The pages are read on GitHub too, so directives and all else that only the site understands stand in comments that begin
with ``<!-- site``.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import ailf

sys.path.append(str(Path(__file__).parent))  # for our extension `llms`

# --- pages -------------------------------------------------------------------------------------------------------

project = "ailf"
release = ailf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "llms"]
myst_heading_anchors = 4  # the anchors that GitHub gives to headings

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"ailf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
if repository := os.environ.get("GITHUB_REPOSITORY"):  # a workflow builds the site: each page links to its source
    html_theme_options |= {
        "source_repository": f"{os.environ['GITHUB_SERVER_URL']}/{repository}/",
        "source_branch": "main",
        "source_directory": "docs/",
    }

copybutton_exclude = ".linenos, .gp, .go"  # copy commands, not prompts and what commands write

SITE_ONLY = re.compile(r"^<!-- site\n(.*?)^-->$", re.DOTALL | re.MULTILINE)
ABOVE = re.compile(r"\]\((?:\.\./)+(README|CHANGELOG)\.md")
PAGES = {"README": "overview", "CHANGELOG": "changelog"}


def for_the_site(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Uncomment what only the site understands, and link to the pages that have the files above this folder."""
    text = SITE_ONLY.sub(r"\1", source[0])
    source[0] = ABOVE.sub(lambda link: f"](/{PAGES[link[1]]}.md", text)


# --- docstrings --------------------------------------------------------------------------------------------------

default_role = "py:obj"
autodoc_default_options = {"members": True, "inherited-members": "dict,ABC,BaseException,Exception,OSError"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
toc_object_entries_show_parents = "hide"

MODULES = (
    "ailf",
    "ailf.app",
    "ailf.testing",
    "ailf.driver",
    "ailf.instruments",
    "ailf.limits",
    "ailf.runtime",
    "ailf.llm",
    "ailf.bridges.httpx",
    "ailf.bridges.langchain",
    "ailf.bridges.asgi",
    "ailf.bridges.quota",
    "ailf.otel",
    "ailf.tracing",
    "ailf.prometheus",
    "ailf_redis",
    "ailf_memory",
)
"""The public modules. A name that several of them have is documented as that of the first."""


def homes() -> Iterator[tuple[str, str]]:
    """Yield where each public class or function is defined, and its public name."""
    for module in map(importlib.import_module, reversed(MODULES)):
        for name in module.__all__:
            public = getattr(module, name)
            if inspect.isclass(public) or inspect.isfunction(public):
                yield f"{public.__module__}.{public.__qualname__}", f"{module.__name__}.{name}"


PUBLIC = dict(homes())
DATA = {
    name: text
    for module in [each for each in sys.modules if each.partition(".")[0] in {"ailf", "ailf_redis", "ailf_memory"}]
    for (owner, name), text in ModuleAnalyzer.for_module(module).find_attr_docs().items()
    if not owner and name.isidentifier()
}
nitpick_ignore = [  # the types of arguments that only ailf passes
    ("py:class", "ailf.driver.backend.Revocable"),
    ("py:class", "ailf.providers.answers.AnswerReader"),
    ("py:class", "ailf.pubsub.message.Answer"),
    ("py:class", "ailf.runtime.clock.Follower"),
    ("py:class", "ailf.testing.faulty_driver.FaultyListener"),
]
ENGINE = re.compile(r"(\*, )?engine: \S*Engine \| None = None(, )?")
HANDED_OUT = re.compile(r"\b\w*Flow\b|DeliveryState|page_size|Declarations")


def show_signature(
    _app: Sphinx, what: str, _name: str, thing: object, _options: object, signature: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Leave out what users don't pass: the engine, and all arguments of a class whose objects they get from another."""
    if what == "class" and signature is not None:
        signature = "" if HANDED_OUT.search(signature) else ENGINE.sub("", signature).replace(", )", ")")
        signature = signature.replace("=<factory>", " = ...")  # of msgspec
        signature = re.sub(r"attr_dict\['(\w+)'\]\.default", lambda found: _default(thing, found[1]), signature)
    return signature, result


def _default(owner: Any, name: str) -> str:
    """Return the default of a field of an attrs class."""
    default = getattr(attrs.fields(owner), name).default
    return "..." if isinstance(default, attrs.Factory) else repr(default)  # type: ignore[arg-type]


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Resolve a reference that has the name of a definition, or no module; leave names that we don't document as text.

    Names of other libraries have no target, because a build needs no network. A name in a docstring's backticks may be
    that of an argument. Any other name of ours that has no entry is a warning.
    """
    target = node["reftarget"]
    if text.astext() == target:
        text = nodes.inline(text=target.rpartition(".")[2])
    for name in (PUBLIC.get(target, ""), f"ailf.{target}"):
        found = env.domains.python_domain.resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], name, node, text
        )
        if found is not None:
            return found
    is_ours = target.startswith("ailf")
    module, _, name = target.rpartition(".")
    is_type_variable = isinstance(getattr(sys.modules.get(module), name, None), TypeVar)
    return text if node["reftype"] == "obj" or not is_ours or is_type_variable else None


TEXTS: dict[str, list[str]] = {}
"""The docstrings of properties and values that napoleon is about to see."""


def keep_text(_app: Sphinx, what: str, name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Keep the docstring of a property or value; that of a value is the text below its definition."""
    if what == "data":
        lines[:] = DATA.get(name.rpartition(".")[2], lines)
    if what in {"property", "attribute", "data"}:
        TEXTS[name] = list(lines)


def restore_text(app: Sphinx, _what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Read a kept docstring as that of a method, because napoleon takes a property's text up to a colon as its type."""
    if name in TEXTS:
        lines[:] = GoogleDocstring(TEXTS.pop(name), app.config, app, "method", name, thing, options).lines()


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", for_the_site)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("autodoc-process-docstring", keep_text, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", restore_text, priority=900)
