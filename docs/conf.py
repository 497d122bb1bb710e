"""The documentation site: Sphinx, as most of Python's network projects use it, on the Markdown pages beside this file.

``make docs`` builds it, with every warning an error. It needs no network: nothing is fetched, not even other projects'
object lists.
"""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "pyflannel"
author = "the pyflannel authors"
release = version = str(runpy.run_path(str(ROOT / "core" / "pyflannel" / "version.py"))["VERSION"])

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
root_doc = "index"
html_theme = "furo"
html_title = f"pyflannel {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True


suppress_warnings = ["misc.highlighting_failure"]  # policies and logs are in languages that lexers half know

LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def setup(app: Sphinx) -> None:
    """Pages are written to be read in the source tree too; what the site needs beside that is added here."""
    app.connect("source-read", read)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Links out of the site lose their link; the index's lists of pages become the navigation as well."""
    place = Path(app.env.doc2path(page)).parent
    source[0] = LINK.sub(lambda link: link[0] if inside(place, link[2]) else link[1], source[0])
    if page == app.config.root_doc:
        source[0] += "".join(navigation(source[0]))


def inside(place: Path, target: str) -> bool:
    """Whether a link from ``place`` leads to the site or to the network, not elsewhere in the source tree."""
    path = target.partition("#")[0]
    return "://" in target or not path or (place / path).resolve().is_relative_to(ROOT / "docs")


def navigation(index: str) -> Iterator[str]:
    """A toctree for each section of the index."""
    for section in index.split("\n## ")[1:]:
        caption, _, text = section.partition("\n")
        pages = "\n".join(target.removesuffix(".md") for _, target in LINK.findall(text) if target.endswith(".md"))
        yield f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"
