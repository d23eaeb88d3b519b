"""A network that begins with an operation in place changes neither the caller's images nor the next pair's."""

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import ProtoNet, Supervised
from mebqat_lite.measure.costs import bit_operations
from mebqat_lite.measure.evaluate import agreement
from mebqat_lite.measure.fewshot import episode_scores
from mebqat_lite.switching.stem import StemAndBody

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = Data("noise", Split(IMAGES, torch.arange(24) % 3), None, None, tuple("abc"))


class InPlace(nn.Module):
    """Standardizes its input: in place, or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.rest = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x):
        return self.head(self.rest(x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25))


class InPlaceStem(StemAndBody):
    def __init__(self, in_place):
        super().__init__()
        inner = InPlace(in_place)
        self.stem = nn.Sequential(nn.ReLU6(in_place), nn.Threshold(0.5, 0.1, in_place), inner.rest[0])
        self.body = nn.Sequential(nn.Sequential(*inner.rest[1:]), inner.head)


def pair_of(kind, quantizer="lsq"):
    """The network with operations in place, and the same without."""
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        found.append(mq.quantize(kind(in_place), quantizer, sample=IMAGES))
    return found


@pytest.mark.parametrize("kind", [InPlace, InPlaceStem])
def test_training_sees_the_same_images_at_every_pair(kind):
    losses = []
    for model in pair_of(kind):
        task = Split(IMAGES.clone(), DATA.train.labels)
        values = []
        for _, loss in Supervised("fp").losses(model, task, mq.bits.parse_all("FP,W8A8,W4A4,W2A2")):
            loss.backward()
            values.append(float(loss))
        losses.append(values)
        assert torch.equal(task.images, IMAGES)
    assert losses[0] == losses[1] and len(set(losses[0])) == 4


@pytest.mark.parametrize("kind", [InPlace, InPlaceStem])
def test_measuring_leaves_the_callers_images(kind):
    grids = []
    for model in pair_of(kind):
        mine = Split(IMAGES.clone(), DATA.train.labels)
        grid = mq.grid(model, mine, "W2A2,W4A4,FP", norm_stats="recalibrated", calibration=mine.images)
        grids.append(grid["mean"].tolist())
        bit_operations(model, mine.images[0], "W2A2")
        agreement(model, mine.images, "W2A2")
        assert torch.equal(mine.images, IMAGES)
    assert grids[0] == grids[1]


def test_episodes_stay_as_they_are():
    scores = []
    for model in pair_of(InPlace):
        mine = Split(IMAGES.clone(), DATA.train.labels)
        mq.recalibrate(model, mine.images, "W2A2,W4A4")
        for policy in ("support", "recalibrated", "batch"):
            episodes = Episodes(mine, 3, 1, 2)
            scores.append(episode_scores(model, ProtoNet(), episodes, "W2A2,W4A4", count=3, norm_stats=policy).tolist())
        assert torch.equal(mine.images, IMAGES)
    assert scores[:3] == scores[3:]
