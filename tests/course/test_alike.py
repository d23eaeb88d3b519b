"""Code that two students share and few others have is shown side by side; what everybody writes is not."""

import json

import pytest
from made_course import RIGHT, graded, graders, hand_in, sheet, text
from submissions import FOLDER

from mebqat_lite.course.classroom import alike_page, course
from mebqat_lite.course.classroom.alike import LEAST_PIECES, LEAST_SHARE, alike
from mebqat_lite.course.classroom.cells import MOST_MAGICS
from mebqat_lite.course.classroom.kept import Graded
from mebqat_lite.course.classroom.pieces import LONGEST, WORDS, pieces
from mebqat_lite.course.classroom.release import handed_out
from mebqat_lite.course.classroom.submission import MOST_CODE

SHORT = """def double(x):
    low = x.min()
    high = x.max()
    return (high - low) / (2**3 - 1)
"""
LONG = '''def double(x, count=3):
    """Twice."""
    rng, found = torch.Generator().manual_seed(7), []
    for c in x.unique():
        members = (x == c).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=rng)]
        found.append(members[:count])
    pool = torch.cat(found)
    query = pool[torch.randperm(len(pool), generator=rng)[:count]]
    answers = (x[query][:, None] == x).int().argmax(1)
    return torch.stack(found), query, answers
'''
RENAMED = """def double(values: Tensor, k: int = 3) -> Tensor:
    # my own idea
    chance, parts = torch.Generator().manual_seed(7), []

    for kind in values.unique():
        own = (values == kind).nonzero()[
            :, 0
        ]
        own = own[torch.randperm(len(own), generator=chance)]; parts.append(own[:k])
    everything = torch.cat(parts)
    asked = everything[torch.randperm(len(everything), generator=chance)[:k]]
    right = (values[asked][:, None] == values).int().argmax(1)  # which
    return torch.stack(parts), asked, right
"""


def other(number):
    """A long answer that nobody else has."""
    lines = (f"    y{n} = x.f{number}_{n}() * {n}\n" for n in range(12))
    return f"def double(x):\n{''.join(lines)}    return y1\n"


def listed(code, handed_out=()):
    """The names of the pairs, of sources by student."""
    return [pair.students for pair in alike({name: {"double": source} for name, source in code.items()}, handed_out)[0]]


def test_names_comments_docstrings_annotations_and_blanks_do_not_matter():
    assert set(pieces(LONG)) == set(pieces(RENAMED)) and len(pieces(LONG)) > 60
    for change in (("7", "8"), (".unique", ".flatten"), ("generator=", "seed="), ("len(pool)", "max(pool)")):
        assert set(pieces(LONG.replace(*change))) != set(pieces(LONG))


def test_a_copy_under_other_names_is_found_with_the_lines_that_both_have():
    code = {"ann": LONG, "ben": RENAMED, **{f"s{n}": other(n) for n in range(58)}}
    assert listed(code) == [("ann", "ben")]
    [pair], _ = alike({name: {"double": source} for name, source in code.items()}, [])
    [same] = pair.parts
    assert same.share == 1 and set(range(3, 12)) <= same.lines[0] and 2 not in same.lines[0]
    assert {3, 5, 9} <= same.lines[1] and 2 not in same.lines[1]


@pytest.mark.parametrize("students", [3, 60])
def test_what_all_write_alike_is_no_copy_however_long_it_is(students):
    assert listed({f"s{n}": SHORT for n in range(students)}) == []
    assert listed({f"s{n}": LONG for n in range(students)}) == []
    two_ways = {f"s{n}": (SHORT, SHORT.replace("min", "amin"))[n % 2] for n in range(students)}
    assert listed(two_ways) == []


def test_three_lines_are_no_copy_even_if_only_two_have_them():
    assert listed({"ann": SHORT, "ben": SHORT, **{f"s{n}": other(n) for n in range(58)}}) == []


def test_short_answers_count_together_and_a_part_that_differs_does_not():
    parts = {f"p{n}": SHORT.replace("3", str(n)) for n in range(5)}
    code = {"ann": parts | {"last": LONG}, "ben": parts | {"last": other(0)}}
    code |= {f"s{n}": dict.fromkeys(parts, other(n)) for n in range(9)}
    [pair], _ = alike(code, [])
    assert pair.students == ("ann", "ben") and [part.function for part in pair.parts] == list(parts)


def test_the_code_of_the_hand_out_does_not_count():
    mine = [LONG + f"\n\ndef helper():\n    return '{name}'\n" for name in ("ann", "ben")]
    code = {"ann": mine[0], "ben": mine[1], **{f"s{n}": other(n) for n in range(8)}}
    assert listed(code) == [("ann", "ben")] and listed(code, [LONG]) == []


def test_the_hand_out_is_the_master_without_its_solutions():
    name = "06_new_classes_at_any_bitwidth"
    cells = handed_out(FOLDER / "graders", name)
    assert "def device_episode(labels, ways, shots, count, seed):\n    return ..." in cells
    assert not any("SOLUTION" in cell or "randperm" in cell for cell in cells) and any(
        "step =" in cell for cell in cells
    )
    assert handed_out(FOLDER, "no_such") == []


def test_a_group_of_ten_is_found_among_sixty():
    code = {f"s{n}": LONG if n < 10 else other(n) for n in range(60)}
    assert len(listed(code)) == 45


