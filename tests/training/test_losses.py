"""Losses: the table's own, and one of the user's, against PyTorch and a slow loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from leanres.errors import UserError
from leanres.training.batch import Batch
from leanres.training.loss import loss_of
from leanres.training.losses import LOSSES, cross_entropy
from leanres.training.recipe import Recipe

RNG = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 5, generator=RNG)
LABELS = torch.randint(5, (12,), generator=RNG)
MIXED = torch.randn(12, 5, generator=RNG).softmax(1)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0])


@pytest.fixture
def focal():
    """Lin et al. 2017, arXiv:1708.02002, eq. 4, for the true class."""

    def loss(logits, targets, gamma: float = 2.0):
        logs = logits.log_softmax(1)
        return -(targets * (1 - logs.exp()) ** gamma * logs).sum(1)

    LOSSES["focal"] = loss
    yield loss
    del LOSSES["focal"]


@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["labels", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_the_entry_cross_entropy_is_pytorchs(targets, smoothing, weights):
    """Under another name it takes the way of a user's loss."""
    LOSSES["mine"] = cross_entropy
    try:
        recipe = Recipe(loss="mine", label_smoothing=smoothing)
        mean = 1.0 if weights is None or targets.ndim == 2 else float(weights[targets].mean())
        own = loss_of(LOGITS, Batch(LOGITS, targets), recipe, weights, mean)
    finally:
        del LOSSES["mine"]
    if weights is None or (targets.ndim == 1 and not smoothing):
        theirs = F.cross_entropy(LOGITS, targets, weights, label_smoothing=smoothing)
        torch.testing.assert_close(own, theirs)
    else:  # PyTorch weights the share of each class; a user's loss is one number per image
        smooth = targets if targets.ndim == 2 else F.one_hot(targets, 5).float()
        loop = sum(
            float(smooth[i] @ weights)
            * -sum(
                ((1 - smoothing) * float(smooth[i, k]) + smoothing / 5)
                * float(LOGITS[i].log_softmax(0)[k])
                for k in range(5)
            )
            for i in range(12)
        )
        assert float(own) == pytest.approx(loop / 12 / mean, rel=1e-5)


def test_a_loss_of_ones_own_has_settings(focal):
    recipe = Recipe(loss=["focal", {"gamma": 1.5}], label_smoothing=0.0)
    expected = 0.0
    for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        total = sum(math.exp(x) for x in row)
        p = math.exp(row[label]) / total
        expected += -((1 - p) ** 1.5) * math.log(p) / 12
    assert float(loss_of(LOGITS, Batch(LOGITS, LABELS), recipe)) == pytest.approx(
        expected, rel=1e-5
    )
    with pytest.raises(UserError, match="focal: gamma = 'two': give a number"):
        Recipe(loss=["focal", {"gamma": "two"}])


def test_focal_without_focus_is_cross_entropy_in_training(focal, digits, device):
    from leanres.models.speednet import SpeedNetConfig
    from leanres.runs.run import prepare
    from leanres.training.loop import steps

    base = Recipe(model=SpeedNetConfig((8,)), epochs=1, batch_size=300, accumulate=2, augment=())
    losses = []
    for loss in ("cross-entropy", ["focal", {"gamma": 0.0}], "focal"):
        run = prepare(replace(base, loss=loss, class_weights="balanced"), digits, device)
        losses.append([float(result.loss) for result in steps(run.state, run.setup)])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[2][-1] < losses[0][-1]


def test_an_unknown_loss_is_named():
    with pytest.raises(UserError, match="no loss 'cross-entrop'; did you mean 'cross-entropy'"):
        Recipe(loss="cross-entrop")
