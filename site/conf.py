"""How Sphinx makes pages of the notebooks. `make site` brings this folder and the notebooks together.

Everything a page needs lies beside it: formulas become MathML, which browsers typeset themselves, in a font that is
copied along, so neither a script nor a network is needed.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

project = "QLoRA Lab"
html_title = project
copyright = "the QLoRA Lab contributors, Apache-2.0"
extensions = ["myst_nb"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
html_static_path = ["static", str(Path(find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf")]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"


def prepare(app, document: str, source: list[str]) -> None:
    """Leave out the cell that installs the package, and say the figures' alternative texts where MyST-NB reads them."""
    if Path(app.env.doc2path(document)).suffix != ".ipynb":
        return
    book = json.loads(source[0])
    book["cells"] = [cell for cell in book["cells"] if "bootstrap" not in cell["metadata"].get("tags", [])]
    for cell in book["cells"]:
        pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        for picture in pictures[:1]:  # one text a cell; a test sees to it that there is no second picture
            told = picture["metadata"]["image/png"]
            width = {"width": f"{told['width']}px"} if "width" in told else {}
            cell["metadata"]["mystnb"] = {"image": {"alt": told["alt"], **width}}
    source[0] = json.dumps(book)


def enlarge(app, page: str, template: str, context: dict, doctree) -> None:
    """Make each figure a link to itself over the whole page, as large as it was drawn; no script is needed for it."""
    seen = 0

    def linked(found: re.Match) -> str:
        nonlocal seen
        seen += 1
        name, source = f"figure-{seen}", re.search(r'src="([^"]+)"', found[0])[1]
        large = f'<img class="large" alt="" loading="lazy" src="{source}"/>'
        return (
            f'<a class="enlarge" id="{name}" href="#{name}-large" aria-label="enlarge the figure">{found[0]}</a>'
            f'<a class="enlarged" id="{name}-large" href="#{name}" aria-label="back to the page">{large}</a>'
        )

    if "body" in context:
        context["body"] = re.sub(r"<img [^>]*_images/[^>]*>", linked, context["body"])


def inline(translator, node) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(translator, node) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    app.connect("source-read", prepare)
    app.connect("html-page-context", enlarge)
