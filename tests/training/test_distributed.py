"""Several processes compute what one computes, to the last bit; forks on this machine, gloo."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import OK, TOLD, Outcome, free_port, ranked, together
from torch import nn

from leanres.data.split import Dataset
from leanres.errors import LostProcessError, UserError
from leanres.models.preprocess import ImageClassifier
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.runs import checkpoint
from leanres.runs.checkpoint import pack
from leanres.runs.predictor import Predictor
from leanres.runs.run import Run, _check_agreement, create, prepare
from leanres.runs.weights import save_weights
from leanres.training import distributed
from leanres.training.device import CPU
from leanres.training.distributed import Parts, World, joined
from leanres.training.loop import NonFiniteLossError, steps, train_epochs
from leanres.training.parts import RunningStatistics, check_buffers
from leanres.training.recipe import Recipe

SPEED = Recipe(
    model=SpeedNetConfig((8, 16)), epochs=1, batch_size=96, drop_last=False, val=40, lr=0.1
)
SGD = replace(
    SPEED, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4, augment=(("crop", {}),)
)
VARIANTS = {
    "speed": replace(SPEED, epochs=2),
    "float32": replace(SPEED, precision="float32"),
    "plain-sgd": replace(SGD, model=ResNetConfig((8, 16), (1, 1)), label_smoothing=0.0),
    "dropout": replace(SGD, model=ResNetConfig((8, 16), (1, 1), dropout=0.5, drop_path=0.2)),
    "sam": replace(SPEED, sam_rho=0.05),
    "augment_repeats": replace(SPEED, augment_repeats=3, accumulate=5),
    "selector": replace(SPEED, selector=SpeedNetConfig((4,)), select_fraction=0.4),
    "teacher": SPEED,
    "mixes": replace(SPEED, mix=(("cutmix", {}), ("mixup", {}), ("ricap", {}))),
    "ema": replace(SPEED, ema=0.9, progressive_resizing=((0, 0.5), (0.5, 1)), freeze_stem_at=0.5),
    "class_weights": replace(SPEED, class_weights="balanced", balanced_sampler=True),
    "frozen": replace(SPEED, freeze=0.4, layer_lr_decay=0.7, optimizer="adamw"),
}


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """209 digits to train on: three batches, the last of 17, and 40 for val."""
    return replace(digits, train=digits.train.subset(range(249)))


@pytest.fixture(scope="module")
def teacher(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained network."""
    run = prepare(replace(SPEED, seed=9), digits, CPU("cpu", "float32", compiled=False))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(path, run.state.model, run.config, run.preprocess)
    return path


def trained(recipe: Recipe, dataset: Dataset, world: World, until: float = math.inf) -> Run:
    """The run after some steps, or at the end, in memory."""
    precision = "bfloat16" if recipe.precision == "auto" else recipe.precision
    run = prepare(recipe, dataset, CPU("cpu", precision, compiled=False), world=world)
    for _ in train_epochs(run.state, run.setup, run.val, watch=lambda state: state.step < until):
        pass
    return run


def digest(run: Run) -> str:
    """Of everything: weights, averages, optimizers, the rows of metrics, and the predictions."""
    tensors, meta = pack(run.state)
    assert run.dataset.test is not None
    classifier = ImageClassifier(run.state.kept, run.preprocess)
    predictor = Predictor(classifier, run.config, run.setup.device)
    figures, logits = predictor.measure(run.dataset.test, "flip", run.setup.world)
    text = json.dumps([meta["step"], meta["history"], figures])
    content = text.encode()
    for name, tensor in sorted((tensors | {"logits": logits}).items()):
        content += name.encode() + tensor.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


CASES = [(name, "own") for name in VARIANTS] + [(n, "PyTorch's") for n in ("speed", "dropout")]


@pytest.fixture(scope="module")
def digests(few: Dataset, teacher: Path) -> dict[tuple[str, str], set[str]]:
    """What 1, 2 and 4 processes compute of each case, as digests."""

    def train(world: World) -> str:
        found = []
        for name, kernels in CASES:
            recipe = VARIANTS[name]
            if name == "teacher":
                recipe = replace(recipe, teacher=str(teacher))
            with pytest.MonkeyPatch.context() as patch:
                if kernels != "own":
                    patch.setitem(sys.modules, "leanres.kernels", None)
                found.append(digest(trained(recipe, few, world)))
        return json.dumps(found)

    outcomes = [outcome for size in (1, 2, 4) for outcome in together(train, size)]
    assert {outcome.code for outcome in outcomes} == {OK}, outcomes
    columns = zip(*(json.loads(outcome.message) for outcome in outcomes), strict=True)
    return dict(zip(CASES, map(set, columns), strict=True))


