"""Interactive views for the lessons. Each shows what a pure function ``compute(...)`` returns.

``import mebqat_lite`` leaves this package alone, so everything but the lessons works without ipywidgets.
"""

from mebqat_lite.course import of_the_lab

with of_the_lab():
    from mebqat_lite.course.widgets.allocations import layer_bits as layer_bits
    from mebqat_lite.course.widgets.decisions import decision_calculator as decision_calculator
    from mebqat_lite.course.widgets.drawing import draw_your_own as draw_your_own
    from mebqat_lite.course.widgets.embedding_plane import embedding_plane as embedding_plane
    from mebqat_lite.course.widgets.inner_steps import inner_steps as inner_steps
    from mebqat_lite.course.widgets.new_classes import challenge as challenge
    from mebqat_lite.course.widgets.norm_policies import norm_policies as norm_policies
    from mebqat_lite.course.widgets.paintings import paintings as paintings
    from mebqat_lite.course.widgets.pair_board import pair_board as pair_board
    from mebqat_lite.course.widgets.planes import bit_planes as bit_planes
    from mebqat_lite.course.widgets.playground import playground as playground
    from mebqat_lite.course.widgets.ste import straight_through as straight_through
    from mebqat_lite.course.widgets.visits import pair_visits as pair_visits
    from mebqat_lite.course.widgets.your_turn import your_turn as your_turn
