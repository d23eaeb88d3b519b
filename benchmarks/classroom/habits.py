"""Right answers in the forms that students give them: each gets all points, whatever stands around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.classroom.made import FOUR, ONE, SEVEN, SIX, TWO, Case, master, solved, written

SQNR = "def sqnr(x, y):\n    return 10 * torch.log10(x.pow(2).sum() / (x - y).pow(2).sum())\n"
RANGE = """def affine_range(x, bits):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / (2**bits - 1)
    return step, round(-low / step)
"""
STRAIGHT = """class RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


round_ste = RoundSTE.apply
ENDS = lambda bits, signed: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)"""
LSQ = """def lsq(x, step, bits, signed):
    low, high = ENDS(bits, signed)
    scale = 1 / (x.numel() * high) ** 0.5
    s = step * scale + (step - step * scale).detach()
    return s * round_ste((x / s).clamp(low, high))"""
BY_SGD = """def qat_step(w, x, y, step, bits, lr):
    w = nn.Parameter(w.clone())
    optimizer = torch.optim.SGD([w], lr=lr)
    (F.linear(x, lsq(w, torch.tensor(step), bits, True)) - y).pow(2).mean().backward()
    optimizer.step()
    return w"""
BY_NUMPY = """def draw_step(candidates, guaranteed, m, seed, step):
    picks = np.random.default_rng([seed, step]).integers(len(candidates), size=m - len(guaranteed))
    return tuple(guaranteed) + tuple(candidates[i] for i in picks)"""
COUNTED = """def mean_gradients(gradients, pairs, limit):
    sums, uses = OrderedDict(), Counter()
    for pair in pairs:
        for name, g in gradients[pair].items():
            sums.setdefault(name, None)
            if g is not None:
                sums[name] = g.clone() if sums[name] is None else sums[name] + g
                uses[name] += 1
    for name in [name for name in sums if sums[name] is not None]:
        sums[name] = (sums[name] / uses[name]).clip(-limit, limit)
    return sums"""
NORM = """def normalized(support, query, policy, stored, bits):
    known, asked = support.numpy(), query.numpy()
    seen = known.reshape(-1, *known.shape[2:])
    if policy == "batch":
        seen = np.concatenate([seen, asked])
    mean, var = seen.mean((0, 2, 3)), seen.var((0, 2, 3))
    if policy == "stored":
        mean, var = (t.numpy() for t in stored[bits])
    spread = np.sqrt(var + 1e-5)[:, None, None]
    return [(v - mean[:, None, None]) / spread for v in (known, asked)]"""
LOGITS = """def proto_logits(w, support, labels, query, bits):
    few = quantize(w.double(), bits)
    means = torch.stack([support[labels == n].double().mean(0) for n in labels.unique()])
    return -torch.cdist(query.double() @ few.T, means @ few.T).square()"""
DECIDE = """def decide(table, needed, budget, margin):
    rows = [Row(name, Cost.total(row, needed), Cost.worst(row, needed)) for name, row in table.items()]
    rows = [row for row in rows if row.cost <= budget and row.worst > -math.inf]
    best = max((row.worst for row in rows), default=0)
    return min([row for row in rows if row.worst >= best - margin], key=lambda row: row.cost, default=Row("none")).name
"""
ROWS = """@dataclass
class Row:
    name: str
    cost: float = 0.0
    worst: float = 0.0


