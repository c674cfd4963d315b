"""Plugins: a user's file trains, resumes, evaluates and ships; nothing is imported unasked."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import leanres as package
from leanres import plugins
from leanres.errors import UserError
from leanres.models.config import FACTORIES, FactoryConfig
from leanres.models.cost import summarize
from leanres.models.zoo import MODELS, config_from_dict, config_to_dict
from leanres.plugins import load_plugin
from leanres.runs.fit import fit
from leanres.runs.predictor import load_predictor
from leanres.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
MINE = """
import torch
from torch import nn
import leanres

class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.conv = nn.Conv2d(in_channels, 32, 3, stride=2)
        self.norm = nn.BatchNorm2d(32)
        self.register_buffer("shift", torch.ones(32, 1, 1), persistent=False)
        self.head = nn.Linear(32 * 16, num_classes)

    def forward(self, images):
        maps = torch.relu(self.norm(self.conv(self.up(images)))) * self.shift
        return self.head(nn.functional.adaptive_avg_pool2d(maps, 4).flatten(1))

def darker(images, draw, factor: float = 0.9):
    return (images * factor).to(images.dtype)

def squared(logits, targets):
    return (logits.softmax(1) - targets).square().sum(1)

def rprop(model, recipe):
    return [torch.optim.Rprop(model.parameters(), recipe.lr)]

def flat(point):
    return 0.5

def not_a_net(num_classes, in_channels):
    return 7

