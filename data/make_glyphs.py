"""Make Glyphs, the embedded few-shot data set: `python data/make_glyphs.py`, or with `--check` compare only.

A character of DejaVu's is thinned to its centre line, and the points of that line are moved as another hand would:
each separate part a little, then all of them by a smooth elastic field and an affine map. Drawn with a thin pen,
that is an instance. Outlines are read in font units, so that no hinting and no version of FreeType shows in them, and
each class has its own generator, seeded by (SEED, code point): any class can be made again without the others.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle, islice, pairwise
from pathlib import Path as File

import matplotlib
import numpy as np
from matplotlib import ft2font
from matplotlib.path import Path
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.spatial import cKDTree
from tqdm import tqdm

FOLDER = File(__file__).resolve().parent
FONTS = File(matplotlib.get_data_path()) / "fonts" / "ttf"
# Upright faces only: a slant is part of the affine map, and Serif's italic gives some letters another letter's shape.
FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
NO_SCALE = ft2font.LoadFlags.NO_SCALE if hasattr(ft2font, "LoadFlags") else ft2font.LOAD_NO_SCALE  # font units
SEED, INSTANCES, SIDE, LEVELS = 0, 20, 28, 4
RASTER = 80  # pixels: the longest side of a glyph when it is thinned
STRETCHES = (1, 0.8, 1.25)  # widths at which two characters are compared
NEAR = 10  # pixels of ink that two classes' plain renders must not share, at least

# Scripts by part. Earlier scripts keep a shape that later ones also have, so the small ones of test and val come first.
PARTS = {
    "test": ("old-italic", "lisu", "nko", "hebrew", "georgian"),
    "val": ("ogham", "lao", "tifinagh", "armenian"),
    "train": ("coptic", "khutsuri", "greek", "cyrillic", "latin", "canadian", "arabic"),
}
NAMES = {  # script -> how the Unicode names of its letters begin
    "old-italic": ("OLD ITALIC ",),
    "khutsuri": ("GEORGIAN CAPITAL ", "GEORGIAN SMALL "),  # the church's alphabet
    "georgian": ("GEORGIAN LETTER ",),
    "canadian": ("CANADIAN SYLLABICS ",),
}


# ---------------------------------------------------------------- characters


@cache
def font(face: str) -> ft2font.FT2Font:
    """A face that matplotlib ships, with its horizontal numbers whole: Matplotlib before 3.11 divides them by 8."""
    whole = {"hinting_factor": 1} if matplotlib.__version_info__ < (3, 11) else {}
    return ft2font.FT2Font(str(FONTS / f"{face}.ttf"), **whole)


@cache
def charmap(face: str) -> frozenset[int]:
    """The code points that a face has."""
    return frozenset(font(face).get_charmap())


def characters(script: str) -> list[int]:
    """The code points of a script's single letters in DejaVu Sans, in order."""
    begins = NAMES.get(script, (script.upper() + " ",))
    return [code for code in sorted(charmap(FACES[0])) if is_letter(chr(code), begins)]


def is_letter(char: str, begins: tuple[str, ...]) -> bool:
    """Whether a character is a letter with such a name, and one letter: no ligature, no superscript."""
    bases = [c for c in unicodedata.normalize("NFKD", char) if unicodedata.category(c)[0] == "L"]
    kind = unicodedata.category(char)
    return kind[0] == "L" and kind != "Lm" and len(bases) == 1 and unicodedata.name(char, "").startswith(begins)


# ---------------------------------------------------------------- from an outline to a centre line


def outline(face: str, code: int) -> np.ndarray:
    """The edges of a character, (edges, 2 ends, x and y), in font units with y downwards."""
    font(face).load_char(code, flags=NO_SCALE)
    vertices, codes = font(face).get_path()
    points = zip(np.asarray(vertices) * (1, -1), codes, strict=True)
    edges: list[tuple[np.ndarray, np.ndarray]] = []
    for point, kind in points:
        if kind == Path.MOVETO:
            start = at = point
            continue
        corners = [at, start if kind == Path.CLOSEPOLY else point]
        if kind == Path.CURVE3:  # its control point; its end comes next
            corners = curve(at, point, next(points)[0])
        edges.extend(pairwise(corners))
        at = corners[-1]
    return np.array(edges)


