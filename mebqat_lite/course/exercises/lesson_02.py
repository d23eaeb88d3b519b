"""Exercises of lesson 02: the straight-through estimator, training with it, the gradients of a clip and a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect, in_words, numbers
from mebqat_lite.quantizers import unit_activation

Student = Callable[..., Any]


def _uniform(low: float, high: float, rng: Generator) -> float:
    return float(torch.empty(()).uniform_(low, high, generator=rng))


def _inside_a_step(codes: Tensor, rng: Generator) -> Tensor:
    """x / step around ``codes``, away from the middle of two levels and from the levels themselves."""
    side = torch.randint(0, 2, codes.shape, generator=rng) * 2 - 1
    return codes + side * torch.empty(codes.shape).uniform_(0.05, 0.42, generator=rng)


# --- 2.1 -------------------------------------------------------------------------------------------------------


def _ste_round(x: torch.Tensor, bits: int) -> torch.Tensor:
    """q_b(clip(x, 0, 1)), same shape as ``x``; the gradient is 1 inside the clip and 0 outside."""
    levels = 2**bits - 1
    clipped = x.clamp(0, 1)  # its gradient is the gate
    rounded = torch.round(clipped * levels) / levels
    return clipped + (rounded - clipped).detach()


def _grade_ste_round(student: Student, rng: Generator) -> None:
    for bits in (2, 1, 3, 4):
        levels = 2**bits - 1
        codes = torch.randint(-levels, 2 * levels + 1, (5, 40), generator=rng)
        codes[0, :4] = torch.tensor([-levels, -1, levels + 1, 2 * levels])  # outside on both sides, always
        free = _inside_a_step(codes, rng)
        free[1, :2] = torch.tensor([-0.3, levels + 0.3])  # just outside
        codes[1, :2] = torch.tensor([0, levels])
        x = (free / levels).requires_grad_()
        upstream = torch.randn(x.shape, generator=rng)
        out = student(x, bits)
        nearest = codes.clamp(0, levels) / levels
        expect(out, nearest, f"bits = {bits}, the values", _wrong_values(x.detach(), levels))
        _grade_gate(x, out, upstream, bits)


def _wrong_values(x: Tensor, levels: int) -> list[tuple[str, Tensor]]:
    v = x.clamp(0, 1)
    return [
        ("x comes back: round it", x),
        ("x is clipped, but not rounded: the forward pass must give the levels", v),
        ("it does not clip: values outside 0 and 1 must become 0 and 1", (x * levels).round() / levels),
        ("these are the codes: divide them by 2^bits - 1", (v * levels).round()),
        ("it has 2^bits steps: 2^bits levels have 2^bits - 1 steps between them",
         (v * (levels + 1)).round() / (levels + 1)),
        ("it rounds down (floor): use torch.round", (v * levels).floor() / levels),
        ("it rounds to 0 and 1 only: multiply by 2^bits - 1 before rounding", v.round()),
    ]  # fmt: skip


def _grade_gate(x: Tensor, out: Tensor, upstream: Tensor, bits: int) -> None:
    """The gradient that comes back for ``upstream``, against the gate."""
    got = None
    if not isinstance(out, Tensor):
        raise Mistake(f"it returns a value of type {type(out).__name__}: return a tensor, for its gradient is needed")
    if out.requires_grad:
        (got,) = torch.autograd.grad(out, x, upstream.to(out.dtype), allow_unused=True)
    if got is None:
        raise Mistake(
            f"for bits = {bits} the values are right, but no gradient comes back: something (detach, no_grad or .data) "
            "cuts the way from x to the result. Detach only what rounding adds to the clipped x"
        )
    where, levels, v = f"bits = {bits}, the gradient of x", 2**bits - 1, x.detach()
    gate = torch.tensor([[0 < value < 1 for value in row] for row in v.tolist()])
    want = torch.where(gate, upstream, torch.zeros(()))
    size = "the gradient inside the clip is {}; it must be 1: what rounding adds is held constant by detach()"
    rounded = (v * levels).round() / levels
    expect(got, want, where, [
        ("the gradient is zero everywhere: torch.round's derivative is 0. Put what rounding adds into detach()", 0 * v),
        ("the gradient passes outside the clip too: there the output does not move, so it must be 0 where x is "
         "below 0 or above 1", upstream),
        ("it passes just outside the clip, where the output is 0 or 1: clip x before you round, not after",
         upstream * ((rounded >= 0) & (rounded <= 1))),
        ("the gradient is zero inside and passes outside: it is the other way round", upstream - want),
        ("the gradient passes above 1 too: it must be 0 there", upstream * (v > 0)),
        ("the gradient passes below 0 too: it must be 0 there", upstream * (v < 1)),
        ("the gradient stops where the output is 0 or 1, though x is still inside: clip x before you round, not after",
         upstream * ((rounded > 0) & (rounded < 1))),
        (size.format("2^bits - 1"), levels * want),
        (size.format("1 / (2^bits - 1)"), want / levels),
        (size.format("2"), 2 * want),
        (size.format("1/2"), want / 2),
        (size.format("-1"), -want),
        ("the gradient that arrives is lost: backward must return it times the gate", gate.float()),
        ("it returns the gradient that arrives times the output: times the gate", upstream * out.detach()),
        ("it returns the gradient that arrives times x: times the gate", upstream * v),
        ("it returns the gradient that arrives times the clipped x: times the gate", upstream * v.clamp(0, 1)),
    ])  # fmt: skip


ste_round = Exercise(
    "ste_round",
    "2.1: A rounding that learns",
    difficulty=1,
    minutes=10,
    question=r"""
    Write `ste_round(x, bits)`, which rounds activations as DoReFa does and has a useful gradient. `x` is a float tensor
    of any shape; the result is a tensor of the same shape.

    *Forward*: clip `x` to [0, 1], then round it to the nearest of the 2^bits levels k / (2^bits - 1).

    *Backward*: use the straight-through estimator. The gradient of the result with respect to `x` is 1 where
    0 < x < 1, and 0 outside. PyTorch must find it by itself: the check goes backward from your result.
    """,
    hints=[
        "x.clamp(0, 1) already has the gradient that is asked for. What is missing is the rounding, without its own.",
        "tensor.detach() gives the same values to the forward pass and hides them from the backward pass.",
        "clipped + (rounded - clipped).detach(): in the forward pass clipped cancels; the backward pass sees only the "
        "first term.",
    ],
    solution=_ste_round,
    grade=_grade_ste_round,
    package=unit_activation,
)

# --- 2.2 -------------------------------------------------------------------------------------------------------


def _qat(network, weights: tuple, quantize, batches: list, optimizer: torch.optim.Optimizer) -> list[float]:
    """Train float ``weights`` through ``quantize``, one step per batch; returns the loss of each step."""
    losses = []
    for images, labels in batches:
        logits = network([quantize(w) for w in weights], images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


RAW = {  # what PyTorch says, and what it means here
    "through the graph a second time": "the weights are quantized once for several steps, but they move in each: call "
    "quantize(w) anew for each batch",
    "does not require grad": "no gradient comes back from the loss: something (detach, no_grad or .data) cuts the way "
    "from it to the weights",
    "leaf Variable that requires grad": "the float weights are changed in place while PyTorch records what happens to "
    "them: let optimizer.step() update them",
    "modified by an inplace operation": "weights are changed in place between the forward pass and loss.backward(): "
    "update them only after it",
    "no attribute 'backward'": "backward is called on a number: the loss must stay a tensor until then, and item() is "
    "for the list of losses",
    "not implemented for 'Long'": "cross_entropy takes the logits first, then the labels",
    "Expected floating point type for target": "cross_entropy takes the logits as they are, not classes or 0 and 1",
    "only for scalar outputs": "the loss holds a number for each image: take their mean",
    "network() takes": "network takes two arguments, the list of weights and the images",
}


def _grade_qat(student: Student, rng: Generator) -> None:
    for bits in (3, 2):
        task = _Task.draw(bits, rng)
        weights = tuple(w.float().requires_grad_() for w in task.weights)  # a tuple: Student gives it as it is
        batches = [(x.float(), y) for x, y in task.batches]
        where = f"{len(batches)} batches at {bits} bits"
        try:
            losses = student(task.network, weights, task.quantize, batches, torch.optim.SGD(weights, lr=task.lr))
        except Mistake as error:
            _judge_forward(task, where)  # what the network was given may say more than the error
            raise in_words(error, RAW) from None
        if not task.seen:
            raise Mistake(f"for {where}: network is never called: logits = network(weights, images)")
        _judge_forward(task, where)
        right = task.run()
        for number, (w, end) in enumerate(zip(weights, right.ends, strict=True)):
            mistakes = [(message, run.ends[number]) for message, run in task.wrong_runs]
            expect(w, end.float(), f"{where}, weights[{number}] after training", mistakes)
        if (shape := numbers(losses, "a list of numbers").shape) != (len(batches),):
            found = f"{shape[0]} losses" if len(shape) == 1 else f"a {type(losses).__name__} of shape {tuple(shape)}"
            raise Mistake(f"it returns {found}: return a list with one number for each of the {len(batches)} batches")
        after = ("these are the losses after the steps: take each before its step", right.after)
        expect(losses, torch.tensor(right.losses), f"{where}, the losses", [after])


@dataclass
class _Run:
    """Where a training ends, its losses before and after each step, and how near a weight came to a threshold."""

    ends: list[Tensor]
    losses: list[float]
    after: Tensor
    margin: float


@dataclass
class _Task:
    """Two layers, (8, 6) and (4, 8), in float64, batches of different sizes, and what the network was given."""

    weights: list[Tensor]
    batches: list[tuple[Tensor, Tensor]]
    step: float
    bits: int
    lr: float = 0.5
    seen: list[list[Tensor]] = field(default_factory=list)

    @classmethod
    def draw(cls, bits: int, rng: Generator) -> _Task:
        """A task on whose way no weight comes so near a threshold that float32 could round it otherwise."""
        while True:
            step = _uniform(0.2, 0.4, rng)
            weights = [(2 * step * torch.randn(size, generator=rng)).double() for size in ((8, 6), (4, 8))]
            sizes = torch.randint(6, 12, (5,), generator=rng).tolist()
            batches = [
                (torch.randn(n, 6, generator=rng).double(), torch.randint(4, (n,), generator=rng)) for n in sizes
            ]
            task = cls(weights, batches, step, bits)
            if min(run.margin for run in (task.run(), *(run for _, run in task.wrong_runs))) > 1e-4:
                return task

    def quantize(self, w: Tensor) -> Tensor:
        """Signed codes times step; straight-through inside the clip. A Mistake unless ``w`` is a tensor."""
        if not isinstance(w, Tensor):
            raise Mistake(f"quantize gets a {type(w).__name__}: give it one weight tensor at a time, quantize(w)")
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        clipped = w.clamp(low * self.step, high * self.step)
        return clipped + ((clipped / self.step).round() * self.step - clipped).detach()

    def network(self, weights: Iterable[Tensor], x: Tensor) -> Tensor:
        """(batch, 6) -> logits (batch, 4); copies of the weights are kept. A Mistake if it is given something else."""
        given = [] if isinstance(weights, Tensor) else list(weights)
        if not given:
            raise Mistake("network gets no list of weights: call network([quantize(w) for w in weights], images)")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = "the labels" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise Mistake(f"network gets {what} for the images: each batch is a pair, images and labels")
        shapes, right = ([tuple(getattr(w, "shape", ())) for w in each] for each in (given, self.weights))
        if shapes != right:
            raise Mistake(
                f"network gets weights of the shapes {shapes}; they are {right}: quantize each, in their order"
            )
        self.seen.append([w.detach().clone().requires_grad_(w.requires_grad) for w in given])
        first, second = given
        return (x @ first.T).tanh() @ second.T

    def run(
        self,
        forward: Callable[[Tensor], Tensor] | None = None,
        batches: Sequence[tuple[Tensor, Tensor]] | None = None,
        scale: Callable[[int], float] = lambda count: 1.0,
        accumulate: bool = False,
        keep: Callable[[Tensor], Tensor] = lambda w: w,
    ) -> _Run:
        """Train in float64, or make one mistake: another ``forward`` pass, other batches, a scaled gradient, ..."""
        weights, losses, after, margin = list(self.weights), [], [], 1.0
        sums: list[Any] = [0.0, 0.0]
        for x, y in self.batches if batches is None else batches:
            leaves = [w.clone().requires_grad_() for w in weights]
            loss = self._loss([(forward or self.quantize)(w) for w in leaves], x, y)
            sums = [g + accumulate * old for g, old in zip(torch.autograd.grad(loss, leaves), sums, strict=True)]
            free = torch.cat([w.flatten() for w in weights]) / self.step
            margin = min(margin, float((free % 1 - 0.5).abs().min()))
            weights = [keep(w - self.lr * scale(len(y)) * g) for w, g in zip(weights, sums, strict=True)]
            losses.append(loss.item())
            after.append(self._loss([self.quantize(w) for w in weights], x, y).item())
        return _Run(weights, losses, torch.tensor(after), margin)

    def _loss(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        first, second = weights
        return torch.nn.functional.cross_entropy((x @ first.T).tanh() @ second.T, y)

    @cached_property
    def wrong_runs(self) -> list[tuple[str, _Run]]:
        """What common mistakes end at."""
        kept = (
            "rounded weights take the place of the float ones: small steps are lost. Quantize for the forward pass only"
        )
        gate = "clipped weights move too: the gradient of quantize itself is what belongs here"
        return [
            ("no weight has moved: go backward from the loss, then call optimizer.step()", self.run(batches=[])),
            (kept, self.run(keep=self.quantize)),
            (gate, self.run(lambda w: w + (self.quantize(w) - w).detach())),
            ("gradients of earlier batches are added: call optimizer.zero_grad() in each step",
             self.run(accumulate=True)),
            ("it goes uphill: the loss has the wrong sign", self.run(scale=lambda count: -1.0)),
            ("the loss is a sum over the batch: take the mean", self.run(scale=float)),
            ("only the first batch is used: does return stand inside the loop?", self.run(batches=self.batches[:1])),
            ("only the last batch is used", self.run(batches=self.batches[-1:])),
            ("the batches come in the wrong order", self.run(batches=self.batches[::-1])),
            ("each batch is used twice", self.run(batches=[b for b in self.batches for _ in "12"])),
        ]  # fmt: skip


def _judge_forward(task: _Task, where: str) -> None:
    """Whether the network was given weights of few values through which a gradient comes back."""
    for weights in task.seen:
        for number, w in enumerate(weights):
            values = checked(w, w)
            if (values / task.step - (values / task.step).round()).abs().max() > 1e-3:
                count = len(values.unique())
                raise Mistake(
                    f"for {where}: weights[{number}] come to the network with {count} different values, so they are "
                    "not quantized: give it quantize(w)"
                )
            if not w.requires_grad:
                raise Mistake(
                    f"for {where}: no gradient comes back from the network to weights[{number}]: something (detach, "
                    "no_grad or .data) cuts the way. quantize itself lets it through"
                )
    task.seen.clear()


qat = Exercise(
    "qat",
    "2.2: Train through the rounding",
    difficulty=2,
    minutes=15,
    question="""
    Write the loop of quantization-aware training, `qat(network, weights, quantize, batches, optimizer)`. It returns the
    list of the losses, one for each batch.

    `weights` are the float weights, tensors that `optimizer` updates in place. `quantize(w)` rounds one of them, with
    a straight-through gradient such as yours of exercise 2.1. `network(weights, images)` gives logits, (batch,
    classes), and takes whatever weights you give it: the quantized ones here. `batches` holds pairs `(images, labels)`.
    For each of them do one step: the mean cross-entropy at the **quantized** weights, its gradient, and an update of
    the **float** ones.
    """,
    hints=[
        "A step has five lines: logits, loss, optimizer.zero_grad(), loss.backward(), optimizer.step().",
        "Only the forward pass is quantized: network([quantize(w) for w in weights], images).",
        "torch.nn.functional.cross_entropy(logits, labels) is the mean over the batch; loss.item() is its number.",
    ],
    solution=_qat,
    grade=_grade_qat,
)

# --- 2.3 -------------------------------------------------------------------------------------------------------


def _clip_gradient(x: torch.Tensor, alpha: float, bits: int) -> torch.Tensor:
    """d (alpha q_b(clip(x / alpha, 0, 1))) / d alpha for each value of ``x``, as SAT has it; same shape."""
    levels = 2**bits - 1
    u = (x / alpha).clamp(0, 1)
    inside = torch.round(u * levels) / levels - u  # 0 below the clip by itself
    return torch.where(x >= alpha, torch.ones_like(x), inside)


def _grade_clip_gradient(student: Student, rng: Generator) -> None:
    for bits, size in ((2, (1.5, 4.0)), (3, (0.3, 0.7)), (4, (5.0, 9.0))):
        alpha, levels = _uniform(*size, rng), 2**bits - 1
        codes = torch.randint(-levels // 2, 2 * levels, (4, 30), generator=rng)
        codes[0, :5] = torch.tensor([-1, 0, 1, levels, levels + 1])
        x = _inside_a_step(codes, rng) * (alpha / levels)
        want = torch.tensor([[_one_slope(value, alpha, levels) for value in row] for row in x.tolist()])
        where = f"alpha = {alpha:.4g} and bits = {bits}"
        expect(_by_hand_only(student, x, alpha, bits), want, where, _wrong_slopes(x, alpha, levels))


def _by_hand_only(student: Student, *args: Any) -> Any:
    """What the function returns where PyTorch keeps no graph; a Mistake if it needs one."""
    try:
        with torch.inference_mode():
            return student(*args)
    except Mistake:
        student(*args)  # if it stops here too, autograd is not the reason
        raise Mistake("it lets PyTorch find the gradient: derive the three cases yourself") from None


def _one_slope(x: float, alpha: float, levels: int) -> float:
    """d out / d alpha at one value: what the nearest level loses, in units of alpha; 1 and 0 outside."""
    if x >= alpha:
        return 1.0
    if x <= 0:
        return 0.0
    level = min(range(levels + 1), key=lambda k: abs(k * alpha / levels - x))
    return (level * alpha / levels - x) / alpha


def _wrong_slopes(x: Tensor, alpha: float, levels: int) -> list[tuple[str, Tensor]]:
    free, above, below = x / alpha, x >= alpha, x <= 0
    u = free.clamp(0, 1)
    q = (u * levels).round() / levels
    right = torch.where(above, 1.0, q - u)
    flat = "this is q_b(x / alpha), the slope of the staircase itself, which finite differences find: the estimator "
    flat += "also lets q_b move with x / alpha, which gives another term, - x / alpha"
    return [
        ("this is PACT's gradient, 0 inside the clip: SAT has q_b(x / alpha) - x / alpha there", above.float()),
        *((message, torch.where(above, 1.0, slope)) for message, slope in _wrong_inside(x, u, q, alpha, levels)),
        (flat, q),
        ("it is 0 where x is clipped at alpha: there the output is alpha, its derivative 1", q - u),
        ("it is -1 where x is clipped at alpha: there the output is alpha, its derivative 1",
         torch.where(above, -1.0, q - u)),
        ("it is alpha where x is clipped: the output is alpha there, its derivative 1",
         torch.where(above, alpha, q - u)),
        ("below 0 it is not 0: the output is 0 there, whatever alpha is", torch.where(above, 1.0, q - free)),
        ("below 0 it is not 0: the output is 0 there, whatever alpha is",
         torch.where(above, 1.0, (free * levels).round() / levels - free)),
        ("below 0 it is 1: the output is 0 there, whatever alpha is", torch.where(below, 1.0, right)),
        ("beyond alpha it goes on as inside: there it is 1", torch.where(below, 0.0, q - free)),
        ("it goes on outside the clip as inside: it is 0 below 0 and 1 beyond alpha",
         (free * levels).round() / levels - free),
        ("it is the gradient of LSQ's step, 2^bits - 1 times that of the clip", levels * right),
        ("this is the gradient of x, not of alpha", ((x > 0) & ~above).float()),
    ]  # fmt: skip


def _wrong_inside(x: Tensor, u: Tensor, q: Tensor, alpha: float, levels: int) -> list[tuple[str, Tensor]]:
    """Wrong slopes inside the clip; u = clip(x / alpha, 0, 1), q = q_b(u)."""
    many = "q_b has 2^bits levels, k / (2^bits - 1): it multiplies by 2^bits - 1, rounds and divides by that again"
    second = "inside the factor alpha is missing from the second term: alpha · (- x / alpha^2) is - x / alpha"
    whole = "inside x is not divided by alpha: q_b(x / alpha) - x / alpha"
    return [
        (whole, q - x),
        (whole, torch.where(x <= 0, 0.0, q - x)),
        ("inside only one of the two terms is multiplied by alpha: q_b(x / alpha) - x / alpha", alpha * q - u),
        (many, (u * (levels + 1)).round() / (levels + 1) - u),
        (many, (u * (levels + 1)).floor() / (levels + 1) - u),
        (many, (u * (levels + 1)).floor().clamp(max=levels) / levels - u),
        ("rounding has only two levels: multiply by 2^bits - 1 before it", u.round() - u),
        ("inside it is only - x / alpha: by the product rule q_b(x / alpha) comes before it", -u),
        ("the sign inside is turned: q_b(x / alpha) - x / alpha", u - q),
        ("inside it is alpha times too large: this is the rounding error, divide it by alpha", (q - u) * alpha),
        ("inside it must be divided by alpha once only", (q - u) / alpha),
        (second, q - u / alpha),
        (second, q - x / alpha**2),
        ("it rounds down (floor): use torch.round", (u * levels).floor() / levels - u),
    ]


clip_gradient = Exercise(
    "clip_gradient",
    "2.3: The gradient of the clip",
    difficulty=2,
    minutes=15,
    question=r"""
    SAT and PACT learn the clip $\alpha$ of their activations,

    $$\hat x = \alpha\, q_b\big(\mathrm{clip}(x / \alpha,\ 0,\ 1)\big)$$

    Derive $d\hat x / d\alpha$ as SAT does: by the product rule and the chain rule, taking the derivative of $q_b$ as 1
    (straight-through). There are three cases: x below 0, x inside, and x beyond $\alpha$.

    Write `clip_gradient(x, alpha, bits)`, which returns the derivative for each value of `x`, a float tensor of any
    shape. `alpha` is a positive number. Derive it by hand: the check runs where PyTorch keeps no gradients.
    """,
    hints=[
        "Outside the clip the output is 0 or alpha: derive these two first.",
        "Inside, alpha q_b(x / alpha) is a product: q_b(x / alpha) · 1 + alpha · (d/dalpha of q_b(x / alpha)).",
        "With q_b' = 1, d/dalpha of q_b(x / alpha) is that of x / alpha: - x / alpha^2.",
    ],
    solution=_clip_gradient,
    grade=_grade_clip_gradient,
)

# --- 2.4 -------------------------------------------------------------------------------------------------------


def _step_gradient(w: torch.Tensor, step: float, bits: int, upstream: torch.Tensor) -> float:
    """LSQ's gradient of the loss with respect to the step of the weights ``w``, over sqrt(count · high)."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    u = w / step
    slope = torch.round(u) - u
    slope = torch.where(u <= low, float(low), slope)
    slope = torch.where(u >= high, float(high), slope)
    return (upstream * slope).sum().item() / (w.numel() * high) ** 0.5


