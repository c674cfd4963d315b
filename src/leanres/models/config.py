"""ModelConfig, the interface of every network's config; types of the fields that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from leanres.errors import UserError
from leanres.registry import Range, Table

if TYPE_CHECKING:
    from torch import nn

Width = Annotated[int, Range(1, 65_536)]  # channels
Widths = Annotated[tuple[int, ...], Range(1, 65_536)]  # channels of each stage
MAX_STAGES, MAX_LAYERS = 16, 600  # each stage halves the map; ResNet-1202 has 600 blocks
Classes = Annotated[int, Range(2, 1_000_000)]
InChannels = Annotated[int, Range(1, 1024)]  # of the images


def check_depth(stages: int, layers: int) -> None:
    """UserError for more stages, or more blocks or convolutions in all, than are of use."""
    if stages > MAX_STAGES or layers > MAX_LAYERS:
        raise UserError(
            f"{stages:,} stages and {layers:,} blocks or convolutions: give at most"
            f" {MAX_STAGES} and {MAX_LAYERS:,}"
        )


Factory = Callable[[int, int], "nn.Module"]  # (num_classes, in_channels) -> a network


@dataclass(frozen=True)
class FactoryConfig:
    """A user's own network: `factory` is the name of its function or class in FACTORIES."""

    factory: str
    num_classes: int = 10
    in_channels: int = 3

    @property
    def widths(self) -> tuple[int, ...]:
        """Nothing is known of its stages."""
        return ()

    def build(self) -> nn.Module:
        """What the factory makes. UserError where that is no network."""
        from torch import nn

        network = FACTORIES[self.factory](self.num_classes, self.in_channels)
        if not isinstance(network, nn.Module):
            came = type(network).__name__
            raise UserError(f"{self.factory} made a {came}: return a torch.nn.Module")
        return network


FACTORIES: Table[Factory] = Table("network", {}, takes=("num_classes", "in_channels"))


class ModelConfig(Protocol):
    """A frozen dataclass whose `build()` makes a network: (N, C, H, W) -> logits (N, K).

    A network with a method `init_from_data_(images)` is initialised with a sample of the normalised
    training images (N, C, H, W) before its training.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # makes `replace` and `fields` accept it

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of each stage, in order."""

    @property
    def num_classes(self) -> int:
        """K, the number of logits per image."""

    @property
    def in_channels(self) -> int:
        """C: 1 for grey images, 3 for RGB, 4 for RGBA."""

    def build(self) -> nn.Module:
        """A new network on the default device, initialised with torch's global generator."""
