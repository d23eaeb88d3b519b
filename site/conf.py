"""How Sphinx builds the site out of the pages that ``site/__main__.py`` collects."""

import html
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import mebqat_lite

HERE = Path(__file__).parent
ASSETS = HERE / "assets"  # what `make site-assets` fetched

project = "mebqat_lite"
author = copyright = "The mebqat_lite authors"
version = release = mebqat_lite.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]  # the front page and others include parts of it

# ---------------------------------------------------------------- pages and lessons
nb_execution_mode = "off"  # the outputs are those that are stored
nb_render_markdown_format = "myst"  # the questions of exercises have formulas
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]  # its still figure instead
nb_ipywidgets_js: dict[str, Any] = {}
nb_code_prompt_show = "Reveal the answer"
nb_code_prompt_hide = "Hide the answer"
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
mathjax_path = "mathjax.js"

# ---------------------------------------------------------------- the reference
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88
nitpick_ignore_regex = [
    (r"py:.*", r"(?!mebqat_lite\.).*"),  # PyTorch's and Python's names: no page here has them
    (r"py:class", r"mebqat_lite\.models\.Build"),  # a type variable
]

# ---------------------------------------------------------------- the look
html_theme = "sphinx_book_theme"
html_title = "mebqat_lite"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_static_path = ["static", *([str(ASSETS)] if ASSETS.is_dir() else [])]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_show_sourcelink = False
html_theme_options = {"use_fullscreen_button": False, "show_toc_level": 2, "navbar_persistent": []}


class Mermaid(SphinxDirective):
    """A diagram, which Mermaid draws; without it the text stays."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The text of the diagram, as Mermaid looks for it."""
        text, up = html.escape("\n".join(self.content)), "../" * self.env.docname.count("/")
        script = f'<script src="{up}_static/mermaid.js" defer></script>' if (ASSETS / "mermaid.js").exists() else ""
        return [nodes.raw("", f'<pre class="mermaid">{text}</pre>{script}', format="html")]


def find_by_end(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    """Where a name without its front leads, such as ``switching.at`` in a docstring, if just one thing ends in it."""
    domain, target = env.domains.python_domain, node["reftarget"].removeprefix("mq.")
    if node.get("refdomain") != "py" or len(domain.find_obj(env, "", "", target, None, 1)) != 1:
        return content if node.get("reftype") == "obj" else None  # a docstring's code, which needs no place
    node["refspecific"] = True
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def play(app: Sphinx, page: str, *_: Any) -> None:
    """Let the front page load its script early, while the rest of the page is still being read."""
    if page == "index":
        app.add_css_file("play/play.css")
        app.add_css_file("play/drawing.css")
        app.add_js_file("play/play.js", priority=0, type="module", **{"async": "async"})


def setup(app: Sphinx) -> None:
    """What Sphinx has no setting for."""
    app.connect("html-page-context", play)
    app.add_directive("mermaid", Mermaid)
    app.connect("missing-reference", find_by_end)
