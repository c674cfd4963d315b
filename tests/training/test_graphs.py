"""Replay, with a stand-in for the CUDA graph that runs what was captured again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanres.training.batch import Batch
from leanres.training.engine import Engine
from leanres.training.graphs import WARM_UP, Replay


class Again:
    """As a graph does: the work once more, its results and gradients written where they lay."""

    def __init__(self, work, replay, model):
        work()
        self.work, self.replay_, self.model = work, replay, model
        self.found = replay.found
        self.gradients = [p.grad for p in model.parameters()]

    def replay(self):
        self.model.zero_grad(set_to_none=True)
        self.work()
        values = [*self.replay_.found, *(p.grad for p in self.model.parameters())]
        for own, new in zip([*self.found, *self.gradients], values, strict=True):
            if own is not None:
                own.copy_(new)
        self.replay_.found = self.found


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))


def work_of(model):
    def work(batch):
        logits = model(batch.inputs)
        loss = F.cross_entropy(logits, batch.targets)
        loss.backward()
        return loss.detach(), (logits.argmax(1) == batch.targets).sum()

    return work


def batches(count, size=6):
    torch.manual_seed(1)
    for _ in range(count):
        yield Batch(torch.randn(size, 3, 8, 8), torch.randint(5, (size,)))


def train(model, compute, given):
    """Losses, hits and the weights after SGD on the batches."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    found = []
    for batch in given:
        found.append(compute(batch))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return found, list(model.parameters())


def replayed(model):
    captures = []

    def capture(work):
        captures.append(Again(work, replay, model))
        return captures[-1]

    replay = Replay(work_of(model), model, capture)
    return replay, captures


def test_training_by_replays_is_training_step_by_step():
    plain, model = network(), network()
    replay, captures = replayed(model)
    given = list(batches(WARM_UP + 6))
    expected, weights = train(plain, work_of(plain), given)
    found, ours = train(model, replay, given)
    assert len(captures) == 1
    for a, b in zip(expected, found, strict=True):
        assert [t.item() for t in a] == [t.item() for t in b]  # also of steps long past
    for a, b in zip(weights, ours, strict=True):
        assert a.equal(b)


def test_nothing_is_captured_before_the_warm_up_is_over():
    replay, captures = replayed(network())
    for i, batch in enumerate(batches(WARM_UP + 1)):
        assert len(captures) == 0, i
        replay(batch)
    assert len(captures) == 1


def test_another_shape_and_frozen_parameters_are_captured_anew():
    model = network()
    replay, captures = replayed(model)
    for size in (6, 4):
        for batch in batches(WARM_UP + 2, size):
            replay(batch)
            model.zero_grad(set_to_none=True)
    assert len(captures) == 2
    model[0].requires_grad_(False)
    for batch in batches(WARM_UP + 2, 4):
        replay(batch)
        assert model[0].weight.grad is None
        assert model[2].weight.grad is not None
        model.zero_grad(set_to_none=True)
    assert len(captures) == 3


def test_a_batch_stays_the_callers():
    replay, _ = replayed(network())
    for batch in batches(WARM_UP + 3):
        before = copy.deepcopy(batch)
        replay(batch)
        assert batch.inputs.equal(before.inputs)
        assert replay(batch)[0].item() == replay(batch)[0].item()


@pytest.mark.parametrize(
    ("device", "compiled", "kind"),
    [("cpu", True, False), ("cuda", False, False), ("cuda", True, True)],
)
def test_the_engine_replays_compiled_steps_on_a_gpu(device, compiled, kind):
    model = network()
    made = Engine(device, "bfloat16", compiled).replayed(work_of(model), model)
    assert isinstance(made, Replay) == kind