def _grade_step_gradient(student: Student, rng: Generator) -> None:
    cases = ((4, (2.0, 3.0), 1), (3, (0.2, 0.4), -1), (2, (0.05, 0.1), 1))  # large first: w is not w / step
    for bits, size, side in cases:
        step = _uniform(*size, rng)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        shape = (*torch.randint(3, 7, (2,), generator=rng).tolist(), 3, 3)
        codes = torch.randint(low - 2, high + 3, shape, generator=rng)
        w = _inside_a_step(codes, rng) * step
        upstream = torch.randn(shape, generator=rng) + side * w.sign()  # the terms of the sum do not cancel
        want = _by_hand(w, step, low, high, upstream)
        where = f"weights {tuple(shape)}, step = {step:.4g} and bits = {bits}"
        expect(student(w, step, bits, upstream), want, where, _wrong_steps(w, step, low, high, upstream))


def _by_hand(w: Tensor, step: float, low: int, high: int, upstream: Tensor) -> float:
    """The sum, one weight after the other."""
    total = 0.0
    for value, arriving in zip(w.flatten().tolist(), upstream.flatten().tolist(), strict=True):
        u = value / step
        code = min(range(low, high + 1), key=lambda k: abs(k - u))
        total += arriving * (code - u if low < u < high else code)
    return total / math.sqrt(w.numel() * high)


