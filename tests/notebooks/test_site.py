"""The pages that `make site` left in build/site: figures with their texts, typeset formulas, nothing from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").exists(), reason="`make site` has not been run, so its pages are not there: NOT RUN"
)


class Page(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.tags = path, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def count(self, tag: str, **wanted) -> int:
        return sum(t == tag and wanted.items() <= a.items() for t, a in self.tags)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def pair(request):
    """A notebook and its page."""
    return nbformat.read(request.param, as_version=4), Page(SITE / "notebooks" / f"{request.param.stem}.html")


def text_of(book) -> str:
    """The markdown of a notebook without its code."""
    text = "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def test_every_formula_is_typeset(pair):
    book, page = pair
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+?\$", text_of(book), flags=re.DOTALL)
    assert page.count("math") == len(formulas)
    assert page.count("math", display="block") == sum(formula.startswith("$$") for formula in formulas)
    html = page.path.read_text(encoding="utf-8")
    assert "merror" not in html and "$$" not in html


def test_every_figure_is_there_with_its_text(pair):
    book, page = pair
    texts = []
    for cell in book.cells:
        pictures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        assert len(pictures) <= 1  # the pages take one text a cell
        texts += [picture.metadata["image/png"]["alt"] for picture in pictures]
    pictures = [a for tag, a in page.tags if tag == "img" and "_images" in a["src"]]
    figures = [a for a in pictures if a.get("class") != "large"]
    assert [figure["alt"] for figure in figures] == texts
    # each opens enlarged, and leads back
    assert [a["src"] for a in pictures if a.get("class") == "large"] == [figure["src"] for figure in figures]
    links = {a["href"]: a["id"] for tag, a in page.tags if tag == "a" and a.get("class") in ("enlarge", "enlarged")}
    assert len(links) == 2 * len(figures) and all(links[f"#{place}"] == target[1:] for target, place in links.items())
    assert all((page.path.parent / figure["src"]).is_file() for figure in figures)


def test_hints_and_solutions_are_collapsed(pair):
    book, page = pair
    assert page.count("details") == page.count("summary") == text_of(book).count("<details>")
    assert page.count("details", open=None) == 0


def test_nothing_comes_from_elsewhere(pair):
    _, page = pair
    for tag, attributes in page.tags:
        source = attributes.get("src") or (attributes.get("href") if tag == "link" else None) or ""
        assert not re.match(r"(https?:)?//", source), (tag, source)


def test_links_between_pages_lead_somewhere(pair):
    _, page = pair
    for tag, attributes in page.tags:
        target = unquote(attributes.get("href") or "").partition("#")[0] if tag == "a" else ""
        if target and not target.startswith(("https://", "http://")):
            assert (page.path.parent / target).exists(), target
            assert not target.endswith(".ipynb")