leanres.MODELS["mine"] = Net
leanres.AUGMENTS["darker"] = darker
"""
pytestmark = pytest.mark.usefixtures("plugins_forgotten")
WORDS = ("--data", "digits", "--epochs", 1, "--set", "batch_size=300", "--set", "accumulate=1")


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


# --- the names of what a plugin has ---------------------------------------------------------------


def test_a_file_is_loaded_with_its_name_path_and_sha256(mine):
    found = load_plugin(mine)
    assert found.name == "mine"
    assert found.path == str(mine.resolve())
    assert found.sha256 == hashlib.sha256(MINE.encode()).hexdigest()
    assert "mine" not in sys.modules  # it hides no module of that name
    recipe = Recipe(
        model="mine:Net",
        augment=["mine:darker", ["mine:darker", {"factor": 0.5}], "darker"],
        loss="mine:squared",
        optimizer="mine:rprop",
        schedule="mine:flat",
    )
    assert recipe.model == "mine:Net"
    assert recipe.augment[1] == ("mine:darker", {"factor": 0.5})
    assert Recipe(model="mine").model == "mine"


def test_a_setting_of_a_plugins_function_is_checked_as_others_are(mine):
    load_plugin(mine)
    with pytest.raises(UserError, match="mine:darker: factor = 'much': give a number"):
        Recipe(augment=[["mine:darker", {"factor": "much"}]])
    with pytest.raises(UserError, match="did you mean 'factor'"):
        Recipe(augment=[["mine:darker", {"facter": 0.5}]])


def test_a_plugin_that_is_edited_and_loaded_again_is_the_new_one(mine, digits, device, tmp_path):
    """Also for a recipe and a config that were made before."""
    load_plugin(mine)
    recipe = Recipe(model="mine:Net", epochs=1, batch_size=300, accumulate=1, augment=())
    before = summarize(MODELS["mine:Net"].config).params
    mine.write_text(MINE.replace("32", "8"))
    load_plugin(mine)
    assert fit(tmp_path / "run", recipe, digits, device)["params"] < before
    assert load_predictor(tmp_path / "run").config.build().conv.out_channels == 8


def test_files_may_have_any_name_and_two_of_one_name_are_refused(mine, tmp_path, leanres, capsys):
    for name in ("my-net.v2", "größe 3", "json"):
        path = tmp_path / f"{name}.py"
        path.write_text(MINE + "print('loaded')\n")
        done = leanres("summary", f"{name}:Net", "--plugin", path, "--json")
        assert json.loads(done.out)["params"]  # what a plugin prints is no part of it
        assert done.err == "loaded\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(MINE)
    load_plugin(mine)
    with pytest.raises(UserError, match=r"two plugins have one name, .*: rename one of them"):
        load_plugin(tmp_path / "other" / "mine.py")


def test_an_installed_module_and_an_entry_point_are_plugins(tmp_path, monkeypatch):
    (tmp_path / "mine_installed.py").write_text(MINE)
    about = tmp_path / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[leanres.plugins]\nshort = mine_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin("mine_installed").path == str(tmp_path / "mine_installed.py")
    assert Recipe(model="mine_installed:Net").model == "mine_installed:Net"
    assert load_plugin("short").sha256 == hashlib.sha256(MINE.encode()).hexdigest()
    assert Recipe(model="short:Net").model == "short:Net"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\n1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("import sys\n\nsys.exit(3)\n", "line 3: SystemExit: it ends the program"),
        ("import no_such_module_of_anyone\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_fails_is_named_with_its_line(tmp_path, leanres, text, problem):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UserError, match=problem):
        load_plugin(tmp_path / "bad.py")
    done = leanres("summary", "resnet20", "--plugin", tmp_path / "bad.py")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert problem in done.err


@pytest.mark.parametrize("given", ["no_such_module", "no/such/file.py", "", "a b"])
def test_a_plugin_that_is_not_there_is_refused(given, leanres):
    done = leanres("summary", "resnet20", "--plugin", given)
    assert done.code == 2
    assert "give a .py file, or an installed module" in done.err


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("other:Net", "in the plugin other, which is not loaded: give --plugin"),
        ("mine:Nett", "plugin mine has no model 'Nett'; it has Net"),
        ("mine:nn", "plugin mine has no model 'nn'"),
        ("mine:not_a_net", "mine:not_a_net made a int: return a torch.nn.Module"),
    ],
)
def test_a_network_that_no_plugin_has_is_named(mine, leanres, model, problem):
    done = leanres("summary", model, "--plugin", mine)
    assert done.code == 2
    assert problem in done.err


# --- a run with a plugin --------------------------------------------------------------------------


def test_a_plugins_network_goes_all_the_way(mine, tmp_path, leanres):
    run, given = tmp_path / "run", ("--plugin", mine)
    words = (*WORDS, "--set", 'augment=["mine:darker"]', "--set", "loss=mine:squared")
    done = leanres("train", "digits", *given, "--model", "mine:Net", *words, "--out", run)
    assert done.code == 0, done.err
    assert f"next: leanres evaluate {run} --plugin {mine}\n" in done.out
    info = json.loads((run / "run.json").read_text())
    digest = hashlib.sha256(MINE.encode()).hexdigest()
    assert info["plugins"] == [{"name": "mine", "path": str(mine.resolve()), "sha256": digest}]
    assert info["network"]["factory"] == "mine:Net"
    assert (run / "report.html").stat().st_size > 10_000
    accuracy = info["result"]["accuracy"]
    shown = json.loads(leanres("evaluate", run, *given, "--json").out)
    assert shown["accuracy"] == pytest.approx(accuracy, abs=0.003)
    assert leanres("export", run, tmp_path / "x.onnx", *given).code == 0
    found = leanres("find-lr", "digits", *given, "--model", "mine:Net", *WORDS[:2])
    assert found.code == 0, found.err
    assert leanres("resume", run, *given, "--epochs", 2).code == 0
    out = leanres("summary", run, *given, "--budget", "memory=1M").out
    assert (
        "receptive field: unknown, cannot follow the receptive field through aten.upsample" in out
    )
    assert "within the budget: memory" in out


def test_nothing_is_imported_unless_it_is_named(mine, tmp_path, leanres):
    load_plugin(mine)
    data = package.load_data("digits")
    small = Recipe(model="mine:Net", epochs=1, batch_size=300, accumulate=1, augment=())
    fit(tmp_path / "run", small, data)
    plugins.LOADED.clear()
    plugins._MODULES.clear()
    for table in (MODELS, FACTORIES):
        table.pop("mine:Net", None)
    mine.write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    for command in ("evaluate", "resume", "report", "summary"):
        done = leanres(command, tmp_path / "run")
        assert done.code == 2
        assert "'mine:Net' is in the plugin mine, which is not loaded: give" in done.err
        assert "does not fit" not in done.err  # the file is as it should be
    assert leanres("runs", "--runs", tmp_path).code == 0
    assert not (tmp_path / "imported").exists()


def test_a_changed_plugin_is_said_at_resume(mine, tmp_path, leanres):
    run = tmp_path / "run"
    assert (
        leanres(
            "train", "digits", "--plugin", mine, "--model", "mine:Net", *WORDS, "--out", run
        ).code
        == 0
    )
    mine.write_text(MINE + "\n# another line\n")
    done = leanres("resume", run, "--plugin", mine, "--epochs", 2)
    assert done.code == 0
    changed = f"the plugin mine has changed since the run began ({mine.resolve()})"
    assert changed in done.err
    text = MINE.replace("in_channels, 32, 3", "in_channels, 32, 5")  # the size of its filters
    mine.write_text(text)
    done = leanres("resume", run, "--plugin", mine, "--epochs", 3)
    assert done.code == 2
    assert f"leanres: {changed}: give the file as it was (" in done.err
    assert "size mismatch for conv.weight" in done.err
    done = leanres("evaluate", run, "--plugin", mine)
    assert done.code == 2
    assert "of its tensors differ, such as conv.weight; mine:Net has changed" in done.err


def test_processes_of_a_campaign_import_the_plugin_too(mine, tmp_path, leanres):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[digits]\nseeds = [0, 1]\nset = ["model=mine:Net", "epochs=1", "batch_size=300"]\n'
    )
    folders = [
        word for name in ("runs", "results", "weights") for word in (f"--{name}", tmp_path / name)
    ]
    done = leanres("campaign", plan, "--plugin", mine, "--data", "digits", "--at-once", 2, *folders)
    assert done.code == 0, done.out + done.err
    assert len(json.loads((tmp_path / "results" / "digits.json").read_text())["runs"]) == 2


def test_other_processes_load_the_same_plugins(mine, tmp_path, monkeypatch):
    (tmp_path / "mine_package.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    load_plugin(mine)
    load_plugin("mine_package")
    Recipe(model=Tiny)
    assert plugins.to_load() == [str(mine), "mine_package", __name__]


def test_a_comparison_and_folds_train_a_plugins_network(mine, tmp_path, leanres):
    words = ("--data", "digits", "--plugin", mine, "--devices", "cpu", "--epochs", 1)
    parts = ("model=mine:Net", "batch_size=300", 'augment=["mine:darker"]', "loss=mine:squared")
    words += tuple(word for part in parts for word in ("--set", part))
    done = leanres("compare", "schedules", *words, "--seeds", 0, "--out", tmp_path / "c", "--json")
    assert done.code == 0, done.err
    runs = [json.loads(path.read_text()) for path in (tmp_path / "c").glob("*/run.json")]
    assert [run["network"]["factory"] for run in runs] == ["mine:Net"] * 2
    rows = json.loads(done.out)["rows"]
    assert [row["reported"] for row in rows] == [None] * 2  # of residual networks alone
    done = leanres("train", "digits", *words, "--folds", 2, "--out", tmp_path / "f", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe"]["loss"] == ["mine:squared", {}]


@pytest.mark.parametrize(
    ("text", "words", "problem"),
    [
        ("class Net:\n    def __init__(self, k, c):\n        1 / 0\n", (), "line 3: ZeroDivision"),
        (
            "def part(logits, targets):\n    return logits[99]\n",
            ("loss=mine:part",),
            "line 2: Index",
        ),
        (
            "import sys\ndef part(logits, targets):\n    sys.exit(0)\n",
            ("loss=mine:part",),
            "line 3: SystemExit: it ends the program",
        ),
    ],
)
def test_a_function_that_fails_is_named_with_its_line(tmp_path, leanres, text, words, problem):
    path = tmp_path / "mine.py"
    path.write_text(text)
    model = "mine:Net" if "Net" in text else "{family='speednet', widths=[8]}"
    settings = [word for setting in words for word in ("--set", setting)]
    words = ("--plugin", path, "--model", model, *WORDS, *settings, "--out", tmp_path / "run")
    done = leanres("train", "digits", *words)
    assert (done.code, len(done.err.splitlines())) == (2, 2)  # one note on the digits
    assert f"leanres: plugin {path}, {problem}" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("timm") is None, reason="timm, which the example needs, is not here")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "vit"])
def test_timms_networks_train_evaluate_and_ship(tmp_path, leanres, name):
    example = ("--plugin", ROOT / "examples" / "timm_networks.py")
    run, words = tmp_path / "run", (*WORDS, "--set", "optimizer=adamw")
    network = f"timm_networks:{name}"
    done = leanres("train", "digits", *example, "--model", network, *words, "--out", run)
    assert done.code == 0, done.err
    assert leanres("evaluate", run, *example).code == 0
    assert leanres("report", run, *example).code == 0
    assert leanres("export", run, tmp_path / "x.onnx", *example).code == 0


# --- from Python ----------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Looks at values while it is made, as stochastic depth in timm does."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).mean((2, 3)))


def halved(images, draw):
    return images // 2


def test_functions_and_classes_are_taken_as_they_are(tmp_path, digits, device):
    recipe = Recipe(model=Tiny, epochs=1, batch_size=300, accumulate=1, augment=[halved])
    assert recipe.model == f"{__name__}:Tiny"
    assert recipe.augment == ((f"{__name__}:halved", {}),)
    result = fit(tmp_path / "run", recipe, digits, device)
    assert result["params"] == 4 * 27 + 4 + 4 * 10 + 10
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["plugins"]
    assert [plugin["name"] for plugin in kept] == [__name__]
    assert load_predictor(tmp_path / "run").evaluate(digits.test)["n"] == len(digits.test)
    assert summarize(MODELS[recipe.model].config).macs == 4 * 27 * 30 * 30 + 40


def test_registration_is_an_assignment(tmp_path, digits, device):
    package.MODELS["tiny"] = Tiny
    recipe = Recipe(model="tiny", epochs=1, batch_size=300, accumulate=1, augment=())
    fit(tmp_path / "run", recipe, digits, device)
    assert load_predictor(tmp_path / "run").config == replace(MODELS["tiny"].config)
    config = MODELS["tiny"].config
    assert config_from_dict(config_to_dict(config)) == config
    assert config == FactoryConfig("tiny")
    package.MODELS["smaller"] = replace(MODELS["resnet20"].config, widths=(4, 8, 8))
    assert Recipe(model="smaller").model == "smaller"


def test_a_network_that_is_made_already_is_refused():
    with pytest.raises(
        UserError, match="is a Tiny: give the function or class that makes a network"
    ):
        package.MODELS["tiny"] = Tiny(10, 3)
    with pytest.raises(UserError, match="give the function or class"):
        Recipe(model=Tiny(10, 3))


def test_a_network_that_does_not_fit_the_classes_is_refused_before_a_folder_is_made(
    tmp_path, digits, device
):
    package.MODELS["five"] = lambda num_classes, in_channels: Tiny(5, in_channels)
    with pytest.raises(UserError, match=r"does not fit 10 classes: its output has shape \(N, 5\)"):
        fit(tmp_path / "run", Recipe(model="five", epochs=1), digits, device)
    assert not (tmp_path / "run").exists()


def make(width):
    def net(num_classes, in_channels):
        return nn.Conv2d(in_channels, width, 3)

    return net


@pytest.mark.parametrize("thing", [make(4), lambda k, c: Tiny(k, c), functools.partial(Tiny)])
def test_what_has_no_name_of_its_own_is_entered_under_one(thing):
    """Two of a function's inner functions have one name: the second would replace the first."""
    with pytest.raises(UserError, match=r"cannot be found by its name: give .*MODELS\['mine'\]"):
        Recipe(model=thing)
    package.MODELS["named"] = thing
    assert Recipe(model="named").model == "named"


