"""Recipe: every setting of a training run, its check, its JSON; StepCounts: the same in steps."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from leanres.augment.mix import check_mix
from leanres.augment.registry import Step, check_augment
from leanres.errors import UserError
from leanres.models.config import ModelConfig
from leanres.models.zoo import FAMILIES, MODELS, config_from_dict, config_to_dict, resolve
from leanres.registry import Table, unknown
from leanres.settings import check_settings
from leanres.training.device import PRECISIONS
from leanres.training.optim import OPTIMIZERS, SCHEDULES, Clock, lr_factor

SPEED_AUGMENT: tuple[Step, ...] = (
    ("alternating_flip", {}),
    ("crop", {"padding": 2, "mode": "reflect"}),
)


@dataclass(frozen=True)
class Recipe:
    """All that decides a run's outcome. Rates are for the mean loss of a batch.

    Epochs and shares of training are converted to optimizer steps once, in `StepCounts`.
    """

    model: str | ModelConfig = "speednet"  # a name of `leanres models`, or {family = ..., ...}
    epochs: int = 9  # passes over the training images
    batch_size: int = 2000  # images of an optimizer step
    accumulate: int = 4  # parts that a batch goes through the network in, one after the other
    augment: tuple[Step, ...] = SPEED_AUGMENT  # in this order: a name, or [name, {setting = x}]
    augment_repeats: int = (
        1  # copies of each image in a batch, augmented independently; arXiv:1901.09335
    )
    mix: tuple[Step, ...] = ()  # one of those named, drawn for each batch
    selector: str | ModelConfig = ""  # small network that selects hard examples; "": none
    select_fraction: float = (
        0.5  # share of a batch, the selector's hardest, that the network trains on
    )
    # (share of training, scale): from that share on, images are shrunk to that scale of their
    # side. [[0, 0.75], [0.4, 1]] makes the first 40 % of the steps cost half; (): full size.
    progressive_resizing: tuple[tuple[float, float], ...] = ()
    label_smoothing: float = 0.2  # share of the target that is spread over all classes
    teacher: str = ""  # a run folder or weights file to learn from; "": none
    distill_weight: float = 0.7  # the teacher's share in the loss, the labels have the rest
    distill_temperature: float = 2.0  # by which both networks' logits are divided; arXiv:1503.02531
    optimizer: str = "muon"  # of the filters; AdamW has the rest then
    lr: float = 0.24  # of the filters (muon), or of everything
    momentum: float = 0.6  # sgd, muon
    nesterov: bool = True  # sgd (muon always is)
    betas: tuple[float, float] = (0.85, 0.95)  # adam, adamw, and muon's biases and classifier
    weight_decay: float = 0.0  # unused by muon, which resets the filters' norm at each step
    decay_all: bool = True  # false: biases and norm scales are not decayed
    head_scale: float = 1.0  # sgd only: the classifier learns as if logits were multiplied by it
    bias_lr: float = 0.03  # muon only: biases and norms, by AdamW
    head_lr: float = 0.768  # muon only: the classifier, by AdamW; divided by its inputs
    adamw_weight_decay: float = 0.5  # muon only: of biases, norms and classifier, as AdamW's
    sam_rho: float = 0.0  # radius of sharpness-aware minimisation, at twice the cost; 0: none
    sam_adaptive: bool = False  # every weight's own size as the unit of that radius
    schedule: Step = ("linear", {})  # a name, or [name, {setting = value}]
    warmup: float = 0.0  # share of training in which the lr rises from 0
    freeze_stem_at: float = 1 / 3  # share of training after which `model.stem` is fixed; 1: never
    ema: float = 0.0  # decay per step of the averaged weights, less in the first steps; 0: none
    mean: tuple[float, ...] = ()  # of channels, in [0, 1]; []: the training images' own
    std: tuple[float, ...] = ()  # the same, divided by
    val: int = 0  # images held out of train, stratified, to choose by; 0: train on all
    precision: str = "auto"  # of convolutions and products; auto: bfloat16 where it is fast
    compiled: bool | None = None  # whether kernels are compiled; not given: where it pays
    seed: int = 0  # of weights, order and augmentation

    def __post_init__(self) -> None:
        hints = get_type_hints(Recipe)
        for f in fields(self):
            object.__setattr__(self, f.name, _as(hints[f.name], f.name, getattr(self, f.name)))
        _check_names(self)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} = {value}: give a value from {low:g} to {high:g}")
        name, settings = self.schedule
        check_settings(SCHEDULES[name], f"schedule {name}", settings)
        lr_factor(self.schedule, Clock(0, 100 * self.epochs, 100, self.lr))  # refuses wrong values
        if name == "one-cycle" and self.warmup:
            raise UserError(
                f"schedule one-cycle rises by itself: set warmup = 0, not {self.warmup}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas = {self.betas}: give two numbers from 0 to below 1")
        shares = [share for share, _ in self.progressive_resizing]
        fits = all(
            0 <= share < 1 and 0.25 <= scale <= 1 for share, scale in self.progressive_resizing
        )
        if shares != sorted(shares) or not fits:
            raise UserError(
                f"progressive_resizing = {self.progressive_resizing}: give [share, scale] pairs,"
                " shares rising from 0 to below 1, scales from 0.25 to 1"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` takes it back."""
        networks = {"model": self.model, "selector": self.selector}
        own = {k: config_to_dict(v) for k, v in networks.items() if not isinstance(v, str)}
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self) | own))
        return plain


