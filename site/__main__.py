"""Build the site: collect its pages from where they are, and let Sphinx make ``build/site`` of them.

``python site FOLDER`` makes ``FOLDER/site`` instead. ``conf.py`` has the settings.
"""

from __future__ import annotations

import html
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from mebqat_lite.course.classroom.release import release

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAD = ROOT / "mebqat_lite" / "course" / "widgets"  # the front page draws with the pad of lesson 06
PAGES = ("*.md", "CITATION.cff", "data/demo.png", "benchmarks/*.md", "benchmarks/*.png", "notebooks/*.md")
WIDGET = "application/vnd.jupyter.widget-view+json"
FOLDER = re.compile(r"\]\(\.\./mebqat_lite/(\w+)/\)")  # a link to code, whose page is in the reference
BENEATH = " The figure beneath"  # it is not beneath every widget
RUN = "[How to run this notebook](../learn.md#run-a-lesson)"


def collect(pages: Path) -> None:
    """Copy all pages into a new folder, where they lie to each other as in the repository."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(HERE, pages, ignore=shutil.ignore_patterns("*.py", "*.json", "assets", "__pycache__"))
    for path in (path for pattern in PAGES for path in ROOT.glob(pattern)):
        copy = pages / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for path in ROOT.glob("notebooks/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.source = FOLDER.sub(r"](../api/\1.rst)", cell.source)
            for_readers(cell)
        nbformat.write(notebook, pages / "notebooks" / path.name)
    release(ROOT / "notebooks" / "assignments" / "source", pages / "notebooks" / "assignments")
    shutil.copy(ROOT / "notebooks" / "assignments" / "INSTRUCTOR.md", pages / "notebooks" / "assignments")
    (pages / "api").mkdir()
    reference(pages / "api")


def for_readers(cell: NotebookNode) -> None:
    """Fold the answer to a guess, say how a widget is run, and give a question its hints and a picture its words."""
    hidden = cell.metadata.get("jupyter", {}).get("outputs_hidden")
    if hidden:
        cell.metadata.setdefault("tags", []).append("hide-output")
        cell.outputs = cell.outputs[1:]  # a line for JupyterLab, which says what is hidden
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if WIDGET in data:
            output.data = NotebookNode({"text/markdown": f"*{data['text/plain'].partition(BENEATH)[0]}* {RUN}."})
        if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
    if name := re.fullmatch(r"(lesson_\d\d)\.(\w+)", cell.source.strip()):
        lesson = importlib.import_module(f"mebqat_lite.course.exercises.{name[1]}")
        cell.outputs.append(
            nbformat.v4.new_output("display_data", {"text/markdown": hints(getattr(lesson, name[2]).hints)})
        )


def hints(texts: tuple[str, ...]) -> str:
    """The hints of an exercise, each behind a click."""
    fold = "<details><summary>Hint {} of {}</summary><p>{}</p></details>"
    return "".join(fold.format(n, len(texts), html.escape(text)) for n, text in enumerate(texts, start=1))


def reference(pages: Path) -> None:
    """Write a page for each room of the package; autodoc fills it with the docstrings of the room's modules."""
    package = ROOT / "mebqat_lite"
    for room in sorted({path.relative_to(package).parts[0] for path in package.rglob("*.py")}):
        if room.startswith("_"):
            continue
        lines = [name := room.removesuffix(".py"), "=" * len(name), ""]
        for path in sorted((package / room).rglob("*.py")) or [package / room]:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not path.name.startswith("lesson_"):  # an exercise stands in its lesson
                title = module.partition(".")[2]
                lines += [] if title == name else [title, "-" * len(title), ""]
                lines += [f".. automodule:: {module}", ""]
        (pages / f"{name}.rst").write_text("\n".join(lines), encoding="utf-8")


def main(build: Path) -> int:
    """Collect the pages and make ``build/site`` of them, anew and with warnings as errors; the status of Sphinx.

    Another process writes the networks of the front page meanwhile.
    """
    from sphinx.cmd.build import main as sphinx

    networks, folder = ROOT / "build" / "site-play", build / "site" / "_static" / "play"
    writing = subprocess.Popen([sys.executable, str(HERE / "play.py"), str(networks)])
    collect(build / "site-pages")
    shutil.rmtree(build / "site", ignore_errors=True)
    words = ["-q", "-n", "-W", "--keep-going", "-c", str(HERE), "-d", str(build / "site-doctrees")]
    status = sphinx([*words, str(build / "site-pages"), str(build / "site")])
    status = writing.wait() or status
    if not status:
        shutil.copytree(networks, folder, ignore=shutil.ignore_patterns("stamp"), dirs_exist_ok=True)
        for name in ("drawing.js", "drawing.css"):
            shutil.copy(PAD / name, folder)
        print(f"The site is built: python -m http.server -d {build / 'site'}")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if sys.argv[1:] else ROOT / "build")))
