"""The front page of the site: what it computes in the browser is what PyTorch computes, and a reader can move it."""

import re

import numpy as np
import pytest
import torch

from benchmarks.lab import SECONDS
from mebqat_lite import datasets, paths
from mebqat_lite.course.widgets.drawing import render
from mebqat_lite.course.widgets.new_classes import CALIBRATION, Embedded, shipped_networks
from mebqat_lite.deploy.codes import weight_codes
from mebqat_lite.deploy.onnx_run import answers
from mebqat_lite.experiments.demo import PAINTERS
from mebqat_lite.experiments.painting import paint
from mebqat_lite.learners import prototype_logits
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import at, quantized_layers

HAS_RUNTIME = (paths.checkout() / "site" / "assets" / "ort.wasm.bundle.min.mjs").exists()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not HAS_RUNTIME, reason="ONNX Runtime is not there: make site-assets"),
]
READY = "document.documentElement.dataset.play === 'ready'"
# Run a network at a pair, as the page does.
RUN = """async ([file, values, shape, pair]) => {
  const { Networks, bitsOf } = await import("./_static/play/networks.js");
  window.networks ??= new Networks();
  const url = await networks.load(file);
  return Array.from(await networks.run(url, new Float32Array(values), shape, bitsOf(pair)));
}"""
PIXELS = "canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"


@pytest.fixture
def front(page, site_address):
    """The front page, when its networks have painted and answered."""
    page.goto(f"{site_address}index.html?seed=3")
    page.wait_for_function(READY, timeout=60 * SECONDS)
    return page


def painted(page, number: int, pair: str) -> np.ndarray:
    """What the canvas of a network shows of a pair, when it does, (64, 64, 3) bytes."""
    canvas = page.locator(".play-painting canvas").nth(number)
    page.wait_for_function(
        "([number, pair]) => document.querySelectorAll('.play-painting canvas')[number].dataset.pair === pair",
        arg=[number, pair],
    )
    return np.array(canvas.evaluate(PIXELS), np.uint8).reshape(64, 64, 4)[..., :3]


def test_the_paintings_are_those_of_pytorch(front):
    files = {title: paths.shipped("checkpoints", f"{name}.safetensors") for title, name in PAINTERS.items()}
    pictures, psnr = paint(files, ["W2A2", "FP"])
    slider = front.get_by_label("Bits of weights and activations")
    for pair, key in (("FP", "End"), ("W2A2", "Home")):
        slider.press(key)
        if pair == "W2A2":
            slider.press("ArrowRight")
        for number, title in enumerate(PAINTERS):
            ours = np.round(255 * pictures[title][pair])
            assert (np.abs(painted(front, number, pair) - ours) > 1).mean() < 0.001  # but for values halfway
            words = front.locator(".play-painting p").nth(number).inner_text()
            assert float(words.removesuffix(" dB")) == pytest.approx(psnr[title][pair], abs=0.06)
    assert slider.get_attribute("aria-valuetext") == "2 bits (the watch)"


# Move the slider to 8 bits and at once to 6, and keep what a canvas shows: its width, and of which pair.
MOVES = """async () => {
  const slider = document.querySelector("input[aria-label='Bits of weights and activations']");
  const canvas = document.querySelector(".play-painting canvas"), seen = [];
  for (const stop of [7, 5]) {
    slider.value = stop;
    slider.dispatchEvent(new Event("input"));
  }
  for (const end = performance.now() + 30000; canvas.dataset.pair !== "W6A6" && performance.now() < end; ) {
    await new Promise(requestAnimationFrame);
    seen.push([canvas.dataset.drawn, canvas.width].join());
  }
  return [...new Set(seen)];
}"""


def test_a_stop_is_shown_in_few_pixels_first_and_the_last_move_counts(page, site_address):
    page.add_init_script("const later = setTimeout; setTimeout = (act, wait) => later(act, wait === 500 ? 1e9 : wait)")
    page.goto(f"{site_address}index.html?seed=3")  # its slider never rests: no stop is painted before it is wanted
    page.wait_for_function("performance.getEntriesByName('painted').length > 0", timeout=60 * SECONDS)
    seen = page.evaluate(MOVES)
    assert seen[-2:] == ["W6A6,32", "W6A6,64"], seen
    assert not {"W8A8,64"} & set(seen)


