"""Fine-tuning: what is loaded, what stays frozen, at which rate each layer learns."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from leanres.data.split import Dataset, Split
from leanres.errors import UserError
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.models.zoo import MODELS
from leanres.runs.fit import fit, resume
from leanres.runs.predictor import load_predictor
from leanres.runs.run import prepare
from leanres.training.finetune import frozen_layers, layer_names
from leanres.training.loop import steps
from leanres.training.recipe import Recipe

NET = SpeedNetConfig((8, 16), depth=2)
BASE = Recipe(model=NET, epochs=2, batch_size=200, accumulate=1, augment=(), freeze_stem_at=1.0)


def of_classes(data: Dataset, digits: tuple[int, ...]) -> Dataset:
    """The images of these digits alone, as a data set of its own."""
    parts = {}
    for name, split in data.splits.items():
        own = torch.isin(split.labels, torch.tensor(digits)).nonzero()[:, 0]
        labels = torch.tensor([digits.index(int(y)) for y in split.labels[own]])
        parts[name] = Split(split.images[own], labels, tuple(f"class {d}" for d in digits))
    return Dataset("few", parts["train"], None, parts["test"])


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A run on all ten digits."""
    from leanres.training.device import CPU

    folder = tmp_path_factory.mktemp("base") / "run"
    fit(folder, BASE, digits, CPU("cpu", "float32", compiled=False))
    return folder


# --- init -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "weights"])
def test_all_but_the_head_is_loaded_for_other_classes(trained, digits, device, kind):
    source = trained if kind == "run" else trained / "model.safetensors"
    data = of_classes(digits, (3, 5, 8))
    run = prepare(replace(BASE, init=str(source)), data, device)
    theirs, own = load_predictor(trained, "cpu", "float32").model, run.state.model
    for name, tensor in own.state_dict().items():
        same = name != "head.weight"
        assert (tensor.shape == theirs.state_dict()[name].shape) == same
        assert not same or torch.equal(tensor, theirs.state_dict()[name])
    count = len(own.state_dict())
    assert run.notes == [f"init {source}: {count - 1} of {count} tensors loaded; new: head.weight"]
    known = load_predictor(trained).preprocess
    assert (run.preprocess.mean, run.preprocess.std) == (known.mean, known.std)
    assert run.preprocess.classes == data.train.classes


def test_the_same_classes_keep_their_head_and_others_of_that_number_do_not(trained, digits, device):
    same = prepare(replace(BASE, init=str(trained)), digits, device)
    assert same.notes[0].endswith("tensors loaded")
    renamed = replace(digits.train, classes=tuple(f"no {name}" for name in digits.train.classes))
    other = prepare(replace(BASE, init=str(trained)), Dataset("other", renamed, None, None), device)
    assert other.notes[0].endswith("new: head.weight")
    theirs = load_predictor(trained, "cpu", "float32").model.state_dict()["head.weight"]
    assert torch.equal(same.state.model.state_dict()["head.weight"], theirs)
    assert not torch.equal(other.state.model.state_dict()["head.weight"], theirs)


def test_images_of_other_channels_get_a_new_stem_and_their_own_normalisation(
    trained, digits, device
):
    run = prepare(replace(BASE, init=str(trained)), digits.in_channels(1), device)
    assert "new: head.weight" not in run.notes[0]
    assert "stem.weight" in run.notes[0]
    assert len(run.preprocess.mean) == 1


def test_a_recipes_own_mean_comes_first(trained, digits, device):
    recipe = replace(BASE, init=str(trained), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    run = prepare(recipe, digits, device)
    assert (run.preprocess.mean, run.preprocess.std) == (recipe.mean, recipe.std)


def test_fine_tuning_starts_ahead_and_resumes_without_the_file(trained, digits, device, tmp_path):
    scratch = fit(tmp_path / "scratch", replace(BASE, epochs=1), digits, device)
    recipe = replace(BASE, epochs=1, init=str(trained / "model.safetensors"), lr=0.05)
    tuned = fit(tmp_path / "tuned", recipe, digits, device)
    assert tuned["accuracy"] > scratch["accuracy"] + 0.03
    whole = fit(tmp_path / "whole", replace(recipe, epochs=2), digits, device)
    assert len(json.loads((tmp_path / "whole" / "run.json").read_text())["init"]) == 64
    kept = trained / "model.safetensors"
    kept.rename(trained / "elsewhere")
    try:
        resumed = resume(tmp_path / "tuned", epochs=2, dataset=digits, device=device)
    finally:
        (trained / "elsewhere").rename(kept)
    assert resumed["params"] == whole["params"]
    assert (
        load_predictor(tmp_path / "tuned").preprocess
        == load_predictor(tmp_path / "whole").preprocess
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"init": "nowhere"}, "init = 'nowhere': nowhere does not exist"),
        ({"model": ResNetConfig((8,), (1,))}, "has another network than the recipe: give --model"),
        ({"model": replace(NET, activation="gelu")}, "has another network than the recipe"),
    ],
)
def test_what_does_not_fit_is_refused(trained, digits, device, settings, problem):
    with pytest.raises(UserError, match=problem):
        prepare(replace(BASE, **({"init": str(trained)} | settings)), digits, device)