@pytest.mark.parametrize("case", CASES, ids=" by ".join)
def test_the_result_does_not_depend_on_the_number_of_processes(case, digests):
    assert len(digests[case]) == 1


def test_each_case_trains_in_its_own_way(digests):
    assert len(set.union(*digests.values())) >= len(CASES) - 1  # kernels may not differ


def test_fast_reduction_is_equal_within_rounding(few):
    recipe = replace(SPEED, precision="float32", ema=0.9, epochs=1)

    def train(world: World) -> str:
        return json.dumps(
            [p.tolist() for p in trained(recipe, few, world).state.model.parameters()]
        )

    alone, *others = together(train, 1) + together(train, 2, reduction="fast")
    assert others[0] == others[1]  # both have the same network
    for own, other in zip(json.loads(alone.message), json.loads(others[0].message), strict=True):
        torch.testing.assert_close(torch.tensor(other), torch.tensor(own), rtol=1e-3, atol=1e-4)


def test_an_average_over_all_batches_and_other_norms_are_those_of_pytorch():
    """Updated as by PyTorch itself, part after part."""
    torch.manual_seed(0)
    last = nn.InstanceNorm2d(3, momentum=0.2, track_running_stats=True)
    norms = [nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3), last]
    network, oracle = nn.Sequential(*norms), nn.Sequential(*copy.deepcopy(norms))
    for _ in range(3):
        images = torch.randn(12, 3, 4, 4)
        for part in images.chunk(4):
            oracle(part)
        statistics = RunningStatistics(network)
        rows = []
        for k, part in enumerate(images.chunk(4)):
            statistics.begin_(k)
            network(part)
            rows.append(torch.cat(statistics.taken()))
        statistics.apply_(torch.stack(rows))
    for own, expected in zip(network.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [1, 3, 8, 57, 96])
@pytest.mark.parametrize("slots", [1, 4, 5, 7])
def test_parts_are_chunks_and_each_belongs_to_one_process(images, slots):
    parts = Parts(images, slots)
    chunks = torch.arange(images).chunk(slots)
    assert [len(chunk) for chunk in chunks] == [
        min(parts.size, images - k * parts.size) for k in range(parts.count)
    ]
    for size in range(1, slots + 1):
        worlds = [World(rank, size) for rank in range(size)]
        dealt = [k for world in worlds for k in world.own(parts)]
        assert dealt == list(range(parts.count))
        whole = [i for world in worlds for i in range(images)[world.rows(parts)]]
        assert whole == list(range(images))
        assert sum(worlds[0].counts(parts)) == images


def test_saved_within_an_epoch_by_two_and_continued_by_others_it_is_the_uninterrupted_run(
    few, tmp_path
):
    recipe = replace(SPEED, ema=0.9, mix=(("cutmix", {}),))

    def begin(world: World) -> None:
        run = trained(recipe, few, world, until=2)
        if world.leads:
            checkpoint.save(tmp_path, run.state)

    assert {o.code for o in together(begin, 2)} == {OK}

    def go_on(world: World) -> str:
        run = prepare(recipe, few, CPU("cpu", "bfloat16", compiled=False), world=world)
        checkpoint.restore_(tmp_path, run.state)
        assert run.state.step == 2
        for _ in train_epochs(run.state, run.setup, run.val):
            pass
        return digest(run)

    def whole(world: World) -> str:
        return digest(trained(recipe, few, world))

    outcomes = together(whole, 1) + together(go_on, 1) + together(go_on, 4)
    assert {(o.code, o.message) for o in outcomes} == {(OK, outcomes[0].message)}


@pytest.mark.parametrize("lost_at", ["gradients", "second pass", "control"])
def test_where_a_process_ends_within_a_step_the_others_have_the_state_before_it(
    lost_at, few, tmp_path
):
    """The one that ends does so before one of the exchanges of its third step."""
    recipe = replace(SPEED, sam_rho=0.05, selector=SpeedNetConfig((4,)), ema=0.9)

    def train(world: World) -> str:
        run = prepare(recipe, few, CPU("cpu", "bfloat16", compiled=False), world=world)
        taken, calls = steps(run.state, run.setup), 0
        for _ in range(2):
            next(taken)
        before = digest_of_state(run)
        exchange, last = World.sum_in_order, {"gradients": 2, "second pass": 3}.get(lost_at, 0)

        def dying(world: World, *given):
            nonlocal calls
            calls += 1
            if world.rank == 1 and calls == last:
                os._exit(9)
            return exchange(world, *given)

        World.sum_in_order = dying
        if world.rank == 1 and not last:
            os._exit(9)
        with pytest.raises(LostProcessError, match="has ended"):
            next(taken)
        return json.dumps(before == digest_of_state(run))

    first, _, third = together(train, 3)
    assert first == third == Outcome(OK, "true")


