"""Names of files and folders as they are shown."""

from __future__ import annotations

import os
import unicodedata

from mebqat_lite.course.classroom.submission import printable


def readable(name: str) -> str:
    """The name of a file or a folder in composed characters (NFC), also if it is no UTF-8 but Latin-1."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeError:
        text = name.encode("utf-8", "surrogateescape").decode("latin-1")
    return printable(unicodedata.normalize("NFC", text)).strip()
