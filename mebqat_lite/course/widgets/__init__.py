"""Interactive views for the lessons. Each shows what a pure function ``compute(...)`` returns.

``import mebqat_lite`` leaves this package alone, so everything but the lessons works without ipywidgets.
"""

from mebqat_lite.course import of_the_lab

with of_the_lab():
    from mebqat_lite.course.widgets.allocations import layer_bits
    from mebqat_lite.course.widgets.decisions import decision_calculator
    from mebqat_lite.course.widgets.drawing import draw_your_own
    from mebqat_lite.course.widgets.embedding_plane import embedding_plane
    from mebqat_lite.course.widgets.inner_steps import inner_steps
    from mebqat_lite.course.widgets.new_classes import challenge
    from mebqat_lite.course.widgets.norm_policies import norm_policies
    from mebqat_lite.course.widgets.paintings import paintings
    from mebqat_lite.course.widgets.pair_board import pair_board
    from mebqat_lite.course.widgets.planes import bit_planes
    from mebqat_lite.course.widgets.playground import playground
    from mebqat_lite.course.widgets.ste import straight_through
    from mebqat_lite.course.widgets.visits import pair_visits
    from mebqat_lite.course.widgets.your_turn import your_turn

__all__ = [
    "bit_planes",
    "challenge",
    "decision_calculator",
    "draw_your_own",
    "embedding_plane",
    "inner_steps",
    "layer_bits",
    "norm_policies",
    "paintings",
    "pair_board",
    "pair_visits",
    "playground",
    "straight_through",
    "your_turn",
]
