"""Interactive views for the lessons. Each shows what a pure function ``compute(...)`` returns.

``import mebqat_lite`` leaves this package alone, so everything but the lessons works without ipywidgets.
"""

from mebqat_lite.course import of_the_lab

with of_the_lab():
    from mebqat_lite.course.widgets.comparison import method_comparison
    from mebqat_lite.course.widgets.deploy import deployment
    from mebqat_lite.course.widgets.drawing import draw_your_own
    from mebqat_lite.course.widgets.episodes import episode_viewer
    from mebqat_lite.course.widgets.heat_map import pair_map
    from mebqat_lite.course.widgets.new_classes import challenge, embedding_plane
    from mebqat_lite.course.widgets.norm_policies import norm_policies
    from mebqat_lite.course.widgets.paintings import paintings
    from mebqat_lite.course.widgets.pair_board import pair_board
    from mebqat_lite.course.widgets.playground import playground
    from mebqat_lite.course.widgets.ste import straight_through

__all__ = [
    "challenge",
    "deployment",
    "draw_your_own",
    "embedding_plane",
    "episode_viewer",
    "method_comparison",
    "norm_policies",
    "paintings",
    "pair_board",
    "pair_map",
    "playground",
    "straight_through",
]