EARLY = """
const move = () => {
  const slider = document.querySelector("input[aria-label='Bits of weights and activations']");
  if (!slider || slider.disabled) return requestAnimationFrame(move);
  slider.value = 3;
  slider.dispatchEvent(new Event("input"));
};
requestAnimationFrame(move);
"""


def test_a_move_before_the_first_painting_is_there_holds_nothing_up(page, site_address):
    page.add_init_script(EARLY)
    page.goto(f"{site_address}index.html?seed=3")
    page.wait_for_function(READY, timeout=30 * SECONDS)
    assert page.locator(".play-painting canvas").first.get_attribute("data-pair") == "W4A4"


def images(seed: int, count: int) -> torch.Tensor:
    split = datasets.load("glyphs").test
    order = torch.randperm(len(split.images), generator=torch.Generator().manual_seed(seed))[:count]
    return split.images[order].float() / 255


@pytest.mark.parametrize(
    ("title", "file"), [("PN + PTQ-MSE", "pn-ptq-mse.onnx"), ("MEBQAT-PN in turn", "mebqat-pn-in-turn.onnx")]
)
def test_the_embeddings_are_those_of_the_file_and_the_answers_those_of_pytorch(front, site, title, file):
    data = datasets.load("glyphs")
    model, shown = shipped_networks(data)[title], images(0, 60)
    for pair in ("W2A2", "W3A8", "W8A32", "FP"):
        words = front.evaluate(RUN, [file, shown.flatten().tolist(), list(shown.shape), pair])
        theirs = torch.tensor(words).reshape(len(shown), -1)
        of_file = answers(site / "_static" / "play" / file, shown, bits=pair)
        far = (theirs - of_file).abs().amax(1) / of_file.abs().max()
        assert (far < 1e-4).float().mean() >= 0.95  # the rest are values halfway between two levels
        if not is_recalibrated(model, pair):
            recalibrate(model, data.train.images[:CALIBRATION], pair)
        with torch.no_grad(), at(model, pair, "recalibrated"):
            ours = model(shown)
        chosen = [prototype_logits(out[20:], out[:20]).argmax(1) for out in (ours, theirs)]
        assert (chosen[0] == chosen[1]).float().mean() >= 0.95


def test_the_arithmetic_of_a_weight_is_that_of_the_package(front):
    layer = quantized_layers(shipped_networks()["MEBQAT-PN in turn"])["body.1.0"]
    for bits in (2, 3, 4, 6, 8):
        codes, step, zero = weight_codes(layer, bits)
        found = front.evaluate(
            """async bits => {
              const { quantized } = await import("./_static/play/kernels.js");
              const about = (await (await fetch("./_static/play/play.json")).json()).learn.kernels;
              return about.weights.flat().map(weight => quantized(weight, bits, about.grids[bits]).code);
            }""",
            bits,
        )
        assert found == codes[:, 0].flatten().tolist()
        assert front.evaluate(
            "async bits => (await (await fetch('./_static/play/play.json')).json()).learn.kernels.grids[bits]", bits
        ) == [float(step), float(zero)]


def test_strokes_become_the_image_of_the_lessons_pad(front):
    strokes = [[0.1, 0.2, 0.5, 0.9, 0.7, 0.3], [0.4, 0.4], [0.2, 0.6, 0.9, 0.61]]
    found = front.evaluate(
        """async strokes => {
          const { imageOf } = await import("./_static/play/glyphs.js");
          return Array.from(imageOf({ strokes, pixels: "" }));
        }""",
        strokes,
    )
    ours = render(strokes).flatten()
    assert ours.sum() > 20 and (torch.tensor(found) - ours).abs().max() < 1e-6


