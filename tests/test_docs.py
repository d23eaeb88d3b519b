"""What README and CONTRIBUTING say is run, and their numbers are those of the shipped results."""

import functools
import json
import re

import pytest

import mebqat_lite
from mebqat_lite import METHODS, datasets, load_packed, models, paths, quantize, quantizers, save_packed
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import agreement
from mebqat_lite.experiments import demo
from mebqat_lite.train import fit

ROOT = paths.checkout()


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_the_table_of_the_readme_is_the_shipped_result():
    outcome = json.loads((ROOT / "data" / "demo.json").read_text())
    [block] = [text for text in blocks("README.md", "text") if "MEBQAT" in text]
    assert block.strip() == demo.findings(outcome).strip()


def test_the_example_of_the_readme_runs(capsys, monkeypatch):
    """With 2 steps instead of 300."""
    monkeypatch.setattr(mebqat_lite, "fit", functools.partial(fit, steps=2))
    [block] = blocks("README.md", "python")
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "3 of 5 layers quantized" in printed
    assert "75 rows" in printed


@pytest.fixture
def registries():
    """Registries as they were, after a page has added to them."""
    before = dict(quantizers.QUANTIZERS), dict(METHODS)
    yield
    for registry, content in zip((quantizers.QUANTIZERS, METHODS), before, strict=True):
        registry.clear()
        registry.update(content)


def test_what_contributing_adds_trains_and_is_packed(registries, tmp_path):
    space: dict = {}
    for block in blocks("CONTRIBUTING.md", "python"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), space)
    data = datasets.digits()
    model = quantize(models.digit_net(widths=(4, 4, 4, 4)), "minmax", sample=data.train.images[:16])
    run = fit(model, data, "three_widths", steps=2, progress=False)
    assert run.costs.backprops == 2 * 3
    assert not save_packed(model, tmp_path / "mine.safetensors", "W4A4", calibration=data.train.images)
    assert load_packed(tmp_path / "mine.safetensors")[0](data.test.images[:3]).shape == (3, 10)
    export_onnx(model, tmp_path / "mine.onnx", "W4A4", (1, 8, 8))
    assert agreement(tmp_path / "mine.onnx", model, data.test.images, "W4A4").share == 100


def test_the_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "benchmarks/README.md",
        "data/README.md",
        "notebooks/assignments/INSTRUCTOR.md",
    ],
)
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target
