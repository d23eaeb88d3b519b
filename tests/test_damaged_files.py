"""Whatever happens to a file that the package reads, it comes back as it was, or as one error that names the file."""

import io
import json
import struct
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

import mebqat_lite as mq
from mebqat_lite import CheckpointError, files, paths, resume
from mebqat_lite.datasets import DataError, cache, glyphs
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.folder import read as read_image
from mebqat_lite.datasets.miniimagenet import miniimagenet
from mebqat_lite.deploy import onnx_run
from mebqat_lite.experiments.engines import Task, perform
from mebqat_lite.experiments.run_folder import RunFolder, read_metrics, read_sessions
from mebqat_lite.loop import Loop
from mebqat_lite.recipe import Recipe

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(4))
SPLIT = Split(IMAGES, torch.arange(24) % 10)
RECIPE = Recipe(steps=2, batch_size=8, schedule="constant")
BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)


def net(quantizer="lsq"):
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(2, 2, 2, 2)), quantizer, sample=IMAGES)


def make_model(path):
    mq.save_model(net(), path, note=[1, 2.5, "é"])


def make_packed(path):
    mq.save_packed(net(), path, "W2A2,W4A4", calibration=IMAGES)


def make_training(path):
    loop = Loop(net(), SPLIT, "fp", RECIPE)
    loop.step()
    resume.save(loop, path)


def make_images(path):
    cache._save(path, cache.Parts({"train": SPLIT}, tuple("0123456789")))


def continue_training(path):
    loop = Loop(net(), SPLIT, "fp", RECIPE)
    try:
        resume.from_checkpoint(loop, path)
    finally:
        loop.close()


KINDS = {  # kind -> how such a file is written, and how it is read
    "model": (make_model, mq.load_model),
    "packed": (make_packed, mq.load_packed),
    "training": (make_training, continue_training),
    "images": (make_images, cache._load),
}


