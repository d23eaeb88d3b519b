"""Interactive views for the lessons. Each shows what a pure function ``compute(...)`` returns.

``import mebqat_lite`` leaves this package alone, so everything but the lessons works without ipywidgets.
"""

try:
    from mebqat_lite.widgets.comparison import method_comparison
    from mebqat_lite.widgets.explorer import explorer
    from mebqat_lite.widgets.playground import playground
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "ipywidgets":
        raise
    raise ModuleNotFoundError('the widgets need ipywidgets: pip install "mebqat_lite[lab]"', name=error.name) from error

__all__ = ["explorer", "playground"]
