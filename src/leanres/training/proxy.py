"""A small network that is trained along and picks what the large one trains on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanres.training.batch import Batch
from leanres.training.engine import Engine
from leanres.training.recipe import Plan


def hardest(proxy: nn.Module, batch: Batch, plan: Plan, engine: Engine) -> Tensor:
    """The positions, rising, of the images that the proxy has the largest losses on: int64.

    As many as the plan's `kept_per_step`. The proxy's gradients of the whole batch are added on
    the way, so that it learns from all images, and at no other cost than its own. The speed
    records for 96 % pick half of each batch so (arXiv:2404.00498, section 5).
    """
    recipe, whole = plan.recipe, len(batch.targets)
    found = []
    for part in batch.parts(recipe.accumulate):
        with engine.autocast():
            logits = proxy(part.inputs)
        losses = F.cross_entropy(
            logits.float(), part.targets, label_smoothing=recipe.label_smoothing, reduction="none"
        )
        (losses.sum() / whole).backward()  # type: ignore[no-untyped-call]
        found.append(losses.detach())
    return torch.cat(found).topk(plan.kept_per_step).indices.sort().values
