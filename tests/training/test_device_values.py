"""What must hold on a GPU, tested where there is none.

Tensors without values, PyTorch's "meta", stand for those on a device: most operations refuse to mix
them with others, and nothing can be read from them, so that a step which waits for a value fails.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leanres.augment import rng as drawing
from leanres.augment.mix import MIXES
from leanres.augment.registry import AUGMENTS
from leanres.augment.rng import Draw, generator
from leanres.data import split as splits
from leanres.data.split import Split
from leanres.metrics.inference import TTA, predict_logits
from leanres.models.preprocess import ImageClassifier, Normalize, Preprocess
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig
from leanres.training.batch import shrink
from leanres.training.device import DEVICES, Device
from leanres.training.loop import start, steps
from leanres.training.optim import OPTIMIZERS
from leanres.training.recipe import Recipe
from leanres.training.setup import Setup

NORMALIZE = ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def _generators(monkeypatch) -> None:
    """PyTorch makes none for a device that is not there: these say that they are on it."""

    def make(device: torch.device | str = "cpu") -> Generator:
        kind = torch.device(device)
        there = type("There", (Generator,), {"device": kind})
        return Generator() if kind.type == "cpu" else there()

    monkeypatch.setattr(drawing, "Generator", make)


@pytest.fixture
def images() -> Tensor:
    """Bytes (6, 3, 32, 32) without values."""
    return torch.empty(6, 3, 32, 32, dtype=torch.uint8, device="meta")


def draw(images: Tensor) -> Draw:
    return Draw(generator(1, 2, device=images.device), torch.empty_like(images[:, 0, 0, 0]).long())


def test_what_these_tests_look_for_is_found(images):
    with pytest.raises(RuntimeError, match="on device cpu is not on the expected device meta"):
        images + torch.ones(32)
    for read in (int, bool, float):
        with pytest.raises(RuntimeError, match="meta"):
            read(images.max())
    with pytest.raises(RuntimeError, match="no data"):  # as when a tensor is brought back whole
        images.cpu()


@pytest.mark.parametrize("name", list(AUGMENTS))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_augmentation_stays_on_the_device_and_reads_nothing_back(images, name, dtype):
    found = AUGMENTS[name](images.to(dtype), draw(images))
    assert (found.device.type, found.shape, found.dtype) == ("meta", images.shape, dtype)


@pytest.mark.parametrize("name", list(MIXES))
def test_a_mix_stays_on_the_device_and_reads_nothing_back(images, name):
    targets = torch.empty(6, 10, device="meta")
    found, shares = MIXES[name](images, targets, draw(images))
    assert (found.device.type, shares.device.type) == ("meta", "meta")
    assert (found.shape, shares.shape) == (images.shape, targets.shape)


# Which images are uncertain has to be read.
@pytest.mark.parametrize(
    "tta", [name for name, policy in TTA.items() if policy.extra_views is None]
)
def test_images_are_normalised_shrunk_and_judged_on_the_device(images, tta):
    with torch.device("meta"):
        normalize = Normalize(*NORMALIZE)
    assert shrink(normalize(images), 0.75).shape == (6, 3, 24, 24)

    class Mean(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    model = Mean()
    model.register_buffer("place", torch.empty(1, device="meta"))
    logits = predict_logits(model, images, normalize=normalize, tta=tta)
    assert (logits.device.type, logits.shape) == ("meta", (6, 3))


@dataclass(frozen=True)
class NoValues(Device):
    """A kind of device whose tensors have no values, and which autocast does not know."""

    kind = "meta"
    name: str = "meta"
    precision: str = "float32"
    compiled: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext()


@pytest.fixture
def train(digits, monkeypatch) -> Split:
    """The digits without their values; whether labels are in range cannot be asked there."""
    monkeypatch.setattr(splits, "_check_labels", lambda *_: None)
    monkeypatch.setitem(DEVICES, "meta", NoValues)
    return digits.train.to("meta")


SMALL = Recipe(model=SpeedNetConfig((8, 16)), epochs=2, batch_size=700, accumulate=2)
VARIANTS: dict[str, Recipe] = {
    "speed": SMALL,
    "sam": replace(SMALL, sam_rho=0.1),
    "asam": replace(SMALL, sam_rho=0.1, sam_adaptive=True),
    "copies and mixes": replace(SMALL, augment_repeats=2, batch_size=300, mix=("mixup", "cutmix")),
    "resnet": replace(SMALL, model=ResNetConfig((8, 16), (1, 1))),
    **{name: replace(SMALL, optimizer=name) for name in OPTIMIZERS},
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_no_step_mixes_devices_or_waits_for_one(digits, train, name):
    recipe = VARIANTS[name]
    setup = Setup(recipe, digits.train, Normalize(*NORMALIZE), NoValues())
    state = start(setup)
    for result in steps(state, replace(setup, train=train)):
        assert (result.loss.device.type, result.correct.device.type) == ("meta", "meta")
    assert state.step == 2 * (len(digits.train) // recipe.batch_size)
    assert {p.device.type for p in state.averaged.parameters()} == {"meta"}


def test_a_teacher_answers_without_waiting_too(digits, train):
    setup = Setup(SMALL, digits.train, Normalize(*NORMALIZE), NoValues())
    known = Preprocess(32, *NORMALIZE, digits.train.classes)
    teacher = ImageClassifier(SpeedNetConfig((8,)).build(), known)
    state = start(setup, setup.device.place(teacher))
    for result in steps(state, replace(setup, train=train)):
        assert result.loss.device.type == "meta"
    assert state.step


class NoFloat64(NoValues):
    """A kind of device that computes no float64, as Apple's do: images are augmented on the CPU."""

    augments_on = "cpu"


class Refused(TorchDispatchMode):
    """Fails where a tensor of float64 is made on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                assert tensor.dtype != torch.float64, func
        return made


ROTATED = replace(SMALL, augment=(("rand_augment", {}), ("crop", {"padding": 2})))
WITHOUT_FLOAT64 = VARIANTS | {
    "policies": ROTATED,
    "mixes and weights": replace(ROTATED, mix=("cutmix",), class_weights="balanced"),
}


@pytest.mark.parametrize("name", list(WITHOUT_FLOAT64))
def test_no_step_takes_float64_where_a_device_has_none(digits, monkeypatch, name):
    monkeypatch.setitem(DEVICES, "meta", NoValues)
    recipe = WITHOUT_FLOAT64[name]
    setup = Setup(recipe, digits.train, Normalize(*NORMALIZE), NoFloat64())
    state = start(setup)
    with Refused():
        for result in steps(state, setup):
            assert (result.loss.device.type, result.loss.dtype) == ("meta", torch.float32)
    assert state.step == 2 * (len(digits.train) // recipe.batch_size)


def test_float64_on_a_device_without_it_would_be_found(images):
    with pytest.raises(AssertionError, match="aten"), Refused():
        AUGMENTS["rotation"](images, draw(images))


def test_images_are_normalised_first_where_they_lie(train):
    recipe = replace(SMALL, normalize_first=True)
    normalize = Normalize(*NORMALIZE)  # where the network is
    first, later = Setup(recipe, train, normalize, NoValues()).normalizers
    assert first is not None
    assert first(train.images[:2]).device.type == "meta"
    assert isinstance(later, torch.nn.Identity)
    assert normalize.shift.device.type == "cpu"
