"""The moving average of a network's weights and running statistics, and its decay."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay(decay: float, step: int) -> float:
    """The decay of the average at a step, counted from 0: it rises up to `decay`.

    So the average spans about the last tenth of the steps, and not the first ones of a training.
    Shamir & Zhang 2013, arXiv:1212.1824 (polynomial-decay averaging).
    """
    return min(decay, step / (step + 9))


@torch.no_grad()
def average_(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, for weights and running statistics.

    Counters are copied. Nothing waits for the device.
    """
    pairs = [
        *zip(average.parameters(), model.parameters(), strict=True),
        *zip(average.buffers(), model.buffers(), strict=True),
    ]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    mine, theirs = ([pair[side] for pair in floats] for side in (0, 1))
    get_ema_multi_avg_fn(decay)(mine, theirs, None)  # type: ignore[no-untyped-call]
    counters = [pair for pair in pairs if not pair[0].is_floating_point()]
    if counters:
        torch._foreach_copy_([own for own, _ in counters], [new for _, new in counters])
