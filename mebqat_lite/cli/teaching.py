"""The commands of a course: assignments and grade for instructors, check-submission for students."""

from __future__ import annotations

import argparse
from pathlib import Path

from mebqat_lite import paths
from mebqat_lite.cli.shared import Commands, print_written

PAGES = ("feedback", "answers", "alike.html")


def add_assignments(commands: Commands) -> None:
    """Define ``mebqat-lite assignments``."""
    command = commands.add_parser("assignments", help="write the student versions of the assignments, and zips of them")
    command.add_argument("--source", type=Path, help="folder of NAME/NAME.ipynb; default: the checkout's masters")
    command.add_argument("--out", dest="folder", metavar="OUT", type=Path, help="folder; default: results/assignments")
    command.set_defaults(run=run_assignments)


def run_assignments(arguments: argparse.Namespace) -> int:
    """Write what students are given."""
    from mebqat_lite.course.classroom.release import release

    source = arguments.source or _checkout_folder("source")
    print_written(release(source, arguments.folder or paths.results() / "assignments"))
    return 0


def add_grade(commands: Commands) -> None:
    """Define ``mebqat-lite grade``."""
    command = commands.add_parser(
        "grade", help="grade a folder or a zip of submissions: grades.csv and feedback as HTML"
    )
    command.add_argument("submissions", type=Path, help="folder with STUDENT/NAME.ipynb, or a platform's zip")
    command.add_argument("--graders", type=Path, help="folder of NN_topic.py; default: the checkout's")
    command.add_argument("--roster", type=Path, help="CSV file of the students; Moodle's or Canvas's export")
    command.add_argument(
        "--deadlines", type=Path, help="CSV file: assignment,deadline,percent_per_day; writes late.csv"
    )
    command.add_argument("--received", type=Path, help="CSV file of when each came, such as Moodle's grading worksheet")
    command.add_argument("--student", help="grade this one's submissions anew, and no other's")
    command.add_argument("--variant", type=int, default=0, help="another number gives other random inputs")
    command.add_argument("--jobs", type=int, help="how many parts to grade at a time; default: one per core")
    command.add_argument("--out", dest="folder", metavar="OUT", type=Path, help="folder; default: results/grades")
    command.add_argument("--require-sandbox", action="store_true", help="grade only if nothing of this machine is open")
    command.set_defaults(run=run_grade)


def run_grade(arguments: argparse.Namespace) -> int:
    """Grade all submissions, print a line for each, and write grades and feedback."""
    from mebqat_lite.course.classroom.course import grade_folder, notice
    from mebqat_lite.course.classroom.roster import Roster
    from mebqat_lite.course.classroom.sandbox import require_isolation
    from mebqat_lite.course.classroom.sheets import summary

    roster = Roster.read(arguments.roster) if arguments.roster else None
    out = arguments.folder or paths.results() / "grades"
    print(notice())
    if arguments.require_sandbox:
        require_isolation()
    graders = arguments.graders or _checkout_folder("graders")
    graded, found = grade_folder(
        arguments.submissions, graders, out, arguments.variant, arguments.jobs, roster=roster,
        student=arguments.student or "", deadlines=arguments.deadlines, received=arguments.received,
    )  # fmt: skip
    print(summary(graded, found))
    print_written(sorted(path for path in out.iterdir() if path.suffix == ".csv" or path.name in PAGES))
    return 0


def add_check_submission(commands: Commands) -> None:
    """Define ``mebqat-lite check-submission``."""
    command = commands.add_parser("check-submission", help="see what a grader will see of your notebook")
    command.add_argument("notebook", type=Path, help="the notebook that you will hand in")
    command.set_defaults(run=run_check_submission)


def run_check_submission(arguments: argparse.Namespace) -> int:
    """Print which cells count; the status is 1 if something is not written or cannot be called."""
    from mebqat_lite.course.classroom.dry_run import report

    lines, good = report(arguments.notebook)
    print("\n".join(lines))
    return 0 if good else 1


def _checkout_folder(name: str) -> Path:
    """A folder of the assignments, which only a checkout of the repository has."""
    root = paths.checkout()
    if root is None:
        raise FileNotFoundError(
            f"the assignments' {name} are in a checkout of the repository, not in a wheel: name them"
        )
    return root / "notebooks" / "assignments" / name
