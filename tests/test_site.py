"""What the site is made of: pinned scripts that are there whole or not at all, and lessons for readers."""

import importlib.util
import io
import json
import tarfile
from types import ModuleType

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from mebqat_lite import datasets, paths

ROOT = paths.checkout()


def load(name: str) -> ModuleType:
    """A script of the site, which is no package: Python has a module of that name."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


assets, build, play = load("assets"), load("__main__"), load("play")


# ---------------------------------------------------------------- the scripts


@pytest.fixture
def pin(tmp_path, monkeypatch):
    """What is downloaded is one archive, ``a.tgz``; the pin of the script in it."""
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/a.js")
        member.size = len(b"draw()")
        archive.addfile(member, io.BytesIO(b"draw()"))
    monkeypatch.setattr(assets, "download", lambda package: (tmp_path / "a.tgz").read_bytes())
    integrity = assets.integrity((tmp_path / "a.tgz").read_bytes())
    return {"package": "a@1", "integrity": integrity, "files": {"a.js": "package/a.js"}}


def test_a_script_is_fetched_once(pin, tmp_path):
    assets.fetch("a", pin, tmp_path / "assets")
    assert (tmp_path / "assets" / "a.js").read_bytes() == b"draw()"
    (tmp_path / "a.tgz").unlink()
    assets.fetch("a", pin, tmp_path / "assets")  # it is there: no archive is needed


def test_another_archive_than_was_pinned_is_refused_and_leaves_nothing(pin, tmp_path):
    with pytest.raises(ValueError, match=r"a@1 has the integrity sha512-.* and assets\.json pins sha512-other"):
        assets.fetch("a", {**pin, "integrity": "sha512-other"}, tmp_path / "assets")
    assert not (tmp_path / "assets").exists()


def test_a_new_pin_fetches_anew(pin, tmp_path):
    assets.fetch("a", pin, tmp_path / "assets")
    (tmp_path / "a.tgz").write_bytes((tmp_path / "a.tgz").read_bytes() + b"\0")
    new = {**pin, "integrity": assets.integrity((tmp_path / "a.tgz").read_bytes())}
    assets.fetch("a", new, tmp_path / "assets")
    assert (tmp_path / "assets" / "a.integrity").read_text() == new["integrity"]


@pytest.mark.parametrize("npm", ["", "#!/bin/sh\necho no network >&2\nexit 1\n"])
def test_without_npm_or_a_network_one_message_says_what_to_do(npm, tmp_path, monkeypatch, capsys):
    if npm:
        (tmp_path / "npm").write_text(npm)
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert assets.main(tmp_path / "assets") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mathjax cannot be fetched: ") and line.endswith("make site-assets")
    assert ("no network" in line) == bool(npm)


def test_every_script_is_pinned_by_its_content():
    for pin in json.loads((ROOT / "site" / "assets.json").read_text()).values():
        assert len(pin["integrity"]) == len(assets.integrity(b"")) and pin["integrity"].startswith("sha512-")


# ---------------------------------------------------------------- the lessons


def cell(source: str = "", outputs=(), **metadata):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)


def output(data, **metadata):
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


def test_the_answer_to_a_guess_is_folded():
    hidden = cell(outputs=[output({"text/plain": "the answer"}), output({"text/plain": "4"})])
    hidden.metadata["jupyter"] = {"outputs_hidden": True}
    build.for_readers(hidden)
    assert "hide-output" in hidden.metadata.tags and [one.data["text/plain"] for one in hidden.outputs] == ["4"]
    shown = cell(outputs=[output({"text/plain": "4"})])
    build.for_readers(shown)
    assert "tags" not in shown.metadata and len(shown.outputs) == 1


def test_a_widget_says_how_it_is_run_and_a_picture_keeps_its_words():
    widget = cell(
        outputs=[output({build.WIDGET: {}, "text/plain": "Interactive: run it. The figure beneath is still."})]
    )
    build.for_readers(widget)
    assert widget.outputs[0].data == {"text/markdown": f"*Interactive: run it.* {build.RUN}."}
    picture = cell(outputs=[output({"image/png": "", "text/plain": ""}, **{"image/png": {"alt": "a line"}})])
    build.for_readers(picture)
    assert picture.metadata.mystnb.image.alt == "a line"


def test_a_question_gets_its_hints_behind_a_click():
    question = cell("lesson_01.fake_quantize")
    build.for_readers(question)
    text = question.outputs[-1].data["text/markdown"]
    assert text.count("<details><summary>Hint ") == text.count("</details>") >= 2 and "open" not in text.split(">")[0]


def test_text_of_a_hint_is_no_html():
    assert "<p>a &lt; b</p>" in build.hints(("a < b",))


# ---------------------------------------------------------------- the front page


def test_networks_are_written_once_until_something_of_which_they_are_made_changes(tmp_path, monkeypatch):
    made = []
    for name in ("paintings", "glyphs", "learners"):
        monkeypatch.setattr(play, name, lambda folder, name=name: made.append(name) or {})
    for _ in range(2):
        play.write(tmp_path / "play")
    assert made == ["paintings", "glyphs", "learners"]
    assert json.loads((tmp_path / "play" / "play.json").read_text()) == {"paint": {}, "glyphs": {}, "learn": {}}
    monkeypatch.setattr(play, "_made_of", lambda: "of another file")
    play.write(tmp_path / "play")
    assert len(made) == 6


def test_the_glyphs_of_the_front_page_are_those_of_classes_for_testing(tmp_path):
    about, split = play.glyphs(tmp_path), datasets.load("glyphs").test
    with Image.open(tmp_path / "glyphs.png") as sheet:
        pixels = torch.from_numpy(np.array(sheet))
    assert about == {"classes": len(split.labels.unique()), "images": 4, "side": 28}
    assert pixels.shape == (28 * about["classes"], 28 * 4)
    last = split.images[split.labels == split.labels.max()][3, 0]
    assert torch.equal(pixels[-28:, -28:], last)