_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "batch_size": (1, 65_536),
    "accumulate": (1, 65_536),
    "augment_repeats": (1, 256),
    "select_fraction": (0.01, 1),
    "label_smoothing": (0, 0.99),
    "head_scale": (0.001, 1000),
    "distill_weight": (0, 1),
    "distill_temperature": (0.01, 1000),
    "sam_rho": (0, 100),
    "lr": (1e-12, 1e3),
    "momentum": (0, 0.9999),
    "weight_decay": (0, 10),
    "adamw_weight_decay": (0, 10),
    "bias_lr": (1e-12, 1e3),
    "head_lr": (1e-12, 1e3),
    "warmup": (0, 0.99),
    "freeze_stem_at": (0, 1),
    "ema": (0, 0.999999),
    "val": (0, 10**9),
    "seed": (0, 2**63 - 1),
}


def _check_names(recipe: Recipe) -> None:
    tables: tuple[tuple[Table[Any], str], ...] = (
        *((MODELS, name) for name in (recipe.model, recipe.selector) if name and type(name) is str),
        (OPTIMIZERS, recipe.optimizer),
        (SCHEDULES, recipe.schedule[0]),
    )
    for table, name in tables:
        table[name]  # an unknown name raises
    for name, settings in recipe.augment:
        check_augment(name, settings)
    for name, settings in recipe.mix:
        check_mix(name, settings)
    if recipe.precision not in PRECISIONS:
        raise UserError(f"precision = {recipe.precision!r}: give one of {', '.join(PRECISIONS)}")


