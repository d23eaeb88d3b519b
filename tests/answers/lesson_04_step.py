"""Lesson 04, the step: right answers, and wrong ones with the message that names them."""

import numpy as np
import torch

import mebqat_lite as mq


def logits_at(model, images, bits):
    with mq.at(model, bits):
        return model(images)


def visits(model, batch, pairs, loss):
    """The loss of each pair, FP's logits as the teacher of the others."""
    teacher, found = None, []
    for bits in pairs:
        logits = logits_at(model, batch[0], bits)
        found.append(loss(logits, batch[1], teacher))
        if bits == mq.FP:
            teacher = logits.detach()
    return found


def stepped(model, optimizer, clip=10.0):
    if clip:
        torch.nn.utils.clip_grad_value_(model.parameters(), clip)
    optimizer.step()


def one_backward(model, batch, pairs, loss, optimizer):
    losses = visits(model, batch, pairs, loss)
    mean = sum(losses) / len(losses)
    optimizer.zero_grad()
    mean.backward()
    stepped(model, optimizer)
    return mean


def by_stacking(model, batch, pairs, loss, optimizer):
    mean = torch.stack(visits(model, batch, pairs, loss)).mean()
    model.zero_grad()
    mean.backward()
    stepped(model, optimizer)
    return mean.detach().numpy()


def divided_afterwards(model, batch, pairs, loss, optimizer):
    optimizer.zero_grad()
    losses = visits(model, batch, pairs, loss)
    for one in losses:
        one.backward()
    for parameter in model.parameters():
        parameter.grad /= len(pairs)
        parameter.grad.clamp_(-10, 10)
    optimizer.step()
    return float(np.mean([one.item() for one in losses]))


def by_grad(model, batch, pairs, loss, optimizer):
    parameters = list(model.parameters())
    losses = visits(model, batch, pairs, loss)
    rows = [torch.autograd.grad(one, parameters) for one in losses]
    for parameter, column in zip(parameters, zip(*rows, strict=True), strict=True):
        parameter.grad = torch.stack(column).mean(0).clamp(-10, 10)
    optimizer.step()
    return sum(one.item() for one in losses) / len(losses)


def by_the_loops_own_tools(model, batch, pairs, loss, optimizer):
    mean = mq.loop.GradientMean(list(model.parameters()))
    losses = visits(model, batch, pairs, loss)
    optimizer.zero_grad(set_to_none=True)
    for one in losses:
        one.backward()
    mean.average()
    mean.close()
    stepped(model, optimizer)
    return torch.stack(losses).mean().item()


def with_plain_sums(model, batch, pairs, loss, optimizer):
    losses = visits(model, batch, pairs, loss)
    gradient = torch.autograd.grad(sum(losses), list(model.parameters()))
    for parameter, g in zip(model.parameters(), gradient, strict=True):
        parameter.grad = torch.clip(g / len(losses), min=-10, max=10)
    optimizer.step()
    optimizer.zero_grad()
    return sum(float(one.detach()) for one in losses) / len(losses)


def by_hand(model, batch, pairs, loss, optimizer):
    """Plain gradient descent without the optimizer's step."""
    lr = optimizer.param_groups[0]["lr"]
    losses = visits(model, batch, pairs, loss)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for one in losses:
        for sum_, g in zip(total, torch.autograd.grad(one, list(model.parameters())), strict=True):
            sum_ += g
    with torch.no_grad():
        for parameter, g in zip(model.parameters(), total, strict=True):
            parameter -= lr * (g / len(losses)).clamp(-10, 10)
    return torch.stack(losses).mean().item()


def limit(parameter):
    parameter.grad.clamp_(-10, 10)


def with_a_hook(model, batch, pairs, loss, optimizer):
    handles = [p.register_post_accumulate_grad_hook(limit) for p in model.parameters()]
    optimizer.zero_grad()
    mean = torch.stack(visits(model, batch, pairs, loss)).mean()
    mean.backward()
    for handle in handles:
        handle.remove()
    optimizer.step()
    return np.float64(mean.item())


