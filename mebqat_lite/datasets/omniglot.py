"""Omniglot, 1,623 handwritten characters of 50 alphabets, each drawn once by 20 people; and folders of this form.

::

    letters/Greek/character01/1.png      or, as the archives have it, with one more folder above the alphabets:
    letters/Greek/character02/...        letters/images_background/Greek/character01/0394_01.png
    letters/Korean/...                   letters/images_evaluation/...
"""

from __future__ import annotations

import filecmp
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mebqat_lite import paths
from mebqat_lite.datasets.base import Data, DataError
from mebqat_lite.datasets.cache import Parts, cached
from mebqat_lite.datasets.classes import ALL, choose, convert, keep, rotate, shuffled
from mebqat_lite.datasets.downloads import Remote, fetch
from mebqat_lite.datasets.folder import Files, decode, image_files

STANDARD = {"train": 1100, "val": 100, "test": 423}  # characters
HELD_OUT = 0.15  # the share of the alphabets of a folder for validation, and again for test
LAYOUT = "expected <folder>/<alphabet>/<character>/<image>, or the same one folder deeper"
INSTEAD = 'take the glyphs, which need no download: data="glyphs"'

Names = str | Sequence[str]


def omniglot(seed: int = 0, path: str | Path | None = None, size: int = 28, rotations: bool = True) -> Data:
    """Load Omniglot (Lake et al., 2015), split into 1,100 training, 100 validation and 423 test characters.

    There are 20 images per character; they are uint8, (count, 1, size, size), white strokes on black (the originals
    are inverted). The split follows Finn et al. (2017): characters are divided at random, whatever their alphabet. It
    is not the fixed split of Snell et al. (2017), which has 1,028 / 172 / 423 characters.

    The first call downloads 16 MB into `paths.downloads`; later calls read the decoded images from the cache.

    Args:
        seed: chooses the characters of each part.
        path: a folder with both unpacked archives, instead of the download. For other folders use `alphabets`.
        size: height and width in pixels. The originals have 105; they are resized as by torchvision's ``Resize(28)``.
        rotations: whether characters rotated by 90, 180 and 270 degrees are classes, too (see `classes.rotate`). This
            makes 4,400 / 400 / 1,692 classes.

    Raises:
        DataError: the archives are not there and cannot be downloaded (the message says where to put them); the
            folder ``path`` is missing or does not have 1,623 characters; an image cannot be read.
    """
    parts = _downloaded(size) if path is None else _unpacked(Path(path).expanduser().resolve(), size)
    whole = convert(parts.splits, channels=1)[ALL]
    data = choose("omniglot", whole, parts.classes, shuffled(STANDARD, seed))
    return rotate(data) if rotations else data


def _downloaded(size: int) -> Parts:
    key = "".join(archive.md5[:8] for archive in _archives())
    return cached(f"omniglot{size}", key, lambda: _read(size))


def _archives() -> list[Remote]:
    from torchvision.datasets import Omniglot

    prefix = Omniglot.download_url_prefix
    return [Remote(f"{prefix}/{name}.zip", f"{name}.zip", md5) for name, md5 in Omniglot.zips_md5.items()]


def _read(size: int) -> Parts:
    """Unpack the archives into a temporary folder, and decode their images."""
    archives = fetch("omniglot", _archives(), INSTEAD)
    with tempfile.TemporaryDirectory(dir=paths.downloads(), prefix="omniglot-") as place:
        for archive in archives:
            unpack(archive, Path(place))
        return decode(_files(Path(place).resolve()), size)


def unpack(archive: Path, place: Path) -> None:
    """Unpack a zip archive into ``place``; an archive that would write outside of it is a DataError."""
    inside = place.resolve()
    with zipfile.ZipFile(archive) as content:
        for name in content.namelist():
            if not (inside / name).resolve().is_relative_to(inside):
                raise DataError(f"{archive} would write {name} outside of its folder: get it from its source again")
        content.extractall(inside)


def _unpacked(root: Path, size: int) -> Parts:
    files = _files(root)
    if (count := len(files[ALL])) != (total := sum(STANDARD.values())):
        raise DataError(
            f"{root} has {count} characters, all of Omniglot has {total}: unpack images_background.zip and "
            'images_evaluation.zip there, or divide this folder by alphabet: alphabets(path), data="omniglot:PATH"'
        )
    return keep(root, files, size)


