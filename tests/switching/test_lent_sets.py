"""Norm sets that are lent to a pair without one: the nearest pair's gain and shift, its own statistics."""

import copy

import pytest
import torch
from torch import nn
from uneven import images, net

import mebqat_lite as mq
from mebqat_lite.datasets.base import Split
from mebqat_lite.measure.evaluate import grid
from mebqat_lite.switching.state import norm_layers, setting_of


def with_sets():
    """Norm sets for W2A2 and W8A8 whose numbers are far from each other and from the float layers'."""
    model = mq.give_norm_sets(net(), ["W2A2", "W8A8"])
    for place, norm in enumerate(norm_layers(model).values()):
        for shift, own in enumerate(norm.sets.values(), 1):
            with torch.no_grad():
                own.weight.mul_(1 + shift / 3), own.bias.add_((-1) ** place * shift / 4)
    return model


@pytest.mark.parametrize(("bits", "lender"), [("W2A3", "W2A2"), ("W6A7", "W8A8"), ("W16A32", "FP"), ("W4A4", "W8A8")])
def test_a_lent_set_is_the_nearest_pair_s_gain_and_shift_with_own_statistics(bits, lender):
    model, x = with_sets(), images(60, seed=3)
    by_hand = copy.deepcopy(model)
    for norm in norm_layers(by_hand).values():
        if lender != "FP":
            norm.load_state_dict({**norm.state_dict(), **norm.sets[lender].state_dict()})
        norm.sets = nn.ModuleDict()
    with torch.no_grad(), mq.at(by_hand, bits, "batch"):
        logits = by_hand(x)  # statistics of these images at these bits, which are measured below
    split = Split(x, logits.argmax(1))
    found = grid(model, split, [bits], norm_stats="recalibrated", calibration=x, lend_sets=True)
    assert found.loc[bits, "mean"] == 100
    setting_of(model).lend_sets = True
    with torch.no_grad(), mq.at(model, bits, "recalibrated"):
        torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-9)
    for other in {"W2A2", "W8A8"} - {lender}:
        setting_of(model).lend_sets = False
        with torch.no_grad(), mq.at(model, other, "batch"):
            assert (model(x) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("before", [False, True])
def test_a_grid_lends_only_while_it_runs_and_only_if_told_to(before):
    model, x = with_sets(), images(40)
    split, pairs = Split(x, torch.arange(40) % 10), ["W2A2", "W3A5", "W16A16", "FP"]
    setting_of(model).lend_sets = before
    lent = grid(model, split, pairs, norm_stats="recalibrated", calibration=x, lend_sets=True)
    assert lent["mean"].notna().all() and setting_of(model).lend_sets is before
    refused = grid(model, split, pairs, norm_stats="recalibrated", calibration=x)
    assert refused["mean"].isna().tolist() == [False, True, True, False] and setting_of(model).lend_sets is before
    listed = ["W2A2", "FP"]
    assert refused.loc[listed, "mean"].equals(lent.loc[listed, "mean"])
    with pytest.raises(RuntimeError, match="Expected 3D"):
        grid(model, split, pairs, calibration=torch.rand(4), lend_sets=not before)
    assert setting_of(model).lend_sets is before
