"""What the check of a release finds: other versions, missing files, files too many, and links that lead nowhere."""

import os
import sys

import pytest
import release
from release import Problem

CITATION = "version: 1.2.0\ndate-released: 2026-01-31\n"
CHANGES = "# Changes\n\n## 1.2.0 - 2026-01-31\n\n- New.\n\n## 1.1.0 - 2025-12-24\n"


def test_version_and_date_are_those_of_the_newest_changes():
    assert release.agreed("1.2.0", CITATION, CHANGES) == "1.2.0 - 2026-01-31"
    later = CHANGES.replace("## 1.2.0", "## Unreleased\n\n- Newer.\n\n## 1.2.0")
    assert release.agreed("1.2.0", CITATION, later) == "1.2.0 - 2026-01-31"


@pytest.mark.parametrize(
    "said",
    [
        ("1.2.1", CITATION, CHANGES),
        ("1.2.0", CITATION.replace("1.2.0", "1.1.0"), CHANGES),
        ("1.2.0", CITATION.replace("-31", "-30"), CHANGES),
        ("1.2.0", CITATION, CHANGES.replace("1.2.0", "1.3.0")),
        ("1.2.0", CITATION, "# Changes\n"),
    ],
)
def test_another_version_or_date_is_a_problem(said):
    with pytest.raises(Problem, match=f"__version__ is {said[0]}, CITATION.cff says .* CHANGELOG.md "):
        release.agreed(*said)


def test_changes_without_a_version_are_not_released(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release.mebqat_lite, "__version__", "1.2.0")
    (tmp_path / "CITATION.cff").write_text(CITATION)
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)
    assert release.version(tmp_path) == "1.2.0 - 2026-01-31"
    (tmp_path / "CHANGELOG.md").write_text(CHANGES.replace("## 1.2.0", "## Unreleased\n\n## 1.2.0"))
    with pytest.raises(Problem, match="under Unreleased"):
        release.version(tmp_path)


def test_a_wheel_has_the_package_and_the_data_and_nothing_else():
    sources = ["mebqat_lite/a.py", "mebqat_lite/a.css", "data/a.npz", "data/demo.png", "tests/test_a.py", "README.md"]
    names = ["mebqat_lite/a.py", "mebqat_lite/a.css", "mebqat_lite/_data/a.npz", "mebqat_lite-1.dist-info/METADATA"]
    assert release.differences(names, sources) == []
    found = release.differences([*names[1:], "mebqat_lite/_data/b.npz", "tests/test_a.py"], sources)
    assert found == [
        "mebqat_lite/a.py is not in it",
        "mebqat_lite/_data/b.npz is not of the repository",
        "tests/test_a.py is not of the repository",
    ]


def test_links_to_files_are_found():
    page = "[a](https://example.org) ![b](data/b.png) [c](#part) [`d`](notebooks)"
    assert release.links_to_files(page) == ["data/b.png", "notebooks"]


def test_an_installed_program_sees_an_empty_folder_and_nothing_of_the_caller(tmp_path, monkeypatch):
    programs = tmp_path / "environment" / release.BIN
    for folder in (programs, tmp_path / "empty", tmp_path / "home"):
        folder.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("MEBQAT_DATA", "here")
    code = "import os; print(os.getcwd(), os.path.expanduser('~'), {'PYTHONPATH', 'MEBQAT_DATA'} & set(os.environ))"
    found = release.installed(tmp_path, "python", "-c", code)
    assert found.split() == [str(tmp_path / "empty"), str(tmp_path / "home"), "set()"]


def test_a_program_that_fails_is_a_problem_with_its_last_words():
    with pytest.raises(Problem, match="exit status 3: too bad"):
        release.run(sys.executable, "-c", "import sys; print('too bad', file=sys.stderr); sys.exit(3)")


def whole(folder):
    (folder / "dist").mkdir()
    (folder / "dist" / "a.whl").touch()
    return "whole"


def broken(folder):
    raise Problem(f"{folder}{os.sep}dist is empty")


def test_each_check_has_a_line_and_only_a_whole_release_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "CHECKS", [(whole, ""), (broken, "mend it")])
    assert release.main() == 1
    expected = ["[OK] whole: whole", "[FAIL] broken: dist is empty -> mend it", "", "The release is not ready: broken."]
    assert capsys.readouterr().out.splitlines() == expected and not list(tmp_path.iterdir())
    monkeypatch.setattr(release, "CHECKS", [(whole, "")])
    assert release.main() == 0
    assert "ready" in capsys.readouterr().out and (tmp_path / "dist" / "a.whl").is_file()
