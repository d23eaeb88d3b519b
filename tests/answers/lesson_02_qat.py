"""Lesson 02, the loop of QAT: right answers, and wrong ones with the message that names them."""

import numpy as np
import torch
import torch.nn.functional as F


def loop(forward=None, loss_of=F.cross_entropy, step=lambda optimizer: optimizer.step(), order=list, zero=True, sign=1):
    """The loop of training with one mistake; ``forward`` maps (quantize, w) to the weights of the forward pass."""

    def answer(network, weights, quantize, batches, optimizer):
        losses = []
        for x, y in order(batches):
            loss = loss_of(network([(forward or (lambda q, w: q(w)))(quantize, w) for w in weights], x), y)
            if zero:
                optimizer.zero_grad()
            (sign * loss).backward()
            step(optimizer)
            losses.append(loss.item())
        return losses

    return answer


def qat_by_grad(network, weights, quantize, batches, optimizer):
    losses = []
    for x, y in batches:
        loss = F.cross_entropy(network([quantize(w) for w in weights], x), y)
        for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            w.grad = g
        optimizer.step()
        losses.append(loss.detach())
    return losses


def qat_with_a_closure(network, weights, quantize, batches, optimizer):
    losses = []
    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.nll_loss(network(list(map(quantize, weights)), x).log_softmax(1), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return np.array(losses)


def qat_in_place(network, weights, quantize, batches, optimizer):
    losses, lr = torch.zeros(len(batches)), optimizer.param_groups[0]["lr"]
    for i, (x, y) in enumerate(batches):
        loss = F.cross_entropy(network(tuple(quantize(w) for w in weights), x), y)
        grads = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for w, g in zip(weights, grads, strict=True):
                w -= lr * g
        losses[i] = loss.item()
    return losses


def qat_through_leaves(network, weights, quantize, batches, optimizer):
    """The gradient with respect to the quantized weights, sent back through quantize by hand."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad(set_to_none=False)
        rounded = [quantize(w) for w in weights]
        loss = F.cross_entropy(network(rounded, x), y)
        arriving = torch.autograd.grad(loss, rounded, retain_graph=True)
        torch.autograd.backward(rounded, arriving)
        optimizer.step()
        losses += [loss.tolist()]
    return losses


def qat_by_one_hot(network, weights, quantize, batches, optimizer):
    losses = []
    for x, y in batches:
        log_p = network([quantize(w) for w in weights], x).double().log_softmax(1)
        loss = -(F.one_hot(y, 4) * log_p).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return tuple(losses)


def qat_with_while(network, weights, quantize, batches, optimizer):
    todo, losses = list(batches), []
    while todo:
        x, y = todo.pop(0)
        optimizer.zero_grad()
        logits = network([quantize(w) for w in weights], x)
        loss = (logits.logsumexp(1) - logits[torch.arange(len(y)), y]).mean()
        loss.backward()
        optimizer.step()
        losses.append(np.float64(loss.item()))
    return losses


def qat_that_keeps(network, weights, quantize, batches, optimizer):
    """It rounds in place for the forward pass and puts the float weights back before the update."""
    losses = []
    for x, y in batches:
        out = [quantize(w) for w in weights]
        kept = [w.detach().clone() for w in weights]
        loss = F.cross_entropy(network(out, x), y)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for w, before in zip(weights, kept, strict=True):
                w.copy_(before)
        optimizer.step()
        losses.append(loss.item())
    return losses


def qat_zeroed_after(network, weights, quantize, batches, optimizer):
    losses = []
    for x, y in batches:
        loss = F.cross_entropy(network([quantize(w) for w in weights], x), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        for w in weights:
            w.grad = None
    return losses


def overwriting(network, weights, quantize, batches, optimizer):
    losses = qat_by_grad(network, weights, quantize, batches[:0], optimizer)
    for batch in batches:
        losses += qat_by_grad(network, weights, quantize, [batch], optimizer)
        with torch.no_grad():
            for w in weights:
                w.copy_(quantize(w))
    return losses


def losses_after(network, weights, quantize, batches, optimizer):
    losses = []
    for x, y in batches:
        qat_by_grad(network, weights, quantize, [(x, y)], optimizer)
        losses.append(F.cross_entropy(network([quantize(w) for w in weights], x), y).item())
    return losses


def quantized_once(network, weights, quantize, batches, optimizer):
    return loop(lambda q, w: w)(network, [quantize(w) for w in weights], quantize, batches, optimizer)


def called(call):
    """The loop with another call of the network: ``call(network, weights, quantize, images, labels)``."""

    def answer(network, weights, quantize, batches, optimizer):
        losses = []
        for x, y in batches:
            loss = F.cross_entropy(call(network, weights, quantize, x, y), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return answer


def updated_by_hand(network, weights, quantize, batches, optimizer):
    for x, y in batches:
        F.cross_entropy(network([quantize(w) for w in weights], x), y).backward()
        for w in weights:
            w -= 0.5 * w.grad


def shifted_before_backward(network, weights, quantize, batches, optimizer):
    for x, y in batches:
        rounded = [quantize(w) for w in weights]
        logits = network(rounded, x)
        with torch.no_grad():
            rounded[1].add_(1)
        F.cross_entropy(logits, y).backward()


def rounded_in_place(network, weights, quantize, batches, optimizer):
    """It rounds the float weights in place for the forward pass, and puts them back: the clip's gradient is lost."""
    losses = []
    for x, y in batches:
        kept = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w in weights:
                w.copy_(quantize(w))
        loss = F.cross_entropy(network(weights, x), y)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for w, before in zip(weights, kept, strict=True):
                w.copy_(before)
        optimizer.step()
        losses.append(loss.item())
    return losses


RIGHT = [
    loop(),
    called(lambda network, weights, quantize, x, y: network((quantize(w) for w in weights), x)),
    qat_by_grad,
    qat_with_a_closure,
    qat_in_place,
    qat_through_leaves,
    qat_by_one_hot,
    qat_with_while,
    qat_that_keeps,
    qat_zeroed_after,
    loop(loss_of=lambda z, y: F.cross_entropy(z, F.one_hot(y, 4).float())),
    loop(loss_of=lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(y)),
]
WRONG = [
    ("48 different values, so they are not quantized: give it", loop(lambda q, w: w)),
    (r"weights\[0\].*are not quantized", loop(lambda q, w: w.tanh())),
    (r"no gradient comes back from the network to weights\[0\]", loop(lambda q, w: q(w).detach())),
    ("no gradient comes back", loop(lambda q, w: torch.no_grad()(q)(w))),
    ("clipped weights move too", loop(lambda q, w: w + (q(w) - w).detach())),
    ("no weight has moved", loop(step=lambda optimizer: None)),
    ("gradients of earlier batches are added", loop(zero=False)),
    ("goes uphill", loop(sign=-1)),
    ("a sum over the batch", loop(loss_of=lambda z, y: F.cross_entropy(z, y, reduction="sum"))),
    ("only the first batch", loop(order=lambda b: b[:1])),
    ("only the last batch", loop(order=lambda b: b[-1:])),
    ("wrong order", loop(order=lambda b: b[::-1])),
    ("twice", loop(order=lambda b: [pair for pair in b for _ in "12"])),
    ("rounded weights take the place", overwriting),
    ("losses after the steps", losses_after),
    ("network is never called", lambda network, weights, quantize, batches, optimizer: [0.0] * len(batches)),
    ("it returns 1 losses: return a list", lambda *args: loop()(*args)[-1:]),
    ("a float of shape ..: return a list", lambda *args: loop()(*args)[-1]),
    ("right is", loop(loss_of=lambda z, y: F.cross_entropy(z.softmax(1), y))),
    ("right is", loop(loss_of=lambda z, y: F.mse_loss(z, F.one_hot(y, 4).float()))),
    (r"shapes \[\(6, 8\), \(8, 4\)\]", loop(lambda q, w: q(w).T)),
    ("clipped weights move too", rounded_in_place),
    ("quantized once for several steps", quantized_once),
    ("changed in place while PyTorch records", updated_by_hand),
    ("between the forward pass and loss.backward", shifted_before_backward),
    ("no gradient comes back from the loss", loop(loss_of=lambda z, y: F.cross_entropy(z, y).detach())),
    ("backward is called on a number", loop(loss_of=lambda z, y: F.cross_entropy(z, y).item())),
    ("a number for each image", loop(loss_of=lambda z, y: F.cross_entropy(z, y, reduction="none"))),
    ("takes the logits first", loop(loss_of=lambda z, y: F.cross_entropy(y, z))),
    ("the logits as they are", loop(loss_of=lambda z, y: F.cross_entropy(z.argmax(1), y))),
    ("quantize gets a tuple", called(lambda network, weights, quantize, x, y: network(quantize(weights), x))),
    ("gets no list of weights", called(lambda network, weights, quantize, x, y: network(x, weights))),
    ("gets the labels for the images", called(lambda network, weights, quantize, x, y: network(weights, y))),
    ("gets a tuple for the images", called(lambda network, weights, quantize, x, y: network(weights, (x, y)))),
    ("takes two arguments", called(lambda network, weights, quantize, x, y: network(*weights, x))),
]  # fmt: skip