@pytest.mark.parametrize(
    "spoiled",
    ["def double(x:", "-" * 9000 + "1", "(" * 9000, "x = " + "1 + " * 4000 + "1", "0x" + "f" * 9000, "\0",
     "a = 1\n" * LONGEST],
)  # fmt: skip
def test_a_spoiled_cell_is_not_compared_and_costs_no_other(spoiled):
    code = {"ann": LONG, "ben": RENAMED, "eve": spoiled, "x": other(1)}
    pairs, left_out = alike({name: {"double": source} for name, source in code.items()}, [spoiled])
    assert [pair.students for pair in pairs] == [("ann", "ben")]
    assert left_out == ["double of eve"] or spoiled.startswith("0x")


def test_a_notebook_with_ten_megabytes_of_code_or_of_magics_is_graded_and_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "grade", lambda submission, assignment, variant: ([], []))
    files = {"ann": RIGHT, "eve": text(("double", "x = 1\n" * (10 * 2**20 // 6))), "max": text(("", "%x\n" * 10_000))}
    hand_in(tmp_path / "submitted", {f"{name}/99_made.ipynb": content for name, content in files.items()})
    rows = graded(tmp_path)
    assert f"characters of code, more than {MOST_CODE:,}" in rows["eve"]["problem"]
    assert not rows["ann"]["problem"] and not rows["max"]["problem"]


def page(tmp_path, **sources):
    """Grade a notebook for each student, and read the page."""
    files = {f"{name}/99_made.ipynb": text(("double", source)) for name, source in sources.items()}
    hand_in(tmp_path / "submitted", files)
    graded(tmp_path)
    return (tmp_path / "grades" / "alike.html").read_text(encoding="utf-8")


@pytest.fixture
def still(monkeypatch):
    """Nothing is run."""
    monkeypatch.setattr(course, "grade", lambda submission, assignment, variant: ([], []))


def test_pairs_stand_side_by_side_escaped_and_with_what_it_means(tmp_path, still):
    hostile = LONG.replace("Twice", "</pre><script>alert(1)</script>")
    shown = page(tmp_path, **{"<b>ann": hostile, "ben": RENAMED, "carl": other(1), "dora": "def double(x:"})
    assert "1 of 6 pairs are alike" in shown and "a reason to look, and no proof" in shown
    assert shown.index("<h3>&lt;b&gt;ann and ben: ") < shown.index("own = own[")
    assert "&lt;script&gt;" in shown and "<script" not in shown and "<b>ann" not in shown and "http" not in shown
    assert "    <mark>pool = torch.cat(found)</mark>" in shown and "no Python: double of dora" in shown
    assert shown.count("<pre>") == shown.count("</pre>") == 2 and "f1_1" not in shown


def test_results_of_earlier_weeks_are_compared_too_and_nothing_is_graded_again(tmp_path, still):
    assert "0 of 0 pairs" in page(tmp_path, ann=LONG)
    (tmp_path / "submitted" / "ann" / "99_made.ipynb").unlink()
    assert "<h3>ann and ben: " in page(tmp_path, ben=RENAMED)
    assert {row["student"] for row in sheet(tmp_path, "grades")} == {"ann", "ben"}


def test_a_result_that_is_kept_without_its_code_is_left_out(tmp_path, still):
    page(tmp_path, ann=LONG, ben=LONG)
    path = tmp_path / "grades" / "results" / "ann" / "99_made.json"
    fields = json.loads(path.read_text())
    del fields["code"]
    path.write_text(json.dumps(fields))
    assert "0 of 1 pairs" in page(tmp_path)


def test_many_pairs_do_not_make_an_endless_page(tmp_path, monkeypatch):
    assignment = course.load_assignments(graders(tmp_path / "graders"))["99_made"]
    every = [Graded(f"s{n}", assignment, (), {}, code={"double": LONG}) for n in range(4)]
    every += [Graded(f"t{n}", assignment, (), {}, code={"double": other(n)}) for n in range(14)]
    alike_page.write_alike(tmp_path / "all.html", every, {})
    monkeypatch.setattr(alike_page, "MOST_PAIRS", 3)
    alike_page.write_alike(tmp_path / "few.html", every, {})
    all_, few = ((tmp_path / name).read_text() for name in ("all.html", "few.html"))
    assert all_.count("<h3>") == 6 and "6 of 153 pairs" in all_
    assert few.count("<h3>") == 3 and "Here are the 3 that share most" in few


def test_two_hundred_students_in_five_large_groups_are_no_pairs():
    code = {f"s{n}": {f"p{k}": LONG.replace("7", str(n // 40)) for k in range(2)} for n in range(200)}
    assert alike(code, [])[0] == []  # 3,900 pairs have the same code, and no code is rare


def test_less_than_a_piece_is_nothing():
    assert pieces("x = 1") == {} and pieces("x = y") == {} and WORDS > 3


def test_the_guide_says_the_thresholds():
    guide = " ".join((FOLDER / "INSTRUCTOR.md").read_text(encoding="utf-8").split())
    assert f"shares {LEAST_PIECES:g} such pieces, in parts in which {100 * LEAST_SHARE:g} % of what is rare" in guide
    assert (
        MOST_CODE // 10**6 == 1 and MOST_MAGICS == 100 and "a million characters of code, and a cell a hundred" in guide
    )
