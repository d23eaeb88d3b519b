"""The site is whole: no warning, no dead link, no request to elsewhere; nothing is given away; it is found by words."""

import ast
import html
import inspect
import re
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest

from benchmarks.lab import SECONDS
from mebqat_lite import paths
from mebqat_lite.course.exercises import Exercise

pytestmark = pytest.mark.browser
ROOT = paths.checkout()
HAS_SCRIPTS = (ROOT / "site" / "assets" / "mathjax.js").exists()  # `make site-assets` needs a network
NOISE = () if HAS_SCRIPTS else (r"404 \(File not found\)",)  # of the script that is not there
LESSON = "notebooks/01_quantization.html"
KINDS = ["index", "learn", "notebooks/01_quantization", "notebooks/howto_your_own_model", "benchmarks/README"]
KINDS += ["notebooks/assignments/01_quantization/01_quantization", "ARCHITECTURE", "api", "api/quantizers", "search"]


# ---------------------------------------------------------------- the files


class Page(HTMLParser):
    """The links and the places of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.append((tag, value))


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    found = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {name: Page(path.read_text("utf-8")) for name, path in found.items() if not name.startswith("_static/")}


def test_every_page_of_the_course_is_there(pages):
    folders = ("notebooks/*.ipynb", "notebooks/*.md", "benchmarks/*.md", "notebooks/assignments/*.md")
    wanted = {path.relative_to(ROOT).with_suffix(".html").as_posix() for name in folders for path in ROOT.glob(name)}
    masters = ROOT.glob("notebooks/assignments/source/*/*.ipynb")
    wanted |= {f"notebooks/assignments/{path.stem}/{path.stem}.html" for path in masters}
    rooms = {path.stem for path in (ROOT / "mebqat_lite").iterdir() if not path.name.startswith(("_", "."))}
    wanted |= {f"api/{room}.html" for room in rooms}
    wanted |= {"index.html", "ARCHITECTURE.html", "CONTRIBUTING.html", "search.html"}
    assert len(rooms) > 20 and wanted <= set(pages), wanted - set(pages)


def test_every_link_inside_leads_to_a_file_and_a_place_in_it(site, pages):
    dead, count = [], 0
    for name, page in pages.items():
        for _, link in page.links:
            parts = urlsplit(urljoin(f"http://site/{name}", link))
            if parts.netloc != "site" or parts.scheme != "http":
                continue
            count += 1
            target = unquote(parts.path).lstrip("/") or "index.html"
            place = unquote(parts.fragment)
            here = target not in pages or not place or place in pages[target].places
            if not (site / target).is_file() or not here:
                dead.append((name, link))
    known = {"mathjax.js"} if not HAS_SCRIPTS else set()
    assert count > 1000
    assert [(name, link) for name, link in dead if Path(urlsplit(link).path).name not in known] == []


def test_every_table_is_drawn(site):
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    text = {path.name: re.sub(r"<pre.*?</pre>|<[^>]*>", "", path.read_text("utf-8"), flags=re.DOTALL) for path in pages}
    assert [name for name, words in text.items() if re.search(r"^\| .* \|$", words, re.MULTILINE)] == []


def test_nothing_is_loaded_from_elsewhere(pages):
    loading = [(name, link) for name, page in pages.items() for tag, link in page.links if tag not in ("a", "form")]
    assert len(loading) > 500
    assert [(name, link) for name, link in loading if urlsplit(link).netloc] == []


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def written(site: Path) -> str:
    """All text of the site, without tags and white space: also the notebooks that can be downloaded."""
    texts = [re.sub(r"<[^>]*>", "", path.read_text("utf-8")) for path in site.rglob("*.html")]
    for path in site.rglob("*.ipynb"):
        texts += [cell.source for cell in nbformat.read(path, as_version=4).cells]
    return squeezed(html.unescape("".join(texts)))


def body(source: str) -> str:
    """The lines of a function after its docstring."""
    [function] = ast.parse(source).body
    first = function.body[ast.get_docstring(function) is not None]
    return "\n".join(source.splitlines()[first.lineno - 1 :])


def solutions() -> dict[str, str]:
    """What the lines of each answer say: of the exercises, and of the assignments with their hidden tests."""
    found = {}
    for path in (ROOT / "mebqat_lite" / "course" / "exercises").glob("lesson_*.py"):
        for name, value in vars(import_module(f"mebqat_lite.course.exercises.{path.stem}")).items():
            if isinstance(value, Exercise):
                found[f"{path.stem}.{name}"] = body(inspect.getsource(value.reference))
    for path in ROOT.glob("notebooks/assignments/source/*/*.ipynb"):
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        hidden = re.findall(r"### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)### END", text, re.DOTALL)
        found |= {f"{path.stem} {n}": block for n, block in enumerate(hidden)}
    return found


def test_no_solution_and_no_hidden_test_is_on_the_site(site):
    text, answers = written(site), solutions()
    assert squeezed("def fake_quantize(x, step, low, high): return ...") in text  # a stub is
    assert len(answers) > 40
    assert [name for name, answer in answers.items() if squeezed(answer) in text] == []
    assert "###BEGINSOLUTION" not in text and "###BEGINHIDDEN" not in text


# ---------------------------------------------------------------- in the browser


@pytest.fixture
def visited(page, site_address):
    """A page whose network ends at the server of the site, and what it asked for in vain."""
    vain: list[str] = []

    def answer(route):
        if route.request.url.startswith(site_address):
            route.continue_()
        else:
            vain.append(route.request.url)
            route.abort()

    page.route("**/*", answer)
    page.on("response", lambda response: vain.append(response.url) if response.status >= 400 else None)
    return page, vain


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_asks_nobody_else_and_fits_a_phone(visited, site_address, kind):
    page, vain = visited
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"{site_address}{kind}.html", wait_until="networkidle")
    assert [url for url in vain if HAS_SCRIPTS or not url.endswith("mathjax.js")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    if HAS_SCRIPTS and kind == "notebooks/01_quantization":
        page.wait_for_selector("mjx-container svg")
    if HAS_SCRIPTS and kind == "ARCHITECTURE":
        page.wait_for_selector("pre.mermaid svg")


def test_answers_and_hints_are_behind_a_click_and_a_widget_says_how_it_runs(visited, site_address):
    page, _ = visited
    page.goto(site_address + LESSON)
    answer = page.get_by_text("It is about 4 times smaller.")
    assert not answer.is_visible()
    page.locator("details", has=answer).locator("summary").click()
    answer.wait_for(state="visible")
    hint = page.locator("details", has_text="Hint 1 of").first
    assert page.get_by_text("Exercise 1.1: Fake quantization").is_visible() and not hint.locator("p").is_visible()
    hint.locator("summary").click()
    hint.locator("p").wait_for(state="visible")
    widget = page.get_by_text("Interactive: run the notebook to move it.").first
    assert widget.is_visible()
    page.get_by_role("link", name="How to run this notebook").first.click()
    page.locator("article").get_by_text("make lab").first.wait_for(state="visible")


def test_a_word_finds_its_lesson(visited, site_address):
    page, _ = visited
    page.goto(f"{site_address}search.html")
    page.locator("main input[name=q], article input[name=q]").first.fill("prototypes")
    page.keyboard.press("Enter")
    lesson = page.locator("#search-results a", has_text="05 · Few-shot learning").first
    lesson.wait_for(state="visible", timeout=20 * SECONDS)
    lesson.click()
    assert page.url.startswith(f"{site_address}notebooks/05_few_shot_learning.html")
