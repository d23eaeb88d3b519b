"""Lesson 05: right answers, each written another way, and wrong ones with the message that names them."""

import copy

import torch
import torch.nn.functional as F

import mebqat_lite as mq
from mebqat_lite.course.exercises import lesson_05
from mebqat_lite.learners.maml import updated

# --- 5.1


def logits_by_cdist(support, query):
    return -(torch.cdist(query, support.mean(dim=1), compute_mode="donot_use_mm_for_euclid_dist") ** 2)


def logits_in_loops(support, query):
    centres = [sum(rows) / len(rows) for rows in support]
    return torch.stack([torch.stack([-((q - c) @ (q - c)) for c in centres]) for q in query])


def distances(support, query, power=2):
    return (query[:, None] - support.mean(1)).abs().pow(power).sum(2)


def logits_into_zeros(support, query):
    out = torch.zeros(len(query), len(support))
    for m, q in enumerate(query):
        for n, c in enumerate(support.mean(1)):
            out[m, n] = -((q - c) ** 2).sum()
    return out


# --- 5.2


def called(model, weights, images, labels):
    return F.cross_entropy(torch.func.functional_call(model, weights, (images,)), labels)


def moved(weights, grads, lr):
    return {name: w - lr * g for (name, w), g in zip(weights.items(), grads, strict=True)}


def step(change=moved, loss=called, at=lambda model, weights: weights):
    """An inner step in parts: which loss is taken, at which weights, and what is made of the gradients."""

    def answer(model, weights, images, labels, lr):
        place = at(model, weights)
        grads = torch.autograd.grad(loss(model, place, images, labels), list(place.values()))
        return change(weights, grads, lr)

    return answer


def own(model, weights):
    return {name: model.get_parameter(name) for name in weights}


def step_by_backward(model, weights, images, labels, lr):
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    called(model, leaves, images, labels).backward()
    return {name: (w - lr * w.grad).detach() for name, w in leaves.items()}


def step_by_an_optimizer(model, weights, images, labels, lr):
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr)
    called(model, leaves, images, labels).backward()
    optimizer.step()
    return leaves


def step_by_func_grad(model, weights, images, labels, lr):
    grads = torch.func.grad(lambda w: called(model, w, images, labels))(weights)
    return {name: torch.add(weights[name], grads[name], alpha=-lr) for name in reversed(weights)}


def step_on_a_copy(model, weights, images, labels, lr):
    """By putting the weights into a copy of the model."""
    moving = copy.deepcopy(model)
    mq.learners.put_weights(moving, weights)
    F.cross_entropy(moving(images), labels).backward()
    return {name: w - lr * moving.get_parameter(name).grad for name, w in weights.items()}


def step_by_package(model, weights, images, labels, lr):
    grads = torch.autograd.grad(called(model, weights, images, labels), list(weights.values()))
    return {n: updated(n, w, g, lr) for (n, w), g in zip(weights.items(), grads, strict=True)}


def step_in_numpy(model, weights, images, labels, lr):
    new = step()(model, weights, images, labels, lr)
    return {name: w.detach().numpy() for name, w in new.items()}


def log_loss(model, weights, images, labels):
    p = torch.func.functional_call(model, weights, (images,)).softmax(1)
    return -p[torch.arange(len(labels)), labels].log().mean()


def nll(model, weights, images, labels):
    return F.nll_loss(torch.func.functional_call(model, weights, (images,)).log_softmax(1), labels)


def one_hot(model, weights, images, labels):
    logits = torch.func.functional_call(model, weights, (images,))
    return F.cross_entropy(logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype))


def squares(model, weights, images, labels):
    logits = torch.func.functional_call(model, weights, (images,))
    return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype))


def soft_twice(model, weights, images, labels):
    return F.cross_entropy(torch.func.functional_call(model, weights, (images,)).softmax(1), labels)


def summed(*task):
    return len(task[-1]) * called(*task)


def step_in_place(model, weights, images, labels, lr):
    grads = torch.autograd.grad(called(model, weights, images, labels), list(weights.values()))
    with torch.no_grad():
        for w, g in zip(weights.values(), grads, strict=True):
            w -= lr * g
    return weights