def _wrong_steps(w: Tensor, step: float, low: int, high: int, upstream: Tensor) -> list[tuple[str, Tensor]]:
    w, upstream = w.double(), upstream.double()
    u, count = w / step, w.numel()
    code, inside = u.round().clamp(low, high), (u > low) & (u < high)
    slope = torch.where(inside, code - u, code)
    total, scale = (upstream * slope).sum(), 1 / math.sqrt(count * high)
    named = "the scale is {}: it is 1 / sqrt(count · high), with the number of weights and the highest code"
    parts = _wrong_step_slopes(w, step, low, high)
    return [
        (named.format("missing"), total),
        (named.format("1 / (count · high), without the root"), total / (count * high)),
        (named.format("1 / sqrt(count), without high"), total / math.sqrt(count)),
        (named.format("1 / sqrt(high), without count"), total / math.sqrt(high)),
        (named.format("1 / count, a mean"), total / count),
        (named.format("1 / sqrt(count · 2^bits), with the number of levels for high"),
         total / math.sqrt(count * (high - low + 1))),
        (named.format("made with -low for high"), total / math.sqrt(-count * low)),
        (named.format("sqrt(count · high), not 1 over it"), total * math.sqrt(count * high)),
        (named.format("made with the highest code without a sign"), total / math.sqrt(count * (high - low))),
        (named.format("made with the number of filters for count"), total / math.sqrt(len(w) * high)),
        ("upstream is forgotten: each weight's slope is multiplied by the gradient that arrives there",
         slope.sum() * scale),
        ("this is a mean: take the sum over the weights, then the scale", total * scale / count),
        ("the sign is lost: the sum may be negative", total.abs() * scale),
        (named.format("made with the number of weights of one filter for count"),
         total / math.sqrt(w[0].numel() * high)),
        *((words, (upstream * part).sum() * scale) for words, part in parts),
        *((f"{words}. The scale is missing too", (upstream * part).sum()) for words, part in parts),
    ]  # fmt: skip