def alphabets(
    path: str | Path,
    test: Names | None = None,
    val: Names | None = None,
    size: int = 28,
    rotations: bool = True,
    seed: int = 0,
) -> Data:
    """Load a folder of alphabets, with different alphabets in train, val and test; the classes are their characters.

    Images are uint8, (count, 1, size, size), white strokes on black: if they are bright on average, all are inverted.
    The images are decoded once and cached, as by `folder.folder`. Identical images with the same alphabet, character
    and name count once; the two small background sets have some.

    Args:
        path: the folder; it, or the folders in it, have the form ``<alphabet>/<character>/<image>``.
        test: the alphabets to test on, as in ``("Korean", "Sanskrit")`` or ``"Korean+Sanskrit"``. None lets ``seed``
            choose about 15 % of the alphabets, at least one.
        val: the same for validation; ``()`` leaves that part empty.
        size: height and width in pixels (bilinear with antialiasing).
        rotations: whether characters rotated by 90, 180 and 270 degrees are classes, too (see `classes.rotate`).
        seed: chooses the alphabets of parts that are None.

    Raises:
        DataError: the folder is missing or empty; an image is in no alphabet or cannot be read; an alphabet that is
            named is not there, or is named for both test and val; no alphabet is left to train on.
    """
    root = Path(path).expanduser().resolve()
    files = _files(root)
    part_of = _divide(root, sorted({_alphabet(name) for name in files[ALL]}), _names(test), _names(val), seed)
    parts = keep(root, files, size)
    chosen: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(parts.classes):
        chosen[part_of[_alphabet(name)]].append(label)
    data = choose(root.name, convert(parts.splits, channels=1)[ALL], parts.classes, chosen)
    return rotate(data) if rotations else data


def _alphabet(character: str) -> str:
    return character.rpartition("/")[0]


def _names(given: Names | None) -> list[str] | None:
    if isinstance(given, str):
        return [name for name in given.split("+") if name not in ("", "()")]
    return None if given is None else list(given)


def _divide(root: Path, known: list[str], test: list[str] | None, val: list[str] | None, seed: int) -> dict[str, str]:
    """Choose the part of every known alphabet; ``seed`` chooses those for which ``test`` or ``val`` is None."""
    named = [*(test or ()), *(val or ())]
    if unknown := sorted(set(named) - set(known)):
        raise DataError(f"{root} has no alphabet {', '.join(unknown)}; known: {', '.join(known)}")
    if twice := sorted(set(test or ()) & set(val or ())):
        raise DataError(f"{', '.join(twice)} cannot be in both test and val: name different alphabets")
    free = [name for name in known if name not in named]
    share = max(1, round(HELD_OUT * len(known)))
    counts = {part: share for part, given in (("test", test), ("val", val)) if given is None}
    if (left := len(free) - sum(counts.values())) < 1:
        raise DataError(
            f"{root} has {len(known)} alphabets ({', '.join(known)}), and none is left to train on beside those for "
            "test and val: add some, or name fewer; val=() leaves that part empty"
        )
    chosen = shuffled({**counts, "train": left}, seed)
    drawn = {free[index]: part for part, indices in chosen.items() for index in indices}
    return drawn | dict.fromkeys(test or (), "test") | dict.fromkeys(val or (), "val")


def _files(root: Path) -> Files:
    """List the images below ``root`` by ``alphabet/character``, sorted, at whatever depth the alphabets are."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: {LAYOUT}")
    found: dict[str, dict[str, str]] = {}
    for path in sorted(image_files(root)):
        *folders, name = os.path.relpath(path, root).split(os.sep)
        if len(folders) < 2:
            raise DataError(f"{path} is in no alphabet, {LAYOUT}: move it")
        images = found.setdefault("/".join(folders[-2:]), {})
        if name not in images:
            images[name] = path
        elif not filecmp.cmp(images[name], path):  # another drawing, not a copy
            images[path] = path
    if not found:
        raise DataError(f"no images in {root}: {LAYOUT}")
    return {ALL: {character: list(found[character].values()) for character in sorted(found)}}