def nothing(*_):
    return None


def first_half(images, *rest):
    return (images[:, :, 1:], *rest) if rest[1:] else images[:, :, 1:]


def as_floats(images, draw):
    return images / 255


def without_gradient(logits, targets):
    return logits.detach().sum(1)


def needs_more(one, two, three, four):
    return one


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            {"augment": [nothing]},
            r"nothing returned a NoneType: return \(2, 3, 32, 32\) torch.uint8",
        ),
        ({"augment": [first_half]}, r"first_half returned \(2, 3, 31, 32\) torch.uint8: return"),
        ({"augment": [as_floats]}, r"returned \(2, .* torch.float32: return .*uint8, as it was"),
        ({"augment": [needs_more]}, r"needs_more takes \(one, .*: let it take \(images, draw\)"),
        ({"mix": [nothing]}, r"nothing returned a NoneType: return \(images, targets\)"),
        ({"loss": nothing}, "nothing returned a NoneType: return one loss per image"),
        (
            {"loss": without_gradient},
            "without_gradient has no gradient: compute it from the logits",
        ),
        ({"loss": needs_more}, r"let it take \(logits, targets\)"),
        ({"schedule": nothing}, "nothing returned None at step 0: return a number of 0 or"),
        ({"optimizer": nothing}, r"nothing returned NoneType: return a list of torch.optim"),
        ({"model": needs_more}, r"let it take \(num_classes, in_channels\)"),
        ({"model": nothing}, "nothing made a NoneType: return a torch.nn.Module"),
    ],
)
def test_a_function_that_does_not_do_its_part_is_refused_before_a_folder_is_made(
    tmp_path, digits, device, setting, problem
):
    with pytest.raises(UserError, match=problem):
        fit(tmp_path / "run", Recipe(**{"model": Tiny, "epochs": 1} | setting), digits, device)
    assert not (tmp_path / "run").exists()