def step_of_the_model(model, weights, images, labels, lr):
    """The model's own parameters are moved, in place."""
    F.cross_entropy(model(images), labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= lr * parameter.grad
    return dict(model.named_parameters())


def steps(count):
    def answer(model, weights, images, labels, lr):
        for _ in range(count):
            weights = step()(model, weights, images, labels, lr)
        return weights

    return answer


def of_each(change):
    """New weights from ``change(w, g, lr)`` of each weight."""
    return step(lambda weights, grads, lr: {
        n: change(w, g, lr) for (n, w), g in zip(weights.items(), grads, strict=True)
    })  # fmt: skip


def length(weights, grads, lr):
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return moved(weights, [g / norm for g in grads], lr)


def own_start(model, weights, images, labels, lr):
    grads = torch.autograd.grad(called(model, weights, images, labels), list(weights.values()))
    return moved(own(model, weights), grads, lr)


def only_the_last(weights, grads, lr):
    return moved(weights, [*(0 * g for g in grads[:-1]), grads[-1]], lr)


# --- 5.3


def influence_by_columns(predict, queries):
    out = torch.zeros(len(queries), len(queries), dtype=torch.float64)
    for i in range(len(queries)):
        for j in range(len(queries)):
            batch = torch.stack([torch.zeros_like(q) if k == j else q for k, q in enumerate(queries)])
            out[i, j] = max(abs(a - b) for a, b in zip(predict(batch)[i], predict(queries)[i], strict=True))
    return out


def influence_by_masks(predict, queries):
    masks = 1 - torch.eye(len(queries))
    after = torch.stack([predict(queries * mask[:, None]) for mask in masks])  # (j, i, N)
    return (after - predict(queries)).abs().max(-1).values.T


def changes(predict, queries, fill=0.0, reduce=lambda d: d.abs().amax(1)):
    before, columns = predict(queries), []
    for j in range(len(queries)):
        changed = queries.clone()
        changed[j] = fill
        columns.append(reduce(predict(changed) - before))
    return torch.stack(columns, 1)


def influence_into_zeros(predict, queries):
    out = torch.zeros(len(queries), len(queries))
    with torch.no_grad():
        before = predict(queries)
        for j in range(len(queries)):
            batch = torch.cat([queries[:j], torch.zeros_like(queries[j : j + 1]), queries[j + 1 :]])
            out[:, j] = (predict(batch) - before).abs().amax(dim=1)
    return out


def never_back(predict, queries):
    before, changed, columns = predict(queries), queries.clone(), []
    for j in range(len(queries)):
        changed[j] = 0
        columns.append((predict(changed) - before).abs().amax(1))
    return torch.stack(columns, 1)


def left_out(predict, queries):
    """The query is removed, not made zero."""
    before, rows = predict(queries), []
    for j in range(len(queries)):
        keep = [k for k in range(len(queries)) if k != j]
        moved = torch.zeros(len(queries), dtype=queries.dtype)
        moved[keep] = (predict(queries[keep]) - before[keep]).abs().amax(1)
        rows.append(moved)
    return torch.stack(rows, 1)


def of_probabilities(predict, queries, softmax=torch.nn.Softmax):
    return changes(torch.nn.Sequential(predict, softmax(1)), queries)


def of_batches(change, compare=lambda after, before: (after - before).abs().amax(1)):
    """Entries from ``compare`` of the logits of the batches that ``change(queries, j)`` returns."""

    def answer(predict, queries):
        before = predict(queries)
        return torch.stack([compare(predict(change(queries, j)), before) for j in range(len(queries))], 1)

    return answer


def blank(queries, j):
    return torch.cat([queries[:j], 0 * queries[j : j + 1], queries[j + 1 :]])


def only_it(queries, j):
    return queries - blank(queries, j)


def blank_feature(queries, j):
    changed = queries.clone()
    changed[:, j] = 0
    return changed


def from_the_one_before(predict, queries):
    before, columns = predict(queries), []
    for j in range(len(queries)):
        after = predict(blank(queries, j))
        columns.append((after - before).abs().amax(1))
        before = after
    return torch.stack(columns, 1)


RIGHT = {
    "prototype_logits": [
        logits_by_cdist,
        lambda s, q: -distances(s, q).float(),
        logits_in_loops,
        logits_into_zeros,
        lambda support, query: mq.learners.prototype_logits(query, support.mean(1)),
        lambda s, q: 2 * q @ s.mean(1).T - q.square().sum(1, keepdim=True) - s.mean(1).square().sum(1),
        lambda s, q: -torch.stack([F.mse_loss(q, c.expand_as(q), reduction="none").sum(1) for c in s.mean(1)], 1),
        lambda s, q: -(torch.linalg.vector_norm(q.unsqueeze(1) - s.mean(dim=1), dim=-1) ** 2),
        lambda s, q: -torch.einsum("mnf,mnf->mn", d := q[:, None] - s.sum(1) / s.shape[1], d),
        lambda s, q: torch.stack([-(q - c).pow(2).sum(-1) for c in s.mean(1)], dim=1),
    ],
    "inner_step": [
        step_by_an_optimizer,
        step(),
        step_by_backward,
        step_by_func_grad,
        step_on_a_copy,
        step_by_package,
        step(loss=log_loss),
        step(loss=nll),
        step(loss=one_hot),
        steps(1),
        of_each(lambda w, g, lr: (w - lr * g).detach().float()),
    ],
    "influence": [
        influence_by_columns,
        lambda p, q: changes(p, q).tolist(),
        influence_by_masks,
        changes,
        lambda p, q: changes(p, q).detach().numpy(),
        lambda p, q: changes(p, q).float(),
        lambda p, q: changes(p, q, reduce=lambda d: d.abs().max(1).values),
        lambda p, q: changes(p, q, reduce=lambda d: torch.linalg.vector_norm(d, ord=torch.inf, dim=1)),
        lambda p, q: changes(p, q, reduce=lambda d: torch.maximum(d.amax(1), -d.amin(1))),
        influence_into_zeros,
    ],
}

WRONG = {
    "prototype_logits": [
        ("sign is lost: the nearest", lambda s, q: distances(s, q)),
        ("distance is not squared .for", lambda s, q: -distances(s, q).sqrt()),
        ("not squared, and the sign", lambda s, q: torch.cdist(q, s.mean(1))),
        ("squared once too often", lambda s, q: -(distances(s, q) ** 2)),
        ("mean over the features", lambda s, q: -(q[:, None] - s.mean(1)).square().mean(2)),
        ("absolute differences", lambda s, q: -distances(s, q, 1)),
        ("cosine", lambda s, q: F.cosine_similarity(q[:, None], s.mean(1), dim=2)),
        ("scalar product", lambda s, q: q @ s.mean(1).T),
        (r"\|q\|\^2 is missing", lambda s, q: 2 * q @ s.mean(1).T - s.mean(1).square().sum(1)),
        (r"\|c\|\^2 is missing", lambda s, q: 2 * q @ s.mean(1).T - q.square().sum(1, keepdim=True)),
        ("probabilities: return the logits", lambda s, q: (-distances(s, q)).softmax(1)),
        ("log-probabilities", lambda s, q: (-distances(s, q)).log_softmax(1)),
        ("sum of a class's support", lambda s, q: -(q[:, None] - s.sum(1)).square().sum(2)),
        ("only the first support image", lambda s, q: -(q[:, None] - s[:, 0]).square().sum(2)),
        ("mean of the distances", lambda s, q: -(q[:, None, None] - s).square().sum(3).mean(2)),
        ("nearest support image", lambda s, q: -(q[:, None, None] - s).square().sum(3).amin(2)),
        ("half of the squared", lambda s, q: -distances(s, q) / 2),
        ("prototypes and queries are brought to length 1|support and query", lambda s, q: -distances(
            F.normalize(s.mean(1), dim=1)[:, None], F.normalize(q))),
        ("support and query are brought to length 1", lambda s, q: -distances(F.normalize(s, dim=2), F.normalize(q))),
        ("one over the distance", lambda s, q: 1 / distances(s, q)),
        ("no gradient flows", lambda s, q: (-distances(s, q)).detach().numpy()),
        ("no gradient flows", lambda s, q: (-distances(s, q)).tolist()),
        ("no gradient reaches the support", lambda s, q: -distances(s.detach(), q)),
        ("the median", lambda s, q: -(q[:, None] - s.median(1).values).square().sum(2)),
        ("mean is over the classes|has shape", lambda s, q: -(q[:, None] - s.mean(0)).square().sum(2)),
        ("has shape", lambda s, q: -distances(s, q).T),
        ("changes its input query", lambda s, q: -(q.mul_(2)[:, None] - s.mean(1)).square().sum(2)),
    ],
    "inner_step": [
        ("as they were given", lambda m, w, x, y, lr: w),
        ("uphill", of_each(lambda w, g, lr: w + lr * g)),
        ("lr is not used", of_each(lambda w, g, lr: w - g)),
        ("divides by lr", of_each(lambda w, g, lr: w - g / lr)),
        ("these are the gradients", of_each(lambda w, g, lr: g)),
        ("the step alone", of_each(lambda w, g, lr: lr * g)),
        ("the step alone", of_each(lambda w, g, lr: -lr * g)),
        ("moves the model's own", lambda m, w, x, y, lr: step()(m, own(m, w), x, y, lr)),
        ("that of the model's own parameters", step(at=own)),
        ("starts from the model's own", own_start),
        ("a sum over the images", step(loss=summed)),
        ("two steps", steps(2)),
        ("squared error", step(loss=squares)),
        ("softmax is taken twice", step(loss=soft_twice)),
        ("only the sign", of_each(lambda w, g, lr: w - lr * g.sign())),
        ("length 1", step(length)),
        ("half of what", of_each(lambda w, g, lr: w - lr * g / 2)),
        ("twice what", of_each(lambda w, g, lr: w - 2 * lr * g)),
        ("did not move", step(only_the_last)),
        ("changes weights.*in place", step_in_place),
        ("changes the model's own 0.weight in place", step_of_the_model),
        ("type list", lambda *a: list(step()(*a).values())),
        ("of type ndarray: the new weights are tensors", step_in_numpy),
        ("is missing", lambda *a: dict(list(step()(*a).items())[1:])),
        ("not among the weights", lambda *a: step()(*a) | {"more": torch.ones(1)}),
        ("has shape", lambda *a: {n: w[None] for n, w in step()(*a).items()}),
        ("of type NoneType: the new weights are tensors", of_each(lambda w, g, lr: None)),
        ("NaN", of_each(lambda w, g, lr: w * float("nan"))),
    ],
    "influence": [
        ("it is turned", lambda p, q: changes(p, q).T),
        ("not put back", never_back),
        ("keep their signs", lambda p, q: changes(p, q, reduce=lambda d: d.amax(1))),
        ("sum over the logits", lambda p, q: changes(p, q, reduce=lambda d: d.abs().sum(1))),
        ("mean over the logits", lambda p, q: changes(p, q, reduce=lambda d: d.abs().mean(1))),
        ("square of the change", lambda p, q: changes(p, q) ** 2),
        ("Euclidean length", lambda p, q: changes(p, q, reduce=lambda d: d.norm(dim=1))),
        ("diagonal is left out", lambda p, q: changes(p, q).fill_diagonal_(0)),
        ("only the diagonal", lambda p, q: changes(p, q).diag().diag()),
        ("becomes ones", lambda p, q: changes(p, q, fill=1.0)),
        ("changes of probabilities", of_probabilities),
        ("log-probabilities", lambda p, q: of_probabilities(p, q, torch.nn.LogSoftmax)),
        ("all queries but one", of_batches(only_it)),
        ("feature j of all queries", of_batches(blank_feature)),
        ("becomes the mean of all", of_batches(lambda q, j: torch.cat([q[:j], q.mean(0)[None], q[j + 1 :]]))),
        ("from the one before", from_the_one_before),
        ("of absolute values", of_batches(blank, lambda after, before: (after.abs() - before.abs()).abs().amax(1))),
        ("compares the largest logits", of_batches(blank, lambda a, b: (a.amax(1) - b.amax(1)).abs())),
        ("whose answer changes|values are wrong", of_batches(blank, lambda a, b: (a.argmax(1) != b.argmax(1)).float())),
        ("the first logit only", lambda p, q: changes(p, q, reduce=lambda d: d[:, 0].abs())),
        ("added up with their signs", lambda p, q: changes(p, q, reduce=lambda d: d.sum(1).abs())),
        ("comes after the maximum", lambda p, q: changes(p, q, reduce=lambda d: d.amax(1).abs())),
        ("zeros and ones", lambda p, q: (changes(p, q) > 0).double()),
        ("dtype torch.bool", lambda p, q: changes(p, q) > 0),
        ("left out of the batch", left_out),
        ("smallest change", lambda p, q: changes(p, q, reduce=lambda d: d.abs().amin(1))),
        ("values are wrong|only the diagonal", lambda p, q: torch.zeros(len(q), len(q), dtype=q.dtype)),
        ("has shape", lambda p, q: changes(p, q, reduce=lambda d: d.abs().amax())),
        ("changes its input queries", lambda p, q: p(q.mul_(0))),
    ],
}  # fmt: skip

assert set(RIGHT) == set(WRONG) == {exercise.name for exercise in lesson_05.EXERCISES}