def test_the_command_line_takes_the_network_of_init(trained, tmp_path, leanres):
    words = ("--data", "digits", "--epochs", 1, "--set", "batch_size=400", "--set", "accumulate=1")
    done = leanres("train", "digits", *words, "--set", f"init={trained}", "--out", tmp_path / "a")
    assert done.code == 0, done.err
    assert f"note: init {trained}: " in done.err
    assert load_predictor(tmp_path / "a").config == load_predictor(trained).config
    for wrong in ("nowhere", "resnet20"):  # a name is no weights
        done = leanres("train", "digits", *words, "--set", f"init={wrong}", "--out", tmp_path / "b")
        assert done.code == 2
        assert f"leanres: init = {wrong!r}: {wrong} does not exist: give a run folder" in done.err
    done = leanres("train", "digits", *words, "--model", trained, "--out", tmp_path / "b")
    assert done.code == 0, done.err
    assert load_predictor(tmp_path / "b").config == load_predictor(trained).config


# --- freeze ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("speednet", ["stem", "stages.0", "stages.1", "stages.2", "head"]),
        ("resnet20", ["stem", "stages.0", "stages.1", "stages.2", "linear"]),
        ("wrn-16-4", ["stem", "stages.0", "stages.1", "stages.2", "norm", "linear"]),
        ("custom-resnet", ["stem", "layer1", "layer2", "layer3", "head"]),
    ],
)
def test_layers_are_the_children_and_the_blocks_of_containers(name, layers):
    model = MODELS[name].config.build()
    assert layer_names(model) == layers
    owned = {id(p) for layer in layers for p in model.get_submodule(layer).parameters()}
    assert owned == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("", []),
        ("stem, stages.1", ["stem", "stages.1"]),
        ("stage1,stage3", ["stages.0", "stages.2"]),
        ("stages", ["stages"]),
        (0.5, ["stem", "stages.0"]),
        (0.99, ["stem", "stages.0", "stages.1", "stages.2"]),
    ],
)
def test_freeze_takes_names_and_shares(freeze, expected):
    assert frozen_layers(MODELS["resnet20"].config.build(), freeze) == expected


@pytest.mark.parametrize(
    ("freeze", "problem"),
    [
        ("stm", "no layer 'stm'; did you mean 'stem'"),
        ("stage9", "no layer 'stage9'"),
        ("stem,stages,head", "leaves nothing to train"),
        (1.5, "freeze = 1.5: give names of layers, .*, or a share from 0.001 to 0.999"),
        (True, "or a share"),
        (" , ", "freeze = ' , ': give names of layers"),
    ],
)
def test_what_cannot_be_frozen_is_refused(freeze, problem, digits, device):
    with pytest.raises(UserError, match=problem):
        prepare(replace(BASE, freeze=freeze), digits, device)


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_frozen_layers_do_not_change_at_all(digits, device, optimizer):
    model = ResNetConfig((8, 16), (1, 1))
    recipe = replace(BASE, model=model, optimizer=optimizer, freeze="stem,stage1", ema=0.5, lr=0.01)
    run = prepare(recipe, digits, device)
    before = {name: t.clone() for name, t in run.state.model.state_dict().items()}
    for _ in steps(run.state, run.setup):
        pass
    after = run.state.model.state_dict()
    changed = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name in after
        if not torch.equal(before[name], after[name])
    }
    assert changed <= {"stages.1", "linear.weight", "linear.bias"}
    assert {"stages.1", "linear.weight"} <= changed


@pytest.mark.parametrize("freeze", ["stem,stage1", "stage2"])
def test_own_kernels_and_pytorchs_train_alike_with_frozen_layers(digits, freeze):
    from leanres.training.device import CPU

    class Plain(CPU):
        """Without own kernels."""

        def training_forward(self, model: nn.Module) -> nn.Module:
            return model

    recipe = replace(BASE, model=ResNetConfig((8, 16, 16), (1, 1, 1)), freeze=freeze, epochs=1)
    losses = []
    for kind in (CPU, Plain):
        run = prepare(recipe, digits, kind("cpu", "bfloat16", compiled=False))
        losses.append([float(result.loss) for result in steps(run.state, run.setup)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# --- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw", "adam"])
def test_each_layer_learns_at_a_share_of_the_next_ones_rate(digits, device, optimizer):
    recipe = replace(BASE, optimizer=optimizer)
    plain, scaled = (prepare(replace(recipe, layer_lr_decay=d), digits, device) for d in (1.0, 0.5))
    rates = []
    for run in (plain, scaled):
        names = {id(p): name for name, p in run.state.model.named_parameters()}
        groups = [g for o in run.state.optimizers for g in o.param_groups]
        rates.append({names[id(p)]: g["lr"] for g in groups for p in g["params"]})
    assert rates[0].keys() == rates[1].keys()
    depth = {"head": 0, "stages.1": 1, "stages.0": 2, "stem": 3}
    for name, rate in rates[1].items():
        power = next(d for layer, d in depth.items() if name.startswith(layer))
        assert rate == pytest.approx(rates[0][name] * 0.5**power)


def test_rates_by_depth_train_as_groups_that_are_given_to_pytorch(digits, device):
    recipe = replace(
        BASE, optimizer="sgd", layer_lr_decay=0.5, schedule="constant", lr=0.1, epochs=1
    )
    run = prepare(recipe, digits, device)
    twin = prepare(recipe, digits, device)
    model = twin.state.model
    depth = {"head": 0, "stages.1": 1, "stages.0": 2, "stem": 3}
    groups = [
        {"params": [p], "lr": 0.1 * 0.5 ** next(d for k, d in depth.items() if n.startswith(k))}
        for n, p in model.named_parameters()
        if p.requires_grad
    ]
    twin.state.optimizers = [torch.optim.SGD(groups, 0.1, recipe.momentum, nesterov=True)]
    for own, theirs in zip(steps(run.state, run.setup), steps(twin.state, twin.setup), strict=True):
        torch.testing.assert_close(own.loss, theirs.loss)