class Pair(Tiny):
    def forward(self, images):
        return super().forward(images), 1


class Constant(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (Pair, r"the network returns a tuple: return logits \(N, K\)"),
        (Constant, "the network has no parameters to train"),
    ],
)
def test_a_network_without_logits_or_weights_is_refused(tmp_path, digits, device, network, problem):
    with pytest.raises(UserError, match=problem):
        fit(tmp_path / "run", Recipe(model=network, epochs=1), digits, device)


class Perceptron(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.head = nn.Linear(in_channels * 32 * 32, num_classes)

    def forward(self, images):
        return self.head(images.flatten(1))


def test_a_network_without_convolutions_trains_with_the_default_optimizer(tmp_path, digits, device):
    recipe = Recipe(model=Perceptron, epochs=1, batch_size=300, accumulate=1, augment=())
    assert fit(tmp_path / "run", recipe, digits, device)["accuracy"] > 0.2


def test_a_loss_of_another_shape_is_refused(tmp_path, digits, device):
    package.LOSSES["mean"] = lambda logits, targets: logits.mean()
    recipe = Recipe(model=Tiny, epochs=1, batch_size=300, accumulate=1, loss="mean")
    with pytest.raises(
        UserError, match=r"loss mean returned \(\): return one loss per image, \(N,\)"
    ):
        fit(tmp_path / "run", recipe, digits, device)
