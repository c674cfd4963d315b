"""Replay, with a stand-in for the CUDA graph that runs what was captured again."""

import copy
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.models.preprocess import Normalize
from leanres.training import loop
from leanres.training.batch import Batch
from leanres.training.cuda_graph import WARM_UP, Replay
from leanres.training.device import CPU, CUDA
from leanres.training.loop import TrainState
from leanres.training.muon import Muon
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup


class Found(NamedTuple):
    loss: Tensor
    correct: Tensor


class Again:
    """As a graph: the work once more, with the lr it was captured with and what that now holds.

    A capture runs nothing: what the work changed is put back.
    """

    def __init__(self, work, optimizer, model):
        self.work, self.groups = work, optimizer.param_groups
        self.rates = [group["lr"] for group in self.groups]
        tensors = [*model.state_dict().values()]
        tensors += [t for entries in optimizer.state.values() for t in entries.values()]
        before = [t.clone() for t in tensors]
        work()
        for t, was in zip(tensors, before, strict=True):
            t.copy_(was)

    def replay(self):
        before = [group["lr"] for group in self.groups]
        for group, rate in zip(self.groups, self.rates, strict=True):
            assert isinstance(rate, Tensor)
            group["lr"] = rate
        self.work()
        for group, rate in zip(self.groups, before, strict=True):
            group["lr"] = rate


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))


def sgd(model):
    head = {"params": [*model[2].parameters()], "lr": 0.02}
    return torch.optim.SGD([{"params": [*model[0].parameters()]}, head], 0.1, 0.9)


def muon(model):
    return Muon([model[0].weight], 0.1, 0.9)


def work_of(model, optimizer):
    def work(batch):
        logits = model(batch.inputs)
        loss = F.cross_entropy(logits, batch.targets)
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return Found(loss.detach(), (logits.argmax(1) == batch.targets).sum())

    return work


def batches(count, size=6):
    torch.manual_seed(1)
    for _ in range(count):
        yield Batch(torch.randn(size, 3, 8, 8), torch.randint(5, (size,)))


def train(compute, optimizer, given):
    """What each batch gave; the lr falls as it goes."""
    found = []
    for batch in given:
        found.append(compute(batch))
        for group in optimizer.param_groups:
            group["lr"] *= 0.8
    return found


def replayed(model, optimizer):
    captures = []

    def record(work):
        captures.append(Again(work, optimizer, model))
        return captures[-1].replay

    return Replay(work_of(model, optimizer), model, [optimizer], record), captures


@pytest.mark.parametrize("make", [sgd, muon])
def test_training_by_replays_is_training_step_by_step(make):
    plain, model = network(), network()
    expecting, optimizer = make(plain), make(model)
    replay, captures = replayed(model, optimizer)
    given = list(batches(WARM_UP + 6))
    expected = train(work_of(plain, expecting), expecting, given)
    found = train(replay, optimizer, given)
    assert len(captures) == 1
    for a, b in zip(expected, found, strict=True):  # also of steps long past
        assert b.loss.item() == pytest.approx(a.loss.item(), rel=1e-5)
        assert b.correct.item() == a.correct.item()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert all(type(group["lr"]) is float for group in optimizer.param_groups)


def test_nothing_is_captured_before_the_warm_up_is_over():
    model = network()
    replay, captures = replayed(model, sgd(model))
    for batch in batches(WARM_UP):
        replay(batch)
    assert not captures
    replay(next(batches(1)))
    assert len(captures) == 1


def test_each_shape_and_set_of_frozen_parameters_is_captured_once():
    model = network()
    replay, captures = replayed(model, sgd(model))
    for size in (6, 4, 6, 4):
        for batch in batches(WARM_UP + 2, size):
            replay(batch)
    assert len(captures) == 2
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    for batch in batches(WARM_UP + 2, 4):
        replay(batch)
    assert len(captures) == 3
    assert model[0].weight.equal(frozen)


def test_a_batch_stays_the_callers():
    model = network()
    replay, _ = replayed(model, sgd(model))
    for batch in batches(WARM_UP + 3):
        before = copy.deepcopy(batch)
        replay(batch)
        assert batch.inputs.equal(before.inputs)
        assert batch.targets.equal(before.targets)


def test_the_lr_is_put_back_where_a_capture_fails():
    model = network()
    optimizer = sgd(model)

    def fails(work):
        raise RuntimeError("no graph")

    replay = Replay(work_of(model, optimizer), model, [optimizer], fails)
    *warm, last = batches(WARM_UP + 1)
    for batch in warm:
        replay(batch)
    with pytest.raises(RuntimeError, match="no graph"):
        replay(last)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]


@pytest.mark.parametrize(
    ("device", "captures"),
    [
        (CPU("cpu", "float32", compiled=False), False),
        (CUDA("cuda", "bfloat16", compiled=False), False),
        (CUDA("cuda", "bfloat16", compiled=True), True),
    ],
    ids=str,
)
def test_compiled_steps_are_captured_on_a_gpu(digits, device, captures, monkeypatch):
    """The forward passes themselves need the device, so plain ones stand in for them."""
    made = []
    monkeypatch.setattr(loop, "Replay", lambda *given: made.append(given))
    monkeypatch.setattr(type(device), "training_forward", lambda self, model: model)
    setup = Setup(Recipe(), digits.train, Normalize((0.5,) * 3, (0.5,) * 3), device)
    model = network()
    loop._step_function(TrainState(model, [sgd(model)], ema=None), setup, None)
    assert bool(made) == captures
