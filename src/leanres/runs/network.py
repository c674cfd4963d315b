"""find_network: the network that a name, a file, a run or a plugin means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanres.errors import UserError
from leanres.io import parse_toml
from leanres.models.config import ModelConfig
from leanres.models.preprocess import Preprocess
from leanres.models.zoo import MODELS, config_from_dict, fitted, network_name, resolve
from leanres.plugins import is_reference
from leanres.runs.run_json import INFO, is_queued, read_info
from leanres.runs.weights import load_classifier
from leanres.training.recipe import Recipe
from leanres.training.recipes import load_recipe


@dataclass(frozen=True)
class FoundNetwork:
    """A network, what to call it, where it is from, and the side of its images where known."""

    config: ModelConfig
    name: str
    source: str
    size: int | None = None
    is_named: bool = False  # an entry of MODELS


def find_network(target: str) -> FoundNetwork:
    """The network of a run folder, a weights file, a recipe's TOML, `{family = ...}`, or a name.

    A plugin's is named "mine:Net". UserError for anything else, and for damaged files.
    """
    path = Path(target)
    if not target.strip():
        raise UserError("no network is named: give a name, a run folder, a weights file or a TOML")
    if target.lstrip().startswith("{"):
        try:
            values = parse_toml(f"model = {target}")["model"]
        except ValueError as error:
            raise UserError(f"{target}: {error}; give TOML, as {{family = 'resnet'}}") from None
        config = config_from_dict(values)
        return FoundNetwork(config, network_name(config), "as given")
    if path.suffix == ".toml":
        return _of_recipe(load_recipe(target), target)
    if (path / INFO).is_file():
        info = read_info(path, queued=True)
        if is_queued(info):
            return _of_recipe(Recipe(**info["recipe"]), target)
        return _trained(config_from_dict(info["network"]), Preprocess(**info["preprocess"]), target)
    if path.is_file():
        classifier, config = load_classifier(path)
        return _trained(config, classifier.preprocess, target)
    if (
        target not in MODELS
        and not is_reference(target)
        and (path.exists() or len(path.parts) > 1 or path.suffix)
    ):
        problem = "holds no network" if path.exists() else "does not exist"
        raise UserError(f"{target} {problem}: give a run folder, a weights file or a recipe's TOML")
    entry = MODELS[target]
    about = "; ".join(filter(None, (entry.source, entry.note)))
    return FoundNetwork(entry.config, target, about, is_named=True)


def _of_recipe(recipe: Recipe, target: str) -> FoundNetwork:
    return FoundNetwork(resolve(recipe.model), network_name(recipe.model), target)


def _trained(config: ModelConfig, preprocess: Preprocess, target: str) -> FoundNetwork:
    """A network that was trained knows its classes, channels and the size of its images."""
    own = fitted(config, len(preprocess.classes), preprocess.channels)
    return FoundNetwork(own, network_name(config), target, preprocess.size)
