"""Run the jobs of a comparison as a sweep: an engine runs them, and jobs that fail are tried again.

Each job has one result file. If a sweep is killed and called again, it only runs the jobs that have no result yet.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from mebqat_lite.experiments.engines import Record, Stream, Task, opened
from mebqat_lite.experiments.jobs import Job, Outcome, Variant, run_job, start_path, train_start
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.files import locked
from mebqat_lite.loop import Costs, Run
from mebqat_lite.paths import PACKAGE

VERSION = 1  # the version of the result files
# Wings and modules that only ask for jobs or show their results, so that no number depends on them.
ASKING = {"cli", "course", "deploy", "collect", "compare", "demo", "engines", "frozen"}
ASKING |= {"painting", "plots", "results", "sweeps"}


class SweepError(RuntimeError):
    """Some jobs of a sweep failed."""


def key(*parts: Any) -> str:
    """Compute a checksum of ``parts`` (JSON and dataclasses), of this package's code and of PyTorch's version."""
    text = json.dumps([VERSION, torch.__version__, _code(), parts], sort_keys=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _code() -> str:
    """Compute a checksum of all modules that numbers may depend on: if one changes, old results do not count."""
    files = sorted(p for p in PACKAGE.rglob("*.py") if not ASKING & set(p.relative_to(PACKAGE).with_suffix("").parts))
    return hashlib.sha256("".join(_statements(path.read_text(encoding="utf-8")) for path in files).encode()).hexdigest()


def _statements(source: str) -> str:
    """The code of a module without its comments and docstrings, on which no number depends."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@dataclass
class Sweep:
    """Runs tasks on an engine, tries failed ones again after the others, and collects those that fail for good.

    Args:
        stream: what an engine gives to run tasks.
        retries: how often a failed task is tried again.
        fresh: whether to run tasks that already have a result too.
        tell: called with a number of tasks that have just got a result, and whether the result was there before.
        failed: the tasks that failed for good.
    """

    stream: Stream
    retries: int = 1
    fresh: bool = False
    tell: Callable[[int, bool], Any] = lambda count, there: None
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason

    def run(self, tasks: Iterable[Task]) -> dict[str, Any]:
        """Run the tasks and return the values of those that succeed, by name, in the order of ``tasks``.

        The others are added to ``failed``.
        """
        tasks = list(tasks)
        records = {} if self.fresh else {task.name: record for task in tasks if (record := task.found())}
        self.tell(len(records), True)
        todo = [task for task in tasks if task.name not in records]
        self._attempt(todo, records)
        for _ in range(self.retries):
            again = [task for task in todo if "error" in records[task.name]]
            silent = [task for task in again if "lost" in records[task.name]]
            self._attempt([task for task in again if task not in silent], records)
            for task in silent:  # one at a time: it then has all the memory, and no other job dies with it
                self._attempt([task], records)
        self.failed |= {task.name: records[task.name]["error"] for task in tasks if "error" in records[task.name]}
        return {task.name: records[task.name]["value"] for task in tasks if "value" in records[task.name]}

    def _attempt(self, todo: Sequence[Task], records: dict[str, Record]) -> None:
        """Run tasks and put their records into ``records``; tasks that were lost before they began are run again."""
        for task in todo:
            if task.read():  # an old record must not look like one of this attempt
                task.result.unlink()
        while todo:
            left: dict[str, Task] = {task.name: task for task in todo}
            reason: BaseException = EOFError("it ended early")
            try:
                for name, answer in self.stream(todo):
                    if isinstance(answer, BaseException):
                        reason = answer
                    else:
                        del left[name]
                        records[name] = answer
                        self.tell("value" in answer, False)
            except Exception as error:  # the whole pool failed; the errors of jobs are records
                reason = error
            todo = self._without_answer(left, reason, records, len(left) < len(todo))

    def _without_answer(
        self, left: dict[str, Task], reason: BaseException, records: dict[str, Record], others: bool
    ) -> list[Task]:
        """Look at the result files of tasks without an answer, and return the tasks that had not begun.

        A task that had ended has its record in its file. A task that had begun, but not ended, gets a record that says
        so. If no task had begun and there were no answers of ``others`` either, all tasks get such a record, because
        they would be tried for ever.
        """
        files = {name: task.read() for name, task in left.items()}
        ended = {name: record for name, record in files.items() if {"value", "error"} & record.keys()}
        begun = [name for name, record in files.items() if record and name not in ended]
        silent = begun if begun or ended or others else list(left)
        records |= ended | dict.fromkeys(silent, _lost(reason))
        self.tell(sum("value" in record for record in ended.values()), False)
        return [task for name, task in left.items() if name not in ended and name not in silent]


def _lost(error: BaseException) -> Record:
    """Make the record of a task whose worker gave no answer, because it died or cannot import what the task needs."""
    cause = getattr(error, "cause", None) or error
    text = " ".join(str(cause).split())[:300]
    return {"error": f"its worker gave no answer ({type(cause).__name__}: {text})", "lost": True}


