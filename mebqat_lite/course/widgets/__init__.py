"""Interactive views for the lessons. Each shows what a pure function ``compute(...)`` returns.

``import mebqat_lite`` leaves this package alone, so everything but the lessons works without ipywidgets.
"""

try:
    from mebqat_lite.course.widgets.comparison import method_comparison
    from mebqat_lite.course.widgets.costs import cost_calculator
    from mebqat_lite.course.widgets.deploy import deployment
    from mebqat_lite.course.widgets.drawing import draw_your_own
    from mebqat_lite.course.widgets.episodes import episode_viewer
    from mebqat_lite.course.widgets.explorer import explorer
    from mebqat_lite.course.widgets.heat_map import pair_map
    from mebqat_lite.course.widgets.norm_policies import norm_policies
    from mebqat_lite.course.widgets.playground import playground
    from mebqat_lite.course.widgets.ste import straight_through
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("anywidget", "ipywidgets"):
        raise
    raise ModuleNotFoundError('the widgets need ipywidgets: pip install "mebqat_lite[lab]"', name=error.name) from error

__all__ = [
    "cost_calculator",
    "deployment",
    "draw_your_own",
    "episode_viewer",
    "explorer",
    "method_comparison",
    "norm_policies",
    "pair_map",
    "playground",
    "straight_through",
]