class Cost(enum.Enum):
    ONE = 1

    @staticmethod
    def total(row, needed):
        return row["backprops"] * (len(needed) if row["dedicated"] else 1)

    @staticmethod
    def worst(row, needed):
        return min(row["accuracy"].get(pair, -math.inf) for pair in needed)"""
WORST = """def worst_pairs(accuracy, reference, k):
    lost = pd.Series(reference) - pd.Series(accuracy)
    return tuple(lost.dropna().sort_values(ascending=False).index[:k])"""


def right(
    name: str,
    assignment: str,
    parts: Mapping[str, str | None],
    above: Sequence[str] = (),
    below: Sequence[str] = (),
    says: tuple[str, ...] = (),
) -> Case:
    """A notebook that gets all points."""
    return Case("right", name, assignment, written(solved(assignment, parts, above, below)), says=says)


def in_other_order() -> Case:
    """The parts from the last to the first, and the imports below them all."""
    made = master(ONE)
    made["cells"] = made["cells"][::-1]
    return Case("right", "from_below", ONE, written(made))


def of_cells() -> list[Case]:
    """Other cells: magics, shells, plots, what raises, what runs on, what is written again."""
    later = "LEVELS = 2\nTEN = 1\ndef power(x):\n    return 0.0"
    constants = "TEN: int = 2 * 5\nA, B = 10, 1\nLEVELS = lambda bits: 2**bits - 1"
    uses = "def sqnr(x, y):\n    return TEN * B * math.log10(power(x) / power(x - y))"
    helper = "def power(x):\n    return x.double().pow(2).sum().item()"
    levels = RANGE.replace("(2**bits - 1)", "LEVELS(bits)")
    magics = ["%matplotlib inline\n!pip install seaborn\nfiles = !ls\n%load_ext x", "%%bash\nrm -r *", "%%time\nA = 3",
              "%%writefile answer.py\nimport nothing", "?sqnr", "display(3)"]  # fmt: skip
    raises = ["import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", "bits = {[2, 4, 8]}", "x =",
              "from google.colab import drive\nimport numpy as np\ndrive.mount('/content')", "name = input('who?')",
              "open('data.csv')", "def f(x, y=unknown): ..."]  # fmt: skip
    said = ("google", "EOFError", "FileNotFoundError", "NameError", "TypeError")
    first, stub = "def sqnr(x, y):\n    return 10 * torch.log(x.sum() / y.sum())", "def sqnr(x, y):\n    return ..."
    prints = f"print('x' * 10**6)\n{SQNR}print(sqnr(torch.ones(2), torch.zeros(2)))"
    windows = RANGE.replace("    ", "\t").replace("\n", "\r\n")
    return [
        right("magics", ONE, {"sqnr": "%%time\n" + SQNR, "affine_range": "%%capture out\n" + RANGE}, magics),
        right("raises", ONE, {"sqnr": SQNR.replace("torch.log10", "np.log10")}, raises, says=said),
        right("constants", ONE, {"sqnr": uses, "affine_range": levels}, [constants, helper], [later]),
        right("helper_below", ONE, {"sqnr": uses, "affine_range": levels}, [constants], [helper]),
        right("attempts", ONE, {"sqnr": first + "\n"}, below=[SQNR, stub], says=("number .* counts",)),
        right("runs_on", ONE, {}, ["while True:\n    pass"], says=("takes? longer",)),
        right("exits", ONE, {}, ["import os\nos._exit(0)"], says=("only imports",)),
        right("prints", ONE, {"sqnr": prints, "affine_range": windows}),
        in_other_order(),
    ]


def of_functions() -> list[Case]:
    """A part that is no ``def``, or one of an unusual form, or whose value is of another kind."""
    in_class = "class Sqnr:\n    def __call__(self, x, y):\n        return 20 * np.log10(np.linalg.norm(x) / "
    in_class += "np.linalg.norm(x - y))\n\nsqnr = Sqnr()"
    in_lambda = "sqnr = lambda x, y: [10 * torch.log10(v) for v in [x.pow(2).sum() / (x - y).pow(2).sum()]][0]"
    partly = "from functools import partial\nfull = lambda base, x, bits: _range(x, bits)\n"
    partly += RANGE.replace("affine_range", "_range") + "affine_range = partial(full, 10)"
    inside = (
        f"if torch.__version__:\n    {RANGE.replace(chr(10), chr(10) + '    ')}\nelse:\n    def affine_range(): ..."
    )
    inside = inside.replace("(x, bits):", "(x: torch.Tensor, bits: 'int' = 8, *, size: Real | None = None) -> tuple:")
    wrapped = "import functools\n\ndef logged(f):\n    @functools.wraps(f)\n    def g(*a):\n        print(a)\n"
    wrapped += f"        return f(*a)\n    return g\n\n@logged\n@torch.no_grad()\n{SQNR}"
    numbers = RANGE.replace("step, round(-low / step)", "[np.float32(step), torch.tensor(-low / step).round()]")
    recursive = "def sqnr(x, y, depth=300):\n    return sqnr(x, y, depth - 1) if depth else 10 * log10("
    recursive += "fsum(v * v for v in x.flatten().tolist()) / fsum(v * v for v in (x - y).flatten().tolist()))"
    stacked = '"""My answer."""\nassert 1\n' + RANGE.replace(
        "step, round(-low / step)", "torch.tensor([step, round(-low / step)])"
    )
    return [
        right("class", ONE, {"sqnr": in_class, "affine_range": numbers}, ["import numpy as np"]),
        right("lambda", ONE, {"sqnr": in_lambda, "affine_range": partly}),
        right("wrapped", ONE, {"sqnr": wrapped, "affine_range": inside}, ["from __future__ import annotations"]),
        right("recursive", ONE, {"sqnr": recursive, "affine_range": stacked}, ["from math import *"]),
    ]


def of_others() -> list[Case]:
    """Of the other assignments: classes, generators, NumPy, pandas, tuples for lists and lists for tuples."""
    sampler = "import random\n\ndef draw_step(candidates, guaranteed, m, seed, step):\n"
    sampler += "    chance = torch.Generator().manual_seed(seed * 10_000 + step)\n"
    sampler += "    return guaranteed + [candidates[torch.randint(len(candidates), (1,), generator=chance)] "
    sampler += "for _ in range(m - len(guaranteed))]"
    frames = ["import pandas as pd", "import enum, math\nfrom dataclasses import dataclass\n" + ROWS]
    return [
        right("straight_through", TWO, {"lsq": LSQ, "qat_step": BY_SGD}, [
            "import torch\nfrom torch import nn\nimport torch.nn.functional as F", STRAIGHT]),
        right("numpy_04", FOUR, {"draw_step": BY_NUMPY, "mean_gradients": COUNTED},
              ["import numpy as np\nfrom collections import Counter, OrderedDict"]),
        right("torch_04", FOUR, {"draw_step": sampler}, below=["def draw_step(*args):\n    raise NotImplementedError"]),
        right("numpy_06", SIX, {"normalized": NORM, "proto_logits": LOGITS}, ["import numpy as np"]),
        right("frames_07", SEVEN, {"decide": DECIDE, "worst_pairs": WORST}, frames),
    ]  # fmt: skip


def cases() -> list[Case]:
    """All right ones."""
    return [*of_cells(), *of_functions(), *of_others()]
