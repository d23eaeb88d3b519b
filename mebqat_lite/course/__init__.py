"""What the lessons need besides the library: widgets, guesses, exercises with their graders, the classroom."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def of_the_lab() -> Iterator[None]:
    """Around imports that only the lessons need: where they are missing, the error says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("IPython", "anywidget", "ipywidgets", "traitlets"):
            raise
        words = f'the lessons need {error.name}: pip install "mebqat_lite[lab]"'
        raise ModuleNotFoundError(words, name=error.name) from error