def _wrong_step_slopes(w: Tensor, step: float, low: int, high: int) -> list[tuple[str, Tensor]]:
    """Wrong slopes of the weights, each of them, before the sum."""
    u = w / step
    code, inside = u.round().clamp(low, high), (u > low) & (u < high)
    slope = torch.where(inside, code - u, code)
    return [
        ("it takes the codes alone, the slope of the staircase itself: inside, subtract w / step", code),
        ("inside it is 0, as in PACT: LSQ has round(w / step) - w / step there", torch.where(inside, 0.0, code)),
        ("the sign inside is turned: round(w / step) - w / step", torch.where(inside, u - code, code)),
        ("outside it is 0: a clipped weight is low or high times step, so its slope is low or high",
         torch.where(inside, slope, 0.0)),
        ("outside it goes on as inside: there the slope is low or high", u.round() - u),
        ("clipped weights lose - w / step too: there the slope is low or high alone", code - u),
        ("outside it is -1 or 1: there the slope is the code, low or high", torch.where(inside, slope, code.sign())),
        ("the slopes are multiplied by step: they are in units of the code", slope * step),
        ("the weights clipped at low are given the slope 0: it is low", torch.where(u <= low, 0.0, slope)),
        ("w is compared with low and high: these are codes, so compare w / step",
         torch.where(w <= low, float(low), torch.where(w >= high, float(high), u.round() - u))),
        ("low and high are swapped: where w / step is at most low the slope is low",
         torch.where(inside, code - u, torch.where(u <= low, float(high), float(low)))),
        ("it rounds down (floor): use torch.round", torch.where(inside, u.floor() - u, code)),
        ("it rounds up (ceil): use torch.round", torch.where(inside, u.ceil() - u, code)),
        ("it cuts off towards zero: use torch.round", torch.where(inside, u.trunc() - u, code)),
        ("the codes are those without a sign: low is -2^(bits - 1), high 2^(bits - 1) - 1",
         torch.where(u <= 0, 0.0, torch.where(u >= high - low, float(high - low), u.round() - u))),
        ("weights that round to low or high are taken for clipped: compare w / step itself, before it is rounded",
         torch.where((u.round() > low) & (u.round() < high), code - u, code)),
        ("weights up to half a step beyond low and high are taken for inside: compare w / step with low and high",
         torch.where((u >= low - 0.5) & (u <= high + 0.5), u.round() - u, code)),
        ("w is not divided by step: inside it is round(w / step) - w / step", torch.where(inside, code - w, code)),
        ("the weights clipped at high are given the slope 0: it is high", torch.where(u >= high, 0.0, slope)),
        ("the range is not symmetric: low is -2^(bits - 1)",
         torch.where((u > -high) & (u < high), u.round() - u, u.sign() * high)),
    ]  # fmt: skip


