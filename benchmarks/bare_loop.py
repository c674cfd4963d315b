"""The recipe `speed` as one flat loop: the kernels of leanres without the framework around them.

The oracle of tests/training/test_loop.py (losses equal to the last bit) and the baseline of
benchmarks/overhead.py (step time within 2 %).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from leanres.augment.geometry import alternating_flip, crop
from leanres.augment.rng import Draw, generator
from leanres.data.split import Split, channel_stats
from leanres.kernels.conv_mode import ConvMode, NetworkInMode
from leanres.kernels.tiled_conv import tiled_convolve
from leanres.kernels.winograd import winograd_convolve
from leanres.models.speednet import SpeedNet, SpeedNetConfig
from leanres.training.muon import Muon
from leanres.training.recipe import Recipe


def losses(
    split: Split, widths: tuple[int, ...], epochs: int, batch: int, seed: int, bfloat16: bool
) -> Iterator[Tensor]:
    """Train and yield the loss of each step, a tensor () that is not synchronised."""
    r = Recipe()
    mean, std = channel_stats(split)
    shift = 255 * torch.tensor(mean).view(-1, 1, 1)
    scale = 1 / (255 * torch.tensor(std).view(-1, 1, 1))
    torch.manual_seed(seed)
    shape = SpeedNetConfig(widths, activation="gelu", num_classes=len(split.classes))
    net = SpeedNet(shape)
    chosen = torch.randperm(len(split), generator=generator(seed))[:5000]
    first = split.images[chosen].to(torch.float32, memory_format=torch.channels_last)
    net.init_from_data_((first - shift) * scale)
    net.to(memory_format=torch.channels_last)
    average = copy.deepcopy(net)
    # As `accelerate` chooses on a CPU.
    forward = NetworkInMode(net, tiled_convolve) if bfloat16 else net
    filters = [p for p in net.parameters() if p.ndim == 4 and p.requires_grad]
    rest = [p for p in net.parameters() if p.ndim == 1 and p.requires_grad]
    muon = Muon(filters, lr=r.lr, momentum=r.momentum)
    head_lr = r.head_lr / net.head.in_features
    adam = torch.optim.AdamW(
        [{"params": rest, "lr": r.bias_lr}, {"params": [net.head.weight], "lr": head_lr}],
        betas=(0.85, 0.95),
        weight_decay=r.adamw_weight_decay,
    )
    per_epoch = len(split) // batch
    total = epochs * per_epoch
    together = max(1, 2048 // -(-batch // r.accumulate))
    for step in range(total):
        epoch, i = divmod(step, per_epoch)
        if i == 0:
            order = torch.randperm(len(split), generator=generator(seed, epoch))
        chosen = order[i * batch : (i + 1) * batch]
        if i % together == 0:
            several = order[i * batch : min(i + together, per_epoch) * batch].split(batch)
            prepared = []
            for k, of_steps in enumerate(
                zip(*(s.chunk(r.accumulate) for s in several), strict=True)
            ):
                part = torch.cat(of_steps)
                draw = Draw(generator(seed, epoch, i + 1, 0, k), part, epoch, seed)
                flipped = alternating_flip(split.images[part], draw)
                prepared.append(crop(flipped, draw, 2, "reflect").split(len(of_steps[0])))
        images = torch.cat([part[i % together] for part in prepared])
        x = (images.to(torch.float32, memory_format=torch.channels_last) - shift) * scale
        if step == round(total * r.freeze_stem_at):
            net.stem.bias.requires_grad_(False)
            net.stem.bias.grad = None
        for optimizer, lrs in ((muon, [r.lr]), (adam, [r.bias_lr, head_lr])):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * (1 - step / total)
        parts = []
        for images, labels in zip(
            x.chunk(r.accumulate), split.labels[chosen].chunk(r.accumulate), strict=True
        ):
            with torch.autocast("cpu", torch.bfloat16) if bfloat16 else ConvMode(winograd_convolve):
                logits = forward(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=r.label_smoothing)
            loss = loss * (len(labels) / batch)
            loss.backward()
            parts.append(loss.detach())
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            pairs = zip(average.state_dict().values(), net.state_dict().values(), strict=True)
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            follow = get_ema_multi_avg_fn(min(r.ema, step / (step + 9)))
            follow(*map(list, zip(*floats, strict=True)), None)
        yield torch.stack(parts).sum()