def curve(start: np.ndarray, control: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """Nine points, each (2,), of a quadratic Bezier curve."""
    t = np.linspace(0, 1, 9)[:, None]
    return list((1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end)


def fill(edges: np.ndarray) -> np.ndarray:
    """Where an outline winds round the centre of a pixel, (RASTER + 4, RASTER + 4), bool; the non-zero rule."""
    low, high = edges.min((0, 1)), edges.max((0, 1))
    edges = (edges - low) * (RASTER / (high - low).max()) + 2
    (x0, y0), (x1, y1) = edges[:, 0].T[..., None], edges[:, 1].T[..., None]  # each (edges, 1)
    y = np.arange(RASTER + 4) + 0.5
    way = ((y0 <= y) & (y < y1)).astype(int) - ((y1 <= y) & (y < y0))  # (edges, rows): down, up or not at all
    edge, row = way.nonzero()
    x = x0[edge, 0] + (y[row] - y0[edge, 0]) * (x1 - x0)[edge, 0] / (y1 - y0)[edge, 0]
    turns = np.zeros((RASTER + 4, RASTER + 5), int)
    np.add.at(turns, (row, np.ceil(x - 0.5).astype(int)), way[edge, row])
    return turns.cumsum(1)[:, :-1] != 0


def _removable() -> np.ndarray:
    """Zhang and Suen's (1984) two conditions by the code of a pixel's 8 neighbours, (2, 256), bool."""
    table = np.zeros((2, 256), bool)
    for code in range(256):
        p = [code >> i & 1 for i in range(8)]  # north, north-east, ... clockwise
        turns = sum(not p[i] and p[(i + 1) % 8] for i in range(8))
        simple = 2 <= sum(p) <= 6 and turns == 1
        n, e, s, w = p[::2]
        table[:, code] = simple and not (n and e and s) and not (e and s and w), False
        table[1, code] = simple and not (n and e and w) and not (n and s and w)
    return table


REMOVABLE = _removable()
AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def thin(shape: np.ndarray) -> np.ndarray:
    """The centre line, one pixel wide, of a shape that leaves the border free, (height, width), bool."""
    line = shape.astype(np.uint8)
    before = -1
    while before != (before := int(line.sum())):
        for table in REMOVABLE:
            code = sum(np.roll(line, (-dy, -dx), (0, 1)) << i for i, (dy, dx) in enumerate(AROUND))
            line[table[code]] = 0
    parts, count = ndimage.label(shape, np.ones((3, 3)))
    gone = set(range(1, count + 1)) - set(np.unique(parts[line > 0]).tolist())  # a dot of 2 x 2 leaves nothing
    for part in sorted(gone):
        y, x = np.argwhere(parts == part).mean(0).round().astype(int)
        line[y, x] = 1
    return line > 0


@cache
def centre_line(face: str, code: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the centre line, (points, x and y), in a box of longest side 1 round 0, and their part, (points,)."""
    line = thin(fill(outline(face, code)))
    parts, _ = ndimage.label(line, np.ones((3, 3)))
    points = np.argwhere(line)[:, ::-1].astype(float)
    return boxed(points), parts[line]


def boxed(points: np.ndarray) -> np.ndarray:
    """Points, (points, 2), moved and scaled into a box of longest side 1 round 0."""
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) / max((high - low).max(), 1e-9)


# ---------------------------------------------------------------- from a centre line to an image


def moved(points: np.ndarray, parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The centre line, (points, 2), as another hand would draw it."""
    points = points + rng.normal(0, 0.03, (parts.max() + 1, 2))[parts]  # a dot is never quite in the same place
    grid = np.stack(np.meshgrid(*[np.linspace(-0.6, 0.6, 4)] * 2), -1).reshape(-1, 2)
    near = np.exp(-((points[:, None] - grid) ** 2).sum(2) / (2 * 0.3**2))  # (points, 16)
    points = points + near @ rng.normal(0, 0.05, (16, 2))
    turn, shear = rng.normal(0, 0.1), rng.normal(0, 0.12)
    wide = np.exp(rng.normal(0, 0.12))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return boxed(points @ (np.array([[wide, shear], [0, 1]]).T @ rotation.T))


def draw(points: np.ndarray, side: float, centre: np.ndarray, radius: float) -> np.ndarray:
    """Grey levels, (SIDE, SIDE), from 0 to 1: points of a box of 1 drawn ``side`` pixels long with a round pen."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    far, _ = cKDTree(points * side + centre).query(np.stack([x, y], -1), distance_upper_bound=3)  # infinite beyond
    return np.clip(radius + 0.5 - far, 0, 1)


def instances(code: int, bits: int) -> np.ndarray:
    """The images of a class, (INSTANCES, SIDE, SIDE), uint8 from 0 to LEVELS - 1; ``bits`` say which FACES it uses."""
    return np.stack(list(islice(hands(code, bits, SEED), INSTANCES)))


def hands(code: int, bits: int, seed: int) -> Iterator[np.ndarray]:
    """Image after image of a class, each (SIDE, SIDE); another ``seed`` gives other images, and they never end."""
    rng = np.random.default_rng((seed, code))
    for face in cycle(face for i, face in enumerate(FACES) if bits >> i & 1):
        points = moved(*centre_line(face, code), rng)
        side, radius = rng.uniform(13, 22), rng.uniform(0.65, 0.85)
        room = (SIDE - 3 - side) / 2  # for half a stroke
        centre = SIDE / 2 + np.clip(rng.normal(0, 1.5, 2), -room, room)
        yield np.rint(draw(points, side, centre, radius) * (LEVELS - 1)).astype(np.uint8)


# ---------------------------------------------------------------- near duplicates


def plain(code: int, face: str = FACES[0]) -> np.ndarray:
    """The undeformed character, (STRETCHES, SIDE, SIDE), bool: as it is, narrower, and wider."""
    points, _ = centre_line(face, code)
    return np.stack([draw(boxed(points * (wide, 1)), 22, np.full(2, SIDE / 2), 0.75) >= 0.5 for wide in STRETCHES])


def apart(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels of ink, (count, others), further than a pixel from any ink of the other one, of both together.

    ``images`` and ``others`` are stacks of `plain`. The least of nine shifts, since a serif moves the whole box, and
    of all stretches, since people do not keep proportions: Cyrillic capital and small EN are one shape.
    """
    ink, target = flat(images[:, 0]), flat(others)
    near, wide = (ndimage.maximum_filter(stack, (1,) * (stack.ndim - 2) + (3, 3)) for stack in (images[:, 0], others))
    least = np.full((len(images), len(others)), np.inf, np.float32)
    for dy, dx in np.ndindex(3, 3):
        shift = (dy - 1, dx - 1)
        free, taken = 1 - flat(np.roll(wide, shift, (-2, -1))), 1 - flat(np.roll(near, (1 - dy, 1 - dx), (1, 2)))
        for k in range(len(STRETCHES)):
            lost = ink @ free[:, k].T + taken @ target[:, k].T  # whole numbers: exact
            least = np.minimum(least, lost)
    return least


def flat(stack: np.ndarray) -> np.ndarray:
    """Images, (..., SIDE, SIDE), as rows of numbers, (..., SIDE * SIDE)."""
    return stack.reshape(*stack.shape[:-2], -1).astype(np.float32)


def distinct(far: np.ndarray) -> list[int]:
    """Indices of the characters that are NEAR to none of those kept before; ``far`` is `apart`, (count, count)."""
    clear = np.minimum(far, far.T) >= NEAR
    kept: list[int] = []
    for index in range(len(far)):
        if clear[index, kept].all():
            kept.append(index)
    return kept


# ---------------------------------------------------------------- the whole set


def candidates() -> list[tuple[str, str, int]]:
    """(part, script, code point) of every character, in the order in which near duplicates are kept."""
    scripts = [(part, script) for part, names in PARTS.items() for script in names]
    return [(part, script, code) for part, script in scripts for code in characters(script)]


def usable(codes: list[int], images: np.ndarray) -> np.ndarray:
    """Which FACES draw each class, (classes,), uint8, bit i for face i.

    Left out is a face whose shape is nearer to another class: Mono's Armenian BEN is Sans's small BEN.
    ``images`` are the classes' `plain`.
    """
    bits = np.ones(len(codes), np.uint8)
    for i, face in enumerate(tqdm(FACES[1:], "faces"), 1):
        has = [index for index, code in enumerate(codes) if code in charmap(face)]
        far = apart(np.stack([plain(codes[index], face) for index in has]), images)
        rows = np.arange(len(has))
        own = far[rows, has].copy()
        far[rows, has] = np.inf
        bits[np.array(has)[own < far.min(1)]] |= 1 << i
    return bits


def make() -> dict[str, np.ndarray]:
    """The arrays of the data file, by class: ``name``, ``part``, ``faces``, and ``images`` of two bits a pixel."""
    every = candidates()
    images = np.stack([plain(code) for *_, code in tqdm(every, "characters")])
    kept = distinct(apart(images, images))
    kept.sort(key=lambda index: ("train", "val", "test").index(every[index][0]))  # stable: scripts stay together
    classes = [every[index] for index in kept]
    codes = [code for *_, code in classes]
    faces = usable(codes, images[kept])
    drawn = [packed(instances(code, int(bits))) for code, bits in zip(tqdm(codes, "classes"), faces, strict=True)]
    names = [f"{script}/U+{code:04X}" for _, script, code in classes]
    parts = [part for part, *_ in classes]
    return {"name": np.array(names), "part": np.array(parts), "faces": faces, "images": np.stack(drawn)}


def packed(levels: np.ndarray) -> np.ndarray:
    """Levels from 0 to 3, (count, SIDE, SIDE), four to a byte, the first one highest: (count, SIDE * SIDE / 4)."""
    four = levels.reshape(len(levels), -1, 4)
    return (four << np.array([6, 4, 2, 0], np.uint8)).sum(-1, dtype=np.uint8)


def unpacked(data: np.ndarray) -> np.ndarray:
    """What `packed` packed, (count, SIDE, SIDE)."""
    return (data[..., None] >> np.array([6, 4, 2, 0], np.uint8) & 3).reshape(-1, SIDE, SIDE)


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file without the time of day in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED
            raw = io.BytesIO()
            np.lib.format.write_array(raw, array, allow_pickle=False)
            archive.writestr(entry, raw.getvalue(), compresslevel=9)
    return file.getvalue()


def described(arrays: dict[str, np.ndarray], file: bytes) -> dict:
    """What glyphs.json says: the checksum, the numbers of classes, and what it was made with."""
    scripts = np.array([name.split("/")[0] for name in arrays["name"]])
    counts = {
        part: {script: int((scripts == script).sum()) for script in names if script in scripts}
        for part, names in reversed(PARTS.items())
    }
    fonts = {face: hashlib.sha256((FONTS / f"{face}.ttf").read_bytes()).hexdigest() for face in FACES}
    return {
        "file": "glyphs.npz",
        "sha256": hashlib.sha256(file).hexdigest(),
        "bytes": len(file),
        "image": f"{SIDE} x {SIDE}, {LEVELS} grey levels, {INSTANCES} a class",
        "seed": SEED,
        "classes": {part: sum(by.values()) for part, by in counts.items()},
        "scripts": counts,
        "fonts": {"family": "DejaVu", "version": font_version(), "licence": "glyphs-LICENSE.txt", "sha256": fonts},
    }


def font_version() -> str:
    """The version of DejaVu Sans, as its name table has it."""
    return font(FACES[0]).get_sfnt()[1, 0, 0, 5].decode().removeprefix("Version ")


def sheet(arrays: dict[str, np.ndarray], classes: int = 6, each: int = 4, zoom: int = 2) -> Image.Image:
    """The contact sheet: a row per script with instances of a few of its classes, evenly chosen."""
    scripts = [name.split("/")[0] for name in arrays["name"]]
    rows = list(dict.fromkeys(zip(arrays["part"].tolist(), scripts, strict=True)))
    size, left, gap = SIDE * zoom, 150, 12
    picture = Image.new("L", (left + classes * (each * size + gap), len(rows) * (size + 4)), 255)
    text = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), 15)
    for row, (part, script) in enumerate(rows):
        top = row * (size + 4)
        ImageDraw.Draw(picture).text((6, top + size // 3), f"{part}: {script}", 0, text)
        members = [index for index, name in enumerate(scripts) if name == script]
        for column, member in enumerate(members[i * len(members) // classes] for i in range(classes)):
            strip = 255 - 85 * np.concatenate(unpacked(arrays["images"][member, :each]), 1)
            x = left + column * (each * size + gap)
            picture.paste(Image.fromarray(strip).resize((each * size, size), Image.Resampling.NEAREST), (x, top))
    return picture.quantize(LEVELS * 2)


def differences(name: str, arrays: dict[str, np.ndarray]) -> list[str]:
    """What is not the same in the stored file, one line each."""
    with np.load(FOLDER / name, allow_pickle=False) as stored:
        return [f"{key} differs" for key in arrays if not np.array_equal(stored[key], arrays[key])]


def write(arrays: dict[str, np.ndarray]) -> None:
    """Write the data, its description, the fonts' licence and the contact sheet."""
    file = npz(arrays)
    (FOLDER / "glyphs.npz").write_bytes(file)
    about = described(arrays, file)
    (FOLDER / "glyphs.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(FONTS / "LICENSE_DEJAVU", FOLDER / "glyphs-LICENSE.txt")
    sheet(arrays).save(FOLDER / "glyphs.png", optimize=True)
    print(f"{len(arrays['name'])} classes, {len(file):,} bytes; SHA256 in mebqat_lite/datasets/glyphs.py must be")
    print(about["sha256"])


def main(name: str, make: Callable[[], dict[str, np.ndarray]], write: Callable[[dict[str, np.ndarray]], None]) -> int:
    """Make the set of the file ``name``, then write it or compare it."""
    parser = argparse.ArgumentParser(description=f"make the embedded data set {name}")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the stored file")
    check = parser.parse_args().check
    arrays = make()
    if not check:
        write(arrays)
        return 0
    wrong = differences(name, arrays)
    print("\n".join(wrong) if wrong else f"{name} is what this script makes")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main("glyphs.npz", make, write))
