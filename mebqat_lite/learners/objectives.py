"""What the labels of a task ask of a network: classes or values, with their loss and their measure.

Labels that are whole numbers, (batch,), are classes. Floats, (batch, outputs), are values, such as colours.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from mebqat_lite.datasets.base import DataError
from mebqat_lite.quantizers import wide


def cross_entropies(logits: Tensor, labels: Tensor, soft: Tensor | None, alone: bool = False) -> Tensor:
    """Add the cross-entropies with the labels and with a teacher's class probabilities (ECCV 2022, section 3.2).

    logits: (batch, classes); labels: (batch,); soft: the teacher's probabilities, (batch, classes), or None if only
    the labels teach. With ``alone`` only the teacher teaches. Returns a scalar, the mean over the batch.
    """
    if soft is None:
        return F.cross_entropy(logits, labels)
    imitation = F.cross_entropy(logits, soft)
    return imitation if alone else F.cross_entropy(logits, labels) + imitation


class Classes:
    """Labels that are classes are learned by cross-entropy, and the accuracy is measured in percent."""

    name, measure = "accuracy", "accuracy (%)"

    def loss(self, out: Tensor, labels: Tensor, teacher: Tensor | None = None, alone: bool = False) -> Tensor:
        """Compute `cross_entropies` from logits, those of a teacher too, (batch, classes), and labels, (batch,)."""
        return cross_entropies(out, labels, None if teacher is None else teacher.softmax(1), alone)

    def score(self, out: Tensor, labels: Tensor) -> float:
        """Count the correct answers of logits, (batch, classes).

        Raises:
            DataError: a label is larger than the network has outputs.
        """
        if out.shape[1] <= (highest := int(labels.max())):
            raise DataError(f"labels go up to {highest}, but this network has {out.shape[1]} outputs")
        return float((out.argmax(1) == labels).sum())

    def measured(self, total: float, count: int) -> float:
        """Return the accuracy in percent; ``total`` is the score of all ``count`` examples."""
        return 100 * total / count


class Values:
    """Labels that are values in [0, 1] are learned by their mean squared error (MSE).

    The measure is the peak signal-to-noise ratio, PSNR = -10 log10(MSE), in decibels (dB).
    """

    name, measure = "PSNR", "PSNR (dB)"

    def loss(self, out: Tensor, labels: Tensor, teacher: Tensor | None = None, alone: bool = False) -> Tensor:
        """Add the squared errors to the labels and to the output of a teacher; all are (batch, outputs).

        With ``alone`` only the teacher teaches. Returns a scalar, the mean over the batch and over the outputs.

        Raises:
            DataError: the network does not have as many outputs as an example has values.
        """
        if out.shape != labels.shape:
            raise DataError(f"labels have {labels.shape[1]} values each, but this network has {out.shape[1]} outputs")
        error = F.mse_loss(wide(out), labels)
        if teacher is None:
            return error
        imitation = F.mse_loss(wide(out), wide(teacher))
        return imitation if alone else error + imitation

    def score(self, out: Tensor, labels: Tensor) -> float:
        """Add up the squared errors of the examples, each the mean over its values, (batch, outputs), in float64.

        Raises:
            DataError: the network does not have as many outputs as an example has values.
        """
        return len(out) * float(self.loss(out.double(), labels.double()))

    def measured(self, total: float, count: int) -> float:
        """Return the PSNR in dB, infinite without any error; ``total`` is the score of all ``count`` examples."""
        return -10 * math.log10(total / count) if total else math.inf


def objective(labels: Tensor) -> Classes | Values:
    """Choose by the type of the labels of a task what it asks of a network."""
    return Values() if labels.is_floating_point() else Classes()
