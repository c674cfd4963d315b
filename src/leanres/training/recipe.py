"""Recipe: every setting of a training, with its range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, Literal

from leanres.augment.mix import MIXES
from leanres.augment.registry import AUGMENTS, OF_PIXEL_VALUES
from leanres.data.arrays import CHANNELS
from leanres.errors import UserError
from leanres.io import parse_toml
from leanres.models.config import ModelConfig
from leanres.models.zoo import MODELS, config_from_dict, config_to_dict, is_config
from leanres.registry import (
    Convert,
    Range,
    Spec,
    Table,
    check_fields,
    check_settings,
    checked,
    notes_of,
    setting_types,
    unknown,
)
from leanres.training.losses import LOSSES
from leanres.training.optim import OPTIMIZERS
from leanres.training.schedules import SCHEDULES, SchedulePoint, lr_factor


@dataclass(frozen=True)
class LearningRate(Range):
    """Bounds of a learning rate; `optimizer` names the only one that uses it, "" means all."""

    low: float = 1e-12
    high: float = 1e3
    optimizer: str = ""


RATE, MUON_RATE = LearningRate(), LearningRate(optimizer="muon")


def _network(label: str, value: Any) -> str | ModelConfig:
    if isinstance(value, Mapping):
        return config_from_dict(value)
    if isinstance(value, str):
        if value:
            MODELS[value]  # an unknown name raises
        return value
    if is_config(value):
        config: ModelConfig = value
        return config
    if callable(value):
        return MODELS.name_of(value)
    raise UserError(f"{label} = {value!r}: give a name or {{family = ..., widths = ...}}")


def _spec(table: Table[Any], label: str, value: Any) -> Spec:
    """An entry of `table` with its settings, from "name" or [name, {setting = value}]."""
    spec = list(value) if isinstance(value, list | tuple) else [value, {}]
    if callable(spec[0] if spec else None):
        spec[0] = table.name_of(spec[0])
    match spec:
        case [str(name), dict(settings)]:
            prefix = f"{table.kind} {name}" if table is SCHEDULES else name
            return (name, check_settings(table[name], prefix, settings))
    raise UserError(f"{label} {value!r}: give a name or [name, {{setting = value}}]")


def _specs(table: Table[Any], label: str, value: Any) -> tuple[Spec, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{label} = {value!r}: give a list")
    return tuple(_spec(table, f"{label} step", one) for one in value)


def _channels(label: str, value: Any) -> tuple[float, ...]:
    values: tuple[float, ...] = checked(label, value, Annotated[tuple[float, ...], Range(0, 1)])
    if len(values) not in (0, *CHANNELS):
        raise UserError(f"{label} = {value!r}: give one number from 0 to 1 per channel, or none")
    return values


def _class_weights(label: str, value: Any) -> str | dict[str, float]:
    """ "", "balanced", or a weight above 0 by class name."""
    if value in ("", "balanced"):
        return str(value)
    if isinstance(value, Mapping) and value:
        weight = Annotated[float, Range(1e-6, 1e6)]
        return {str(name): checked(f"{label}: {name}", w, weight) for name, w in value.items()}
    raise UserError(f"{label} = {value!r}: give 'balanced', or weights as {{cat = 2.0, dog = 1.0}}")


def _held(label: str, value: Any) -> int | float:
    """0, a share below 1, or a whole number."""
    number: float = checked(label, value, Annotated[float, Range(0, 10**9)])
    if number >= 1 and number != int(number):
        raise UserError(f"{label} = {value!r}: give a share below 1, or a whole number of images")
    return number if 0 < number < 1 else int(number)


def _freeze(label: str, value: Any) -> str | float:
    """Names of layers, or a share of them above 0 and below 1."""
    names = value if isinstance(value, str) else ""
    if value == "" or names.strip(" ,"):
        return names
    try:
        share: float = checked(label, value, Annotated[float, Range(0.001, 0.999)])
    except UserError:
        raise UserError(
            f"{label} = {value!r}: give names of layers, as 'stem, stages.0', or a share from 0.001"
            " to 0.999"
        ) from None
    return share


def _resizing(label: str, value: Any) -> tuple[tuple[float, float], ...]:
    pairs: tuple[tuple[float, float], ...] = checked(label, value, tuple[tuple[float, float], ...])
    shares = [share for share, _ in pairs]
    fits = all(0 <= share < 1 and 0.25 <= scale <= 1 for share, scale in pairs)
    if shares != sorted(shares) or not fits:
        raise UserError(
            f"{label} = {value}: give [share, scale] pairs, shares rising from 0 to below 1,"
            " scales from 0.25 to 1"
        )
    return pairs


Network = Annotated[str | ModelConfig, Convert(_network)]
Augments = Annotated[tuple[Spec, ...], Convert(partial(_specs, AUGMENTS))]
Mixes = Annotated[tuple[Spec, ...], Convert(partial(_specs, MIXES))]
Schedule = Annotated[Spec, Convert(partial(_spec, SCHEDULES))]
Loss = Annotated[Spec, Convert(partial(_spec, LOSSES))]
Precision = Literal["auto", "float32", "bfloat16"]
Channels = Annotated[tuple[float, ...], Convert(_channels)]
Resizing = Annotated[tuple[tuple[float, float], ...], Convert(_resizing)]
ClassWeights = Annotated[str | dict[str, float], Convert(_class_weights)]
Freeze = Annotated[str | float, Convert(_freeze)]
Share = Annotated[float, Range(0, 1)]
Held = Annotated[int | float, Convert(_held)]

SPEED_AUGMENT: tuple[Spec, ...] = (
    ("alternating_flip", {}),
    ("crop", {"padding": 2, "mode": "reflect"}),
)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training's outcome. Rates are for the mean loss of a batch.

    Epochs and shares of training are converted to optimizer steps once, in `StepCounts`. The text
    beside each type is what `leanres recipes NAME` prints.
    """

    model: Annotated[Network, "a name of `leanres models`, or {family = ..., ...}"] = "speednet"
    epochs: Annotated[int, Range(1, 100_000), "passes over the training images"] = 9
    batch_size: Annotated[int, Range(1, 65_536), "images of an optimizer step"] = 2000
    drop_last: Annotated[
        bool, "leave out an epoch's last batch where it is not full; false: train on it too"
    ] = True
    accumulate: Annotated[int, Range(1, 65_536), "micro-batches per optimizer step"] = 4
    augment: Annotated[Augments, "in this order: a name, or [name, {setting = x}]"] = SPEED_AUGMENT
    augment_repeats: Annotated[
        int, Range(1, 256), "repeated augmentation: copies of an image in a batch; arXiv:1901.09335"
    ] = 1
    normalize_first: Annotated[
        bool, "normalise before augmenting: padding and holes then have the mean colour"
    ] = False
    mix: Annotated[Mixes, "mixes of images and labels, one of them drawn for each batch"] = ()
    selector: Annotated[
        Network, 'selective backpropagation: small network that selects hard images; "": none'
    ] = ""
    select_fraction: Annotated[float, Range(0.01, 1), "share of a batch that is selected"] = 0.5
    progressive_resizing: Annotated[
        Resizing,
        "(share of training, scale) pairs: from that share on, images are resized to that scale of"
        " their side. [[0, 0.75], [0.4, 1]] halves the cost of the first 40 %; []: full size",
    ] = ()
    loss: Annotated[Loss, "of an image: a name, or [name, {setting = x}]"] = ("cross-entropy", {})
    label_smoothing: Annotated[float, Range(0, 0.99), "share spread over all classes"] = 0.2
    class_weights: Annotated[
        ClassWeights,
        'of the loss; "": none; "balanced": images / (classes * images of the class); {cat = 2.0}:'
        " given for some classes, 1 for the others",
    ] = ""
    balanced_sampler: Annotated[
        bool, "each epoch has equally many images of each class; those of rare ones repeat"
    ] = False
    teacher: Annotated[str, 'knowledge distillation: run folder or weights file; "": none'] = ""
    distill_weight: Annotated[Share, "weight of the distillation loss"] = 0.7
    distill_temperature: Annotated[
        float, Range(0.01, 1000), "divides both networks' logits; arXiv:1503.02531"
    ] = 2.0
    init: Annotated[
        str,
        'fine-tuning: run or weights file to start from; new classes get a new head; "": none',
    ] = ""
    freeze: Annotated[
        Freeze,
        'layers that are not trained, as "stem, stages.0", or 0.5: the first half; "": none',
    ] = ""
    layer_lr_decay: Annotated[
        float,
        Range(0.01, 1),
        "each layer learns at this share of the rate of the next; 1: all alike",
    ] = 1.0
    optimizer: Annotated[
        str, OPTIMIZERS, "muon updates the filters, AdamW all other parameters"
    ] = "muon"
    lr: Annotated[float, RATE, "peak learning rate: of the filters (muon), or of everything"] = 0.24
    momentum: Annotated[float, Range(0, 0.9999), "of sgd and muon"] = 0.6
    nesterov: Annotated[bool, "of sgd (muon always is)"] = True
    betas: Annotated[
        tuple[float, float] | None,
        Range(0, 0.999999),
        "of adam and adamw, not given: 0.9, 0.999; of the AdamW beside muon, not given: 0.85, 0.95",
    ] = None
    weight_decay: Annotated[float, Range(0, 10), "unused by muon, which resets norms"] = 0.0
    decay_all: Annotated[bool, "false: biases and norm scales are not decayed"] = True
    head_scale: Annotated[
        float, Range(0.001, 1000), "sgd: the classifier learns as if its logits were scaled by it"
    ] = 1.0
    bias_lr: Annotated[float, MUON_RATE, "muon: AdamW's rate for biases and norms"] = 0.03
    head_lr: Annotated[float, MUON_RATE, "muon: for the classifier, divided by its inputs"] = 0.768
    adamw_weight_decay: Annotated[float, Range(0, 10), "muon: weight decay of its AdamW"] = 0.5
    sam_rho: Annotated[
        float, Range(0, 100), "radius of sharpness-aware minimisation, at twice the cost; 0: none"
    ] = 0.0
    sam_adaptive: Annotated[bool, "ASAM: the radius in units of each weight's own size"] = False
    schedule: Annotated[Schedule, "of the lr: a name, or [name, {setting = x}]"] = ("linear", {})
    warmup: Annotated[float, Range(0, 0.99), "linear warm-up, share of training"] = 0.0
    freeze_stem_at: Annotated[Share, "share after which the stem is frozen; 1: never"] = 1 / 3
    ema: Annotated[
        float,
        Range(0, 0.999999),
        "EMA of the weights: decay per step, ramped up at the start; 0: off",
    ] = 0.0
    mean: Annotated[Channels, "per channel, in [0, 1]; []: of the training images"] = ()
    std: Annotated[Channels, "per channel, likewise"] = ()
    val: Annotated[
        Held, "training images held out as val, by class: a share below 1, or a number; 0: none"
    ] = 0
    stop_after: Annotated[
        int,
        Range(0, 100_000),
        "early stopping: epochs without a better val accuracy, after which training ends; 0: never",
    ] = 0
    keep_best: Annotated[
        bool, "measure and save the weights of the epoch with the best val accuracy, not the last"
    ] = False
    precision: Annotated[Precision, "of convolutions; auto: bfloat16 where fast"] = "auto"
    compiled: Annotated[bool | None, "use torch.compile; not given: where it is faster"] = None
    seed: Annotated[int, Range(0, 2**63 - 1), "of weights, order and augmentation"] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        # Evaluating one step raises where its settings contradict each other.
        lr_factor(self.schedule, SchedulePoint(0, 100 * self.epochs, 100, self.lr))
        if self.normalize_first:
            self._check_normalize_first()
        if self.schedule[0] == "one-cycle" and self.warmup:
            raise UserError(
                f"schedule one-cycle rises by itself: set warmup = 0, not {self.warmup}"
            )

    def _check_normalize_first(self) -> None:
        if self.teacher:
            raise UserError("normalize_first: a teacher needs images that are not normalised yet")
        for name in (name for name, _ in self.augment if name in OF_PIXEL_VALUES):
            raise UserError(f"normalize_first: {name} needs pixel values: leave one of them out")

    @property
    def chooses_on_val(self) -> bool:
        """Whether val decides which epoch's weights are the result."""
        return self.keep_best or self.stop_after > 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` takes it back."""
        networks = {"model": self.model, "selector": self.selector}
        own = {k: config_to_dict(v) for k, v in networks.items() if not isinstance(v, str)}
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self) | own))
        return plain


def learning_rates(optimizer: str) -> list[str]:
    """The names of the settings that are learning rates of the optimizer; `lr` is one of them."""
    return [
        name
        for name, hint in setting_types(Recipe).items()
        for note in notes_of(hint)
        if isinstance(note, LearningRate) and note.optimizer in ("", optimizer)
    ]


def describe_settings() -> dict[str, str]:
    """What each setting means, and the entries to choose from where a table holds them."""
    notes = {
        name: next(note for note in notes_of(hint) if isinstance(note, str))
        for name, hint in setting_types(Recipe).items()
    }
    tables: dict[str, Table[Any]] = {
        "augment": AUGMENTS,
        "mix": MIXES,
        "loss": LOSSES,
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
    }
    return notes | {
        name: f"{notes[name]}; there are: {', '.join(sorted(table))}"
        for name, table in tables.items()
    }


def from_dict(settings: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
    """A recipe from plain settings over `base`; unknown keys and wrong types are errors."""
    known = [f.name for f in fields(Recipe)]
    for key in settings:
        if key not in known:
            raise UserError(unknown("setting", key, known))
    return replace(base or Recipe(), **settings)


def parse_setting(text: str) -> tuple[str, Any]:
    """ "lr=0.2" -> ("lr", 0.2): the value is TOML, a number as Python writes it, or a bare word."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"setting {text!r}: give key=value, as in lr=0.2")
    try:
        return key.strip(), parse_toml(f"value = {value}")["value"]
    except ValueError as error:
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