# ---------------------------------------------------------------- the jobs of a comparison


def run_jobs(
    setup: Setup,
    jobs: Sequence[Job],
    base: str,
    pairs: Sequence[str],
    budget: str,
    delivered: int,
    folder: str | Path,
    *,
    engine: str,
    workers: int | None,
    address: str,
    retries: int,
    fresh: bool,
    progress: bool,
) -> tuple[list[Run], list[Outcome]]:
    """Train the common FP network of each seed, and then run all jobs whose seed has one.

    Args:
        setup: what all jobs share.
        jobs: the jobs.
        base: the full-precision method that trains the common networks.
        pairs: the pairs at which jobs without a pair of their own are measured.
        budget: as in `jobs.within`.
        delivered: how many models share a budget, if a method trains one model per pair.
        folder: the folder of models and results. The other arguments are those of `compare.compare`.

    Returns:
        The runs of the common networks, by ascending seed, and the outcomes in the order of ``jobs``.

    Raises:
        SweepError: some jobs failed.
        BlockingIOError: another comparison is writing the folder.
    """
    if retries < 0:
        raise ValueError(f"retries must not be negative: {retries}")
    folder = Path(folder).resolve()  # workers may have another current folder
    starts = {seed: _start(setup, seed, base, folder) for seed in sorted({job.seed for job in jobs})}
    tasks = {job: _task(setup, job, pairs, budget, delivered if job.bits else 1, folder) for job in jobs}
    total = len(starts) + len(tasks)
    with opened(engine, workers, address) as stream:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), tqdm(total=total, desc="training", disable=not progress) as bar:
            sweep = Sweep(stream, retries, fresh, functools.partial(_show, bar))
            costs = sweep.run(starts.values())
            found = _run_in_order(sweep, tasks, {seed for seed, task in starts.items() if task.name in costs})
    if sweep.failed:
        raise SweepError(_complaint(sweep.failed, total, folder))
    runs = [Run(base, setup.recipe, Costs(**value)) for value in costs.values()]
    return runs, [Outcome.from_json(found[task.name]) for task in tasks.values()]


def _run_in_order(sweep: Sweep, tasks: Mapping[Job, Task], ready: Set[int]) -> dict[str, Any]:
    """Run the tasks whose seed is ``ready``, and after them those that start from the network of another job."""
    found: dict[str, Any] = {}
    for waits in (False, True):
        wave = {job: task for job, task in tasks.items() if bool(Variant.parse(job.variant).start) == waits}
        able = [job for job in wave if job.seed in ready and (not waits or _before(job) in found)]
        found |= sweep.run(wave[job] for job in able)
        lost = [task.name for job, task in wave.items() if job not in able]
        sweep.failed |= dict.fromkeys(lost, "the network that they start from failed")
    return found


def _before(job: Job) -> str:
    """Return the name of the job whose network a job starts from."""
    return Job(Variant.parse(job.variant).start, job.seed).name


def _start(setup: Setup, seed: int, base: str, folder: Path) -> Task:
    """Make the task that trains the common network of a seed."""
    path = start_path(folder, base, seed)
    run = functools.partial(_train_start, setup, seed, folder, base)
    return Task(path.with_suffix(".json"), run, key("start", setup, seed, base), (path,))


def _task(setup: Setup, job: Job, pairs: Sequence[str], budget: str, delivered: int, folder: Path) -> Task:
    """Make the task of a job; its key only covers what its numbers depend on."""
    path, measured = folder / f"{job.name}.safetensors", [job.bits] if job.bits else list(pairs)
    run = functools.partial(_run_job, setup, job, measured, folder, budget, delivered)
    return Task(folder / f"{job.name}.json", run, key("job", setup, job, measured, budget, delivered), (path,))


def _train_start(setup: Setup, seed: int, folder: Path, base: str) -> dict[str, int]:
    """Train a common network and return its costs as JSON."""
    return asdict(train_start(setup, seed, folder, base).costs)


def _run_job(*arguments: Any) -> dict[str, Any]:
    """Run a job and return its outcome as JSON."""
    return asdict(run_job(*arguments))


def _show(bar: tqdm, count: int, before: bool) -> None:
    """Show ``count`` more results in a progress bar, where those from before do not count for the speed."""
    if not before:
        bar.update(count)
    elif count and not bar.disable:
        bar.n, bar.initial = bar.n + count, bar.initial + count  # the speed is computed from n - initial
        bar.set_postfix_str(f"{bar.initial} found done")


def _complaint(failed: dict[str, str], total: int, folder: Path) -> str:
    """Say which jobs failed and why, with those of one reason together, and how to go on."""
    reasons: dict[str, list[str]] = {}
    for name, reason in failed.items():
        reasons.setdefault(reason, []).append(name)
    text = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    kept = f"what the others found is kept in {folder}; the same command goes on with what is missing"
    return f"{len(failed)} of {total} jobs failed: {text}; {kept}"