step_gradient = Exercise(
    "step_gradient",
    "2.4: The gradient of the step",
    difficulty=3,
    minutes=15,
    question=r"""
    LSQ quantizes weights as $\hat w = s \cdot \mathrm{clip}(\mathrm{round}(w / s),\ \mathrm{low},\ \mathrm{high})$ with
    $\mathrm{low} = -2^{b-1}$ and $\mathrm{high} = 2^{b-1} - 1$, and learns the step $s$. For one weight

    $$\frac{d\hat w}{ds} = \mathrm{low}\ \text{ if } w/s \le \mathrm{low},\qquad
    \mathrm{high}\ \text{ if } w/s \ge \mathrm{high},\qquad \mathrm{round}(w/s) - w/s\ \text{ inside.}$$

    One step serves all weights of the layer, so the chain rule sums over them. LSQ multiplies the sum by
    $1 / \sqrt{\mathrm{count} \cdot \mathrm{high}}$, where count is the number of weights. Write
    `step_gradient(w, step, bits, upstream)`, which returns that one number. `w` are the weights, (out, in, height,
    width), and `upstream` is the loss's gradient with respect to each $\hat w$, of the same shape.
    """,
    hints=[
        "The slopes first, a tensor like w: three cases, for which torch.where serves.",
        "Multiply them by upstream and sum over all weights: that is the chain rule.",
        "count is w.numel(), high is 2 ** (bits - 1) - 1; divide the sum by the root of their product.",
    ],
    solution=_step_gradient,
    grade=_grade_step_gradient,
)

EXERCISES = (ste_round, qat, clip_gradient, step_gradient)