def digest_of_state(run: Run) -> str:
    tensors, meta = pack(run.state)
    content = json.dumps(meta["history"]).encode()
    for _, tensor in sorted(tensors.items()):
        content += tensor.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def test_more_processes_than_parts_are_refused(few):
    def make(world: World) -> None:
        recipe = replace(SPEED, accumulate=2)
        prepare(recipe, few, CPU("cpu", "float32", compiled=False), world=world)

    said = (
        "3 processes need as many parts of a batch, and accumulate is 2: give --set accumulate=3,"
        " which is another recipe, or --processes 2"
    )
    assert {(o.code, o.message) for o in together(make, 3)} == {(TOLD, said)}


class Counting(nn.Flatten):
    """A layer whose buffer counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


def test_a_network_with_a_state_of_its_own_is_refused():
    network, images = nn.Sequential(nn.BatchNorm2d(3), Counting()), torch.randn(2, 3, 4, 4)
    with pytest.raises(UserError, match=r"buffer 1\.calls changes .* in one process"):
        check_buffers(network, images)
    check_buffers(network[:1], images)


def test_processes_that_do_not_agree_leave_no_run_behind(few, tmp_path):
    def make(world: World) -> None:
        recipe = replace(SPEED, lr=0.1 + world.rank)
        create(tmp_path / "run", recipe, few, CPU("cpu", "float32", False), world=world)

    said = "process 1 has the setting lr 1.1, process 0 has 0.1: give all of them the same"
    assert {(o.code, o.message) for o in together(make, 2)} == {(TOLD, said)}
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_on_one_process_stops_all_at_its_step(few):
    def train(world: World) -> str:
        run = prepare(SPEED, few, CPU("cpu", "float32", compiled=False), world=world)
        taken = train_epochs(run.state, run.setup)
        if world.rank == 1:
            for buffer in run.setup.normalize.buffers():
                buffer.fill_(math.nan)
        with pytest.raises(NonFiniteLossError) as error:
            list(taken)
        return str(error.value)

    outcomes = together(train, 2)
    assert {o.code for o in outcomes} == {OK}
    assert outcomes[0].message == outcomes[1].message == "the loss is nan at step 1"


def test_an_error_of_one_process_is_raised_in_all_and_names_it():
    def fail(world: World) -> None:
        with world.agreed():
            if world.rank == 1:
                raise UserError("no such file")

    assert {(o.code, o.message) for o in together(fail, 3)} == {(TOLD, "process 1: no such file")}


def test_other_data_recipes_and_versions_are_refused_by_name(few):
    def train(world: World) -> None:
        dataset = few if world.rank == 0 else replace(few, train=few.train.subset(range(200)))
        _check_agreement(prepare(SPEED, dataset, CPU("cpu", "float32", False), world=world))

    for outcome in together(train, 2):
        assert outcome.code == TOLD
        assert "process 1 has data: train" in outcome.message


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        (0, r"process 0 of 2 did not find the others at 127.0.0.1:\d+ .* start all 2, on a free"),
        (1, r"process 1 of 2 did not find the others at 127.0.0.1:\d+ .* start all 2, on a free"),
    ],
)
def test_a_process_that_never_comes_is_told_of(rank, said, monkeypatch):
    monkeypatch.setattr(distributed, "JOIN_S", 1)
    monkeypatch.setattr(os, "environ", {**os.environ, **ranked(rank, 2, free_port())})
    with pytest.raises(UserError, match=said), joined():
        pass


def test_a_port_in_use_is_told_of(monkeypatch):
    monkeypatch.setattr(distributed, "JOIN_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = ranked(0, 2, taken.getsockname()[1])
        monkeypatch.setattr(os, "environ", {**os.environ, **place})
        with pytest.raises(UserError, match=r"(?s)did not find.*in use.*on a free port"), joined():
            pass


def test_processes_started_again_do_not_take_what_earlier_ones_left():
    """torchrun keeps its store, with the addresses of processes that are gone."""
    store = dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    for size in (3, 3, 2):
        outcomes = together(lambda world: world.highest(world.rank), size, store=store)
        assert {(o.code, o.message) for o in outcomes} == {(OK, str(size - 1))}