NEEDED = {  # tensors without which a file of the kind is of no use
    "model": ["body.1.0.weight", "stem.1.running_mean"],
    "packed": ["steps/body.1.0", "codes/body.1.0/4", "statistics/body.1.1", "model/body.4.bias"],
    "training": ["model/body.1.0.weight", "random/cpu"],
    "images": ["train.images"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole file of each kind, as bytes, and a name to write a damaged one to."""
    place = tmp_path_factory.mktemp("whole")
    for kind, (make, load) in KINDS.items():
        make(place / kind)
        load(place / kind)
    return {kind: (place / kind).read_bytes() for kind in KINDS}, place / "a.file"


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def other_program():
    return save({"weight": torch.ones(2, 2)}, metadata={"format": "pt"})


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data.pkl", b"\x80\x02}q\x00.")
    return buffer.getvalue()


FOREIGN = {
    "nothing": b"",
    "text": "Grüße, no tensors here\n".encode(),
    "object": b"{}",
    "list": b"[]",
    "number": b"3",
    "deep": b"[" * 100_000,
    "zeros": bytes(400),
    "not utf-8": b"\xff\xfe\n\x80",
    "other program": other_program(),
    "an archive": archive(),
    "other metadata": save({"weight": torch.ones(2)}, metadata={"mebqat_lite": "[1, 2]"}),
    "deep metadata": save({"weight": torch.ones(2)}, metadata={"mebqat_lite": "[" * 100_000}),
    "header alone": struct.pack("<Q", 2) + b"{}",
}


# ---------------------------------------------------------------- files of tensors


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file so small that each of its bits can be turned."""
    path = tmp_path_factory.mktemp("small") / "a.file"
    tensors = {"w": torch.tensor([[1.5, -2.0]]), "n": torch.tensor(3), "b": torch.tensor([0.5], dtype=torch.bfloat16)}
    return files.write(path, tensors, {"kind": "model", "numbers": [1e-5, 1.0, True, None, "é"]})


def test_every_single_bit_counts(small):
    content = small.read_bytes()
    for bit in range(0, 8 * len(content), 3):  # each byte has two or three, and all places in a byte are tried
        small.write_bytes(flipped(content, bit))
        with pytest.raises(CheckpointError, match=r"a\.file .*damaged"):
            files.read(small, "model")
    small.write_bytes(content)
    tensors, meta = files.read(small, "model")
    assert meta["numbers"] == [1e-5, 1.0, True, None, "é"] and tensors["w"].tolist() == [[1.5, -2.0]]
    assert (tensors["n"].item(), tensors["b"].dtype, tensors["b"].item()) == (3, torch.bfloat16, 0.5)


@pytest.mark.parametrize("kind", list(KINDS))
@BOUNDED
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_turned_bit_is_found_in_each_kind(whole, kind, share):
    content, path = whole[0][kind], whole[1]
    path.write_bytes(flipped(content, int(share * 8 * len(content))))
    with pytest.raises(CheckpointError, match=r"a\.file .*damaged"):
        KINDS[kind][1](path)


@pytest.mark.parametrize("kind", list(KINDS))
@BOUNDED
@given(share=st.floats(0, 1, exclude_max=True), more=st.sampled_from([b"", b"\0", b"more"]))
def test_a_cut_file_is_found_in_each_kind(whole, kind, share, more):
    content, path = whole[0][kind], whole[1]
    path.write_bytes(content[: int(share * (len(content) - len(more)))] + more)
    with pytest.raises(CheckpointError, match=r"a\.file .*damaged"):
        KINDS[kind][1](path)


@pytest.mark.parametrize("kind", list(KINDS))
def test_other_content_is_refused_by_each_reader(whole, kind):
    path = whole[1]
    for content in [*FOREIGN.values(), *(other for name, other in whole[0].items() if name != kind)]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.file "):
            KINDS[kind][1](path)


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_missing_from_a_file_of_ours_is_said(whole, kind):
    """Its checksum is right: another version of this package may write less, or other things."""
    load, path = KINDS[kind][1], whole[1]
    path.write_bytes(whole[0][kind])
    tensors, meta = files.read(path, kind)
    lists = [{**meta, name: [3]} for name in ("model", "zeros", "settings", "run", "quantizer", "data") if name in meta]
    lacking = meta.keys() - {"versions", "speed", "layout", "kind"}  # what nobody needs, and what is asked for first
    for changed in [*lists, *({k: v for k, v in meta.items() if k != name} for name in lacking)]:
        files.write(path, tensors, changed)
        with pytest.raises(CheckpointError, match=r"a\.file "):
            load(path)
    for name in NEEDED[kind]:
        files.write(path, {k: v for k, v in tensors.items() if k != name}, meta)
        with pytest.raises(CheckpointError, match=rf"a\.file .*{name.removeprefix('model/')}"):
            load(path)


# ---------------------------------------------------------------- the format of before


def as_version_1(path, meta):
    save_file({"a": torch.ones(2)}, path, metadata={"mebqat_lite": json.dumps({"format": "mebqat_lite", **meta})})


def test_a_file_without_a_checksum_loads_and_says_so(tmp_path):
    as_version_1(tmp_path / "a", {"version": 1, "kind": "model", "extra": 3})
    with pytest.warns(UserWarning, match="a has no checksum that would show damage: load it and save it anew"):
        tensors, meta = files.read(tmp_path / "a", "model")
    assert torch.equal(tensors["a"], torch.ones(2)) and meta == {"kind": "model", "extra": 3}
    files.write(tmp_path / "a", tensors, meta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert files.read(tmp_path / "a", "model")[1]["extra"] == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'\\"version\\": 2', b'\\"version\\": 1'),
        (b"sha2-256", b"sha2-257"),
        (b'\\"kind\\": \\"model\\"', b'\\"kind\\": \\"image\\"'),
        (b'\\"extra\\": {}', b'\\"extra\\": []'),
    ],
)
def test_a_new_file_is_not_taken_for_an_old_one(tmp_path, old, new):
    path = mq.save_model(net(), tmp_path / "a")
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(CheckpointError, match=r"a .*damaged"):
        mq.load_model(path)


@pytest.mark.parametrize("version", [2, "1", None, 1.0])
def test_a_version_that_cannot_be_is_refused(tmp_path, version):
    as_version_1(tmp_path / "a", {"version": version, "kind": "model"})
    with pytest.raises(CheckpointError, match="a lacks its version, kind or checksum: it is damaged"):
        files.read(tmp_path / "a", "model")