def test_a_reader_who_knows_all_characters_again_gets_all_points(front):
    front.get_by_role("button", name="Start").click()
    labels = front.evaluate("""async () => {
      const { tasksOf } = await import("./_static/play/task.js"), { Glyphs } = await import("./_static/play/glyphs.js");
      const glyphs = new Glyphs({ classes: 126, images: 4 }, null);
      glyphs.image = () => null;
      return tasksOf(glyphs, 3).map(task => task.questions.map(one => one.label));
    }""")
    assert [len(some) for some in labels] == [5, 10]
    for label in labels[0] + labels[1]:
        front.locator(".play-examples button").nth(label).click()
    front.locator(".play-scores tbody tr").nth(4).wait_for()
    rows = front.locator(".play-scores tbody tr").all_inner_texts()
    assert rows[0].split("\t") == ["You", "5 of 5", "10 of 10"] and len(rows) == 5
    front.get_by_role("button", name="Other characters").first.click()
    assert front.get_by_text("Question 1 of 5: which is this one?").is_visible()
    front.locator(".play-examples button").nth(4).click()
    said = front.locator(".play-asked").inner_text()
    assert re.match(r"That was (right|number [1-4])\. Question 2 of 5: which is this one\?", said), said


def test_answers_follow_the_sliders_and_what_is_drawn(front):
    grid, words = front.locator(".play-answers"), front.locator(".play-words")
    assert grid.locator("thead th").all_inner_texts() == ["bits", "2", "FP", "8", "6", "4", "3", "2"]
    front.get_by_label("Bits of activations").press("End")
    grid.locator("thead th.play-chosen", has_text="2 / FP").wait_for()
    before = grid.locator("tbody").inner_text()
    box = front.get_by_label("E again, drawn")
    area = box.bounding_box()
    front.mouse.move(area["x"] + 20, area["y"] + 20)
    front.mouse.down()
    front.mouse.move(area["x"] + 70, area["y"] + 75, steps=5)
    front.mouse.up()
    front.wait_for_function("text => document.querySelector('.play-answers tbody').innerText !== text", arg=before)
    front.get_by_role("button", name="Clear all").click()
    words.get_by_text("Draw examples of at least two characters").wait_for()
    assert grid.count() == 0


def test_many_tasks_are_counted_at_the_bits_of_the_sliders(front):
    front.get_by_role("button", name="Count over 40 tasks of 20 real characters").click()
    told = front.get_by_text("of the characters right at 2 bits, chance is 5 %")
    told.wait_for(timeout=120 * SECONDS)
    words = told.inner_text()
    rounded, ours = map(float, re.findall(r"(\d+) %(?=,| of)", words))
    gap, half = map(float, re.search(r"Difference (\S+) ±(\S+) points", words).groups())
    assert gap == pytest.approx(ours - rounded, abs=1.1)
    data = datasets.load("glyphs")
    embedded = Embedded(shipped_networks(data), data.test, data.train.images[:CALIBRATION])
    expected = [float(embedded.scores(title, "W2A2").mean()) for title in ("PN + PTQ-MSE", "MEBQAT-PN in turn")]
    assert [rounded, ours] == pytest.approx(expected, abs=5)  # other tasks of the same classes
    assert 0 < half < gap


def test_a_weight_is_explained_by_keys(front):
    canvas, words = front.locator(".play-kernels"), front.locator(".play-arithmetic")
    first = words.inner_text()
    canvas.press("ArrowRight")
    assert words.inner_text() != first and " steps of " in words.inner_text()
    front.get_by_label("Bits of weights", exact=True).press("End")
    front.wait_for_function("document.querySelector('.play-arithmetic').innerText.includes('as it is')")
    assert front.get_by_label("Bits of activations").is_disabled()


def test_without_webassembly_pictures_stay_and_the_readers_task_runs(page, site_address):
    page.add_init_script("delete window.WebAssembly")
    page.goto(f"{site_address}index.html?seed=3")
    page.wait_for_function(READY)
    assert page.get_by_text("The networks do not run here: this browser has no WebAssembly").count() == 2
    assert page.get_by_label("Bits of weights and activations").is_disabled()
    still = page.locator(".play-painting canvas").nth(3)
    assert still.get_attribute("aria-label") == "MEBQAT in turn at W2A2, a stored picture"
    assert np.array(still.evaluate(PIXELS)).reshape(-1, 4)[:, :3].std() > 20  # something is painted
    page.get_by_role("button", name="Start").click()
    for _ in range(15):
        page.locator(".play-examples button").first.click()
    page.get_by_text("The networks cannot answer here").wait_for()
    assert page.locator(".play-scores tbody tr").count() == 1