def teacher_first(model, batch, pairs, loss, optimizer):
    """FP once more, before the others, for the teacher alone."""
    teacher = logits_at(model, batch[0], "FP").detach() if mq.FP in pairs else None
    losses = []
    for bits in reversed(pairs):
        losses.insert(0, bits != mq.FP and teacher)
    mean = 0.0
    optimizer.zero_grad()
    for bits, taught in zip(pairs, losses, strict=True):
        one = loss(logits_at(model, batch[0], bits), batch[1], taught if isinstance(taught, torch.Tensor) else None)
        one.div(len(pairs)).backward()
        mean += one.item() / len(pairs)
    stepped(model, optimizer)
    return mean


def by_vectors(model, batch, pairs, loss, optimizer):
    rows, losses = [], visits(model, batch, pairs, loss)
    for one in losses:
        model.zero_grad()
        one.backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    mean = (sum(rows) / len(rows)).clip(-10, 10)
    parts = mean.split([p.numel() for p in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad = part.view_as(parameter)
    optimizer.step()
    return sum(one.item() for one in losses) / len(losses)


def change(gather=lambda losses: sum(losses) / len(losses), clip=10.0, told=lambda losses: sum(losses) / len(losses),
           pairs_of=list, visit=visits, zero=True, update=stepped):  # fmt: skip
    """A step with one mistake."""

    def answer(model, batch, pairs, loss, optimizer):
        losses = visit(model, batch, pairs_of(pairs), loss)
        if zero:
            optimizer.zero_grad()
        gather(losses).backward()
        update(model, optimizer, clip) if clip != "none" else optimizer.step()
        return told(losses).item()

    return answer


def walking(share=1.0):
    def answer(model, batch, pairs, loss, optimizer):
        teacher, total = None, 0.0
        for bits in pairs:
            logits = logits_at(model, batch[0], bits)
            one = loss(logits, batch[1], teacher)
            optimizer.zero_grad()
            (one * (share or 1 / len(pairs))).backward()
            stepped(model, optimizer)
            total += one.item() / len(pairs)
            teacher = logits.detach() if bits == mq.FP else teacher
        return total

    return answer


def step_inside(model, batch, pairs, loss, optimizer):
    """optimizer.step() stands in the loop, and the gradients go on adding up."""
    teacher, total = None, 0.0
    optimizer.zero_grad()
    for bits in pairs:
        logits = logits_at(model, batch[0], bits)
        one = loss(logits, batch[1], teacher) / len(pairs)
        one.backward()
        stepped(model, optimizer)
        total += one.item()
        teacher = logits.detach() if bits == mq.FP else teacher
    return total


def zero_inside(model, batch, pairs, loss, optimizer):
    losses = visits(model, batch, pairs, loss)
    for one in losses:
        optimizer.zero_grad()
        (one / len(pairs)).backward()
    stepped(model, optimizer)
    return torch.stack(losses).mean().item()


def inner_loop(reptile=False):
    """Each pair first takes a step of its own; ``reptile``: then another, and the weights move to the mean."""

    def answer(model, batch, pairs, loss, optimizer):
        parameters, lr = list(model.parameters()), optimizer.param_groups[0]["lr"]
        start = [p.detach().clone() for p in parameters]
        fp = logits_at(model, batch[0], mq.FP).detach() if mq.FP in pairs else None
        total, losses = [torch.zeros_like(p) for p in parameters], []
        for bits in pairs:
            taught = None if bits == mq.FP else fp
            own = loss_at(loss, model, batch, bits, taught)
            losses.append(own.item())
            first = torch.autograd.grad(own, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, first, strict=True):
                    p -= lr * g
            second = torch.autograd.grad(loss_at(loss, model, batch, bits, taught), parameters)
            for t, g, h in zip(total, first, second, strict=True):
                t += (g * reptile + h) / len(pairs)
            with torch.no_grad():
                for p, w in zip(parameters, start, strict=True):
                    p.copy_(w)
        for p, t in zip(parameters, total, strict=True):
            p.grad = t if reptile else t.clamp(-10, 10)
        optimizer.step()
        return sum(losses) / len(losses)

    return answer


def loss_at(loss, model, batch, bits, taught):
    return loss(logits_at(model, batch[0], bits), batch[1], taught)


def clipped_early(model, batch, pairs, loss, optimizer):
    losses = visits(model, batch, pairs, loss)
    rows = [torch.autograd.grad(one, list(model.parameters())) for one in losses]
    for p, column in zip(model.parameters(), zip(*rows, strict=True), strict=True):
        p.grad = sum(g.clamp(-10, 10) for g in column) / len(column)
    optimizer.step()
    return torch.stack(losses).mean().item()


def clipped_by_norm(model, optimizer, clip):
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def no_teacher(model, batch, pairs, loss):
    return [loss(logits_at(model, batch[0], bits), batch[1], None) for bits in pairs]


def all_at_fp(model, batch, pairs, loss):
    return [loss(logits_at(model, batch[0], "FP"), batch[1], None) for _ in pairs]


def fp_always_teaches(model, batch, pairs, loss):
    teacher = logits_at(model, batch[0], "FP").detach()
    return [loss(logits_at(model, batch[0], bits), batch[1], teacher) for bits in pairs]


def teacher_without_fp(model, batch, pairs, loss):
    teacher = logits_at(model, batch[0], "FP").detach()
    return [loss(logits_at(model, batch[0], b), batch[1], None if b == mq.FP else teacher) for b in pairs]


def next_higher(model, batch, pairs, loss):
    teacher, found = None, []
    for bits in pairs:
        logits = logits_at(model, batch[0], bits)
        found.append(loss(logits, batch[1], teacher))
        teacher = logits.detach()
    return found


def leaving(do):
    def answer(model, *rest):
        value = one_backward(model, *rest)
        do(model, rest)
        return value

    return answer


RIGHT = [
    one_backward,
    by_stacking,
    divided_afterwards,
    by_grad,
    by_the_loops_own_tools,
    with_plain_sums,
    by_hand,
    with_a_hook,
    teacher_first,
    by_vectors,
    change(),
]
WRONG = [
    ("no weight has moved", change(update=lambda *_: None)),
    ("goes uphill", change(lambda losses: -sum(losses) / len(losses))),
    ("gradients are added: take their mean", change(sum)),
    ("mean is taken twice", change(lambda losses: sum(losses) / len(losses) ** 2)),
    ("it is not clipped.*large gradients", change(clip=None)),
    ("the limit is 10", change(clip=1.0)),
    ("the limit is 10", change(clip=5.0)),
    ("clipped by its norm", change(update=clipped_by_norm)),
    ("take the mean first, clip once", clipped_early),
    ("only the last pair's gradient", change(lambda losses: losses[-1])),
    ("only the last pair's gradient", zero_inside),
    ("only the first pair's gradient", change(lambda losses: losses[0])),
    ("no pair has a teacher", change(visit=no_teacher)),
    ("called with a teacher at FP", change(visit=fp_always_teaches)),
    (r"FP is not among the pairs.*pairs = \[W\d+A\d+\]", change(visit=teacher_without_fp)),
    ("the pair before teaches", change(visit=next_higher)),
    ("the logits are the same at all pairs", change(visit=all_at_fp)),
    ("weights move between the pairs", walking()),
    ("weights move between the pairs", walking(0)),
    ("weights move between the pairs", step_inside),
    ("that is an inner loop", inner_loop()),
    ("Reptile", inner_loop(reptile=True)),
    ("this is the sum of the losses", change(told=sum)),
    ("this is the loss of the last pair", change(told=lambda losses: losses[-1])),
    ("this is the loss of the first pair", change(told=lambda losses: losses[0])),
    ("for pairs = .* left at W2A2", leaving(lambda model, rest: mq.set_bits(model, "W2A2"))),
    ("left in evaluation mode", leaving(lambda model, rest: model.eval())),
    ("another norm policy", leaving(lambda model, rest: mq.set_norm_stats(model, "batch"))),
    ("called 8 times: once for each of the 4", leaving(
        lambda model, rest: [rest[2](torch.zeros(2, 3), torch.zeros(2, dtype=int), None) for _ in rest[1]])),
    ("right is", change(lambda losses: losses[0] + sum(losses[1:]) / 2)),
    ("RuntimeError", lambda model, batch, pairs, loss, optimizer: model(batch[1])),
    ("type list: return a number", lambda *args: [one_backward(*args)]),
]  # fmt: skip