@pytest.mark.parametrize("path", sorted(paths.shipped("checkpoints").glob("*.safetensors")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("error")
def test_shipped_files_have_a_checksum(path, tmp_path):
    mq.load_model(path)
    content, copy = path.read_bytes(), tmp_path / "a.file"
    for share in (0.2, 0.5, 0.99):
        copy.write_bytes(flipped(content, int(share * 8 * len(content))))
        with pytest.raises(CheckpointError, match=r"a\.file is damaged"):
            mq.load_model(copy)


# ---------------------------------------------------------------- results and the folders of runs


def test_a_result_is_right_or_not_there(tmp_path):
    value = {"accuracy": {"W2A2": 93.25, "FP": None}, "costs": [1, 2, 3]}
    task = Task(tmp_path / "a.json", lambda: value, "key")
    perform(task)
    content = task.result.read_bytes()
    changed = [flipped(content, bit) for bit in range(0, 8 * len(content), 3)]
    changed += [content[:length] for length in range(0, len(content) - 2, 3)] + [*FOREIGN.values()]
    for found in changed:
        task.result.write_bytes(found)
        assert task.found() in ({}, {**task.read(), "value": value})
    assert task.found() == {}  # the last one
    for lacking in ({"key": "key", "value": value}, {"key": "key", "value": {}, "sha256": "0"}):
        task.result.write_text(json.dumps(lacking))
        assert task.found() == {}


def run_of_steps(place, steps):
    run = RunFolder(place, {"method": "fp"}, tensorboard=False)
    try:
        for step in steps:
            run.log({"step": step, "method": "fp", "loss": 0.5, "lr": 1, "seconds": 1.0, "backprops": step})
    finally:
        run.close()


@pytest.mark.parametrize(("name", "read"), [("metrics.jsonl", read_metrics), ("environment.json", read_sessions)])
def test_a_file_of_a_run_is_read_or_named(tmp_path, name, read):
    run_of_steps(tmp_path, [1, 2])
    run_of_steps(tmp_path, [2])
    content, path, refused = (tmp_path / name).read_bytes(), tmp_path / name, 0
    key = "step" if name == "metrics.jsonl" else "first_step"
    changed = [flipped(content, bit) for bit in range(0, 8 * len(content), 11)]
    changed += [content[:length] for length in range(0, len(content), 5)]
    changed += [*FOREIGN.values(), b"{}\n", b'{"step": 1}\n']
    for found in changed:
        path.write_bytes(found)
        try:
            assert all(isinstance(record[key], int) for record in read(path))
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged")
            assert str(error).endswith(": delete the file, or give another --out")
            refused += 1
    assert refused > 20
    if name == "metrics.jsonl":
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
            run_of_steps(tmp_path, [3])  # the last content is still there


# ---------------------------------------------------------------- datasets and ONNX files


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(pixels).save(path)
    return path, path.read_bytes(), pixels


@settings(BOUNDED, max_examples=200)
@given(share=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_an_image_is_read_or_named(picture, share, cut):
    path, content, pixels = picture
    path.write_bytes(content[: int(share * len(content))] if cut else flipped(content, int(share * 8 * len(content))))
    try:
        found, _ = read_image(str(path))
    except DataError as error:
        assert str(error).startswith(f"cannot read the image {path}")
    else:
        assert found.dtype == np.uint8 and (not cut or np.array_equal(found, pixels))


def test_other_content_is_no_image(picture):
    for content in FOREIGN.values():
        picture[0].write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read the image .*a\.png"):
            read_image(str(picture[0]))


@pytest.fixture(scope="module")
def glyphs_copy(tmp_path_factory):
    return paths.shipped("glyphs.npz").read_bytes(), tmp_path_factory.mktemp("glyphs") / "glyphs.npz"


@BOUNDED
@given(share=st.floats(0, 1, exclude_max=True), how=st.sampled_from(["flip", "cut", *FOREIGN]))
def test_glyphs_are_whole_or_refused(glyphs_copy, share, how):
    content, path = glyphs_copy
    made = {"flip": flipped(content, int(share * 8 * len(content))), "cut": content[: int(share * len(content))]}
    path.write_bytes((made | FOREIGN)[how])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match=r"glyphs\.npz is damaged"):
        patch.setattr(paths, "shipped", lambda *_: path)
        glyphs()


@pytest.mark.parametrize(
    "content", [*FOREIGN.values(), b"filename,label\n\xff,a\n", b"x" * 200_000], ids=range(len(FOREIGN) + 2)
)
def test_a_split_file_is_read_or_named(tmp_path, content):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.csv"):
        miniimagenet(tmp_path)


def test_a_damaged_cache_is_decoded_again(home):
    parts = cache.Parts({"train": SPLIT}, tuple("0123456789"))
    cache.cached("made", "key", lambda: parts)
    (path,) = (home / "cache").iterdir()
    content = path.read_bytes()
    for found in [flipped(content, 8 * len(content) - 9), content[:-3], *FOREIGN.values()]:
        path.write_bytes(found)
        assert torch.equal(cache.cached("made", "key", lambda: parts).splits["train"].images, IMAGES)
        assert path.read_bytes() == content


def test_other_content_is_no_onnx_file(whole, tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    for content in [*FOREIGN.values(), *whole[0].values()]:
        path.write_bytes(content)
        with pytest.raises((ValueError, RuntimeError), match=r"a\.onnx"):
            onnx_run.session(path)