def from_dict(settings: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
    """A recipe from plain settings over `base`; unknown keys and wrong types are errors."""
    base = Recipe() if base is None else base
    known = [f.name for f in fields(Recipe)]
    for key in settings:
        if key not in known:
            raise UserError(unknown("setting", key, known))
    return replace(base, **settings)


def matches_run(info: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether what run.json or a lap of a race says is a training of `recipe`, network included."""
    begun = _network(info)
    same = begun is None or begun == _sized_as(begun, recipe)
    return same and from_dict(info["recipe"]) == recipe


def recipe_as_started(info: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """The recipe that run.json holds with the network it meant then, and a note if that differs."""
    # A name may mean another network in a later version, and its weights may even fit.
    recipe = from_dict(info["recipe"])
    begun = _network(info)
    if begun is None or begun == _sized_as(begun, recipe):
        return recipe, []
    note = f"{recipe.model} is another network by now: the run goes on with the one it began with"
    return replace(recipe, model=begun), [note]


def _network(info: Mapping[str, Any]) -> ModelConfig | None:
    network = info.get("network")  # folders older than this entry have none
    return None if network is None else config_from_dict(network)


def _sized_as(other: ModelConfig, recipe: Recipe) -> ModelConfig:
    return replace(resolve(recipe.model), num_classes=other.num_classes)


def _as(kind: Any, key: str, value: Any) -> Any:
    if key in ("model", "selector"):
        return _model(key, value)
    if key == "schedule":
        return _step(key, value)
    if key in ("mean", "std"):
        return _channels(key, value)
    if key in ("augment", "mix"):
        return tuple(_step(f"{key} step", step) for step in _sequence(key, value))
    if key == "progressive_resizing":
        return tuple(_pair(key, pair) for pair in _sequence(key, value))
    if key == "betas":
        return _pair(key, value)
    if key == "compiled" and value is None:
        return None
    kind = bool if key == "compiled" else kind
    whole = kind is float and isinstance(value, int) and not isinstance(value, bool)
    if whole or (kind is int and isinstance(value, float) and value.is_integer()):
        return kind(value)
    if type(value) is not kind:
        raise UserError(f"{key} = {value!r}: give {_ARTICLES[kind]}")
    return value


_ARTICLES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a name",
}


def _model(key: str, value: Any) -> str | ModelConfig:
    if isinstance(value, Mapping):
        return config_from_dict(value)
    if isinstance(value, str) or type(value) in FAMILIES.values():
        own: str | ModelConfig = value
        return own
    raise UserError(f"{key} = {value!r}: give a name or {{family = ..., widths = ...}}")


def _sequence(key: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{key} = {value!r}: give a list")
    return list(value)


def _pair(key: str, value: Any) -> tuple[float, float]:
    match _sequence(key, value):
        case [int() | float() as a, int() | float() as b] if bool not in (type(a), type(b)):
            return (float(a), float(b))
    raise UserError(f"{key}: {value!r} is not a pair of numbers")


def _step(key: str, step: Any) -> Step:
    if isinstance(step, str):
        return (step, {})
    match list(step) if isinstance(step, (list, tuple)) else step:
        case [str(name), dict(settings)]:
            return (name, settings)
    raise UserError(f"{key} {step!r}: give a name or [name, {{setting = value}}]")


def _channels(key: str, value: Any) -> tuple[float, ...]:
    values = _sequence(key, value)
    if not all(type(v) in (int, float) and 0 <= v <= 1 for v in values) or len(values) not in (
        0,
        3,
    ):
        raise UserError(f"{key} = {value!r}: give one number from 0 to 1 per channel, or none")
    return tuple(map(float, values))


def parse_setting(text: str) -> tuple[str, Any]:
    """ "lr=0.2" -> ("lr", 0.2): the value is TOML, a number as Python writes it, or a bare word."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"setting {text!r}: give key=value, as in lr=0.2")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        if value.strip().startswith(("[", "{")):
            raise UserError(
                f"setting {text!r}: {error}; give TOML, lists as [1, 2], tables as {{key = 1}}"
            ) from None
        return key.strip(), _word(value.strip())


def _word(text: str) -> float | str:
    """A number that TOML does not know (.5, 1.) or the text itself."""
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class StepCounts:
    """A recipe counted in optimizer steps for a training split of a given size."""

    recipe: Recipe
    images: int
    batch_size: int = field(init=False)
    steps_per_epoch: int = field(init=False)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        # A split smaller than a batch trains on one batch; else the last, partial one is left
        # out, another part of the data each epoch.
        batch = min(self.recipe.batch_size, self.images)
        object.__setattr__(self, "batch_size", batch)
        object.__setattr__(self, "steps_per_epoch", self.images // batch)
        object.__setattr__(self, "total", self.recipe.epochs * (self.images // batch))

    @property
    def images_per_step(self) -> int:
        """What is augmented for a step: a batch, times its copies."""
        return self.batch_size * self.recipe.augment_repeats

    @property
    def kept_per_step(self) -> int:
        """What the network trains on in a step: all of it, or what the selector picks."""
        share = self.recipe.select_fraction if self.recipe.selector else 1.0
        return max(1, round(share * self.images_per_step))

    @property
    def warmup(self) -> int:
        """Steps of the lr's rise."""
        return round(self.recipe.warmup * self.total)

    @property
    def freeze_stem(self) -> int:
        """The step from which on the stem is fixed."""
        return round(self.recipe.freeze_stem_at * self.total)

    def lr_factor(self, step: int) -> float:
        """The share of the peak lr at `step`."""
        at = Clock(step, self.total, self.steps_per_epoch, self.recipe.lr)
        return lr_factor(self.recipe.schedule, at, self.warmup)

    def scale(self, step: int) -> float:
        """The share of an image's side that is trained on at `step`."""
        scale = 1.0
        for share, at in self.recipe.progressive_resizing:
            if step >= round(share * self.total):
                scale = at
        return scale
