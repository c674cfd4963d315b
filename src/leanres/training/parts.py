"""The parts of a batch: their gradients, added up, and batch-norm statistics, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from leanres.errors import LostProcessError, UserError
from leanres.training.batch import Batch
from leanres.training.distributed import ALIGNED, Parts, World
from leanres.training.setup import Setup

Mark = Callable[[str], object]  # called with the name of each part of a step once it is done
# (a part, its logits (N, K) float32) -> its share of the step's loss (), its correct predictions ()
Loss = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]


def ignore(part: str) -> None:
    """The `Mark` that does nothing."""


def accumulate_(
    forward: nn.Module, batch: Batch, setup: Setup, loss_of: Loss, mark: Mark = ignore
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of all parts of a step, and update the running statistics in order.

    -> their loss () and the number of correct predictions (), of all processes.
    """
    world, parts = setup.world, batch.divided(setup.recipe.accumulate)
    statistics, gradients = RunningStatistics(forward), PartGradients(forward, world)
    rows = []
    for k, part in zip(world.own(parts), batch.parts(parts.size), strict=True):
        statistics.begin_(k)
        with setup.device.seeded(batch.seeds[k]) if batch.seeds else nullcontext():
            with setup.device.autocast():
                logits = forward(part.inputs)
            mark("forward")
            loss, correct = loss_of(part, logits.float())
            loss.backward()  # type: ignore[no-untyped-call]
        rows.append(torch.cat([torch.stack([loss.detach(), correct]), *statistics.taken()]))
        gradients.keep_()
        mark("backward")
    own = torch.stack(rows) if rows else batch.inputs.new_empty(0, 2 + statistics.width)
    table = world.gather(own, [len(world.own(parts, rank)) for rank in range(world.size)])
    gradients.reduce_(parts)
    statistics.apply_(table[:, 2:])
    if world.size > 1:
        mark("communication")
    loss, correct = table[:, :2].sum(0)
    return loss, correct.long()


class RunningStatistics:
    """The running means and variances of a network's norms, which each part updates in turn.

    A part starts from zeros, so what it leaves there is its own share of the update. All shares are
    then applied in the order of the parts, whichever process has computed them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.norms = [
            module
            for module in network.modules()
            if isinstance(module, _NormBase) and module.training and module.running_mean is not None
        ]
        self.values = [
            b for m in self.norms for b in (m.running_mean, m.running_var) if b is not None
        ]
        # PyTorch's instance norms count no batches.
        norms = [module for module in self.norms if isinstance(module, _BatchNorm)]
        self.counts = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.values_before = [b.clone() for b in self.values]
        self.counts_before = [b.clone() for b in self.counts]

    @cached_property
    def averages(self) -> dict[nn.Module, int]:
        """Batch norms without a momentum, which average over all batches, and their counts."""
        return {
            norm: int(norm.num_batches_tracked)
            for norm in self.norms
            if isinstance(norm, _BatchNorm)
            and norm.momentum is None
            and norm.num_batches_tracked is not None
        }

    @torch.no_grad()
    def begin_(self, part: int) -> None:
        """Set the statistics up for the forward pass of a part."""
        if self.values:
            torch._foreach_zero_(self.values)
        for count, before in zip(self.counts, self.counts_before, strict=True):
            if self.averages:  # a part of theirs depends on its number
                count.copy_(before + part)

    def taken(self) -> list[Tensor]:
        """What the part has left, each flat."""
        return [b.float().flatten() for b in self.values]

    @property
    def width(self) -> int:
        """How many numbers that are."""
        return sum(b.numel() for b in self.values)

    @torch.no_grad()
    def apply_(self, table: Tensor) -> None:
        """Update the statistics with the rows (P, S) of all parts."""
        if not self.values:
            return
        torch._foreach_copy_(self.values, self.values_before)
        sizes = [b.numel() for b in self.values]
        for part, row in enumerate(table):
            torch._foreach_mul_(self.values, self._kept(part))
            shares = [s.view_as(b) for s, b in zip(row.split(sizes), self.values, strict=True)]
            torch._foreach_add_(self.values, shares)
        for count, before in zip(self.counts, self.counts_before, strict=True):
            count.copy_(before + len(table))

    def _kept(self, part: int) -> list[float]:
        """The share of each value that stays when a part's is added."""
        momenta = [
            1 / (self.averages[norm] + part + 1) if norm in self.averages else norm.momentum or 0.0
            for norm in self.norms
        ]
        return [1 - momentum for momentum in momenta for _ in range(2)]


class PartGradients:
    """The gradients of a network's parameters, summed in the order of the parts.

    One process leaves that to autograd, which adds in the same order. Several keep the gradients of
    each part and exchange them.
    """

    def __init__(self, network: nn.Module, world: World) -> None:
        self.network, self.world = network, world
        self.params = [p for p in network.parameters() if p.requires_grad] if world.size > 1 else []
        widths = [_multiple(p.numel(), ALIGNED) for p in self.params]
        self.starts = [sum(widths[:i]) for i in range(len(widths))]
        self.width = _multiple(sum(widths), ALIGNED * world.size)
        self.rows: list[Tensor] = []
        self.used = [False] * len(self.params)

    def _views(self, row: Tensor) -> list[Tensor]:
        """The gradients in a row, each laid out in memory as its parameter is."""
        return [
            row.as_strided(p.shape, p.stride(), row.storage_offset() + start)
            for p, start in zip(self.params, self.starts, strict=True)
        ]

    def keep_(self) -> None:
        """Take a part's gradients away, where several processes sum them in order."""
        if self.params and self.world.exact:
            self._move_()

    def _move_(self) -> None:
        row = self.params[0].new_zeros(self.width)
        for i, (p, view) in enumerate(zip(self.params, self._views(row), strict=True)):
            if p.grad is not None:
                view.copy_(p.grad)
                self.used[i], p.grad = True, None
        self.rows.append(row)

    def reduce_(self, parts: Parts) -> None:
        """Set each parameter's gradient to the sum over all parts."""
        if not self.params:
            return
        if not self.world.exact:
            self._move_()
        rows = torch.stack(self.rows) if self.rows else self.params[0].new_zeros(0, self.width)
        counts = [len(self.world.own(parts, rank)) for rank in range(self.world.size)]
        total = self.world.sum_in_order(rows, counts)
        for p, view, used in zip(self.params, self._views(total), self._used(), strict=True):
            p.grad = view if used else None  # an optimizer leaves an unused one as it is

    def _used(self) -> list[bool]:
        """Which parameters get gradients in any part: asked once per set of trainable ones."""
        known = self.world.used.setdefault(self.network, {})
        key = tuple(p.requires_grad for p in self.network.parameters())
        if key not in known:
            known[key] = [any(own) for own in zip(*self.world.exchange(self.used), strict=True)]
        if any(own and not any_part for own, any_part in zip(self.used, known[key], strict=True)):
            raise UserError(
                "the network uses other parameters from batch to batch: train it in one process"
            )
        return known[key]


def _multiple(number: int, of: int) -> int:
    """The smallest multiple that is not below the number."""
    return -(-number // of) * of


@contextlib.contextmanager
def unchanged_if_lost(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Where another process ends within it, buffers are as before and gradients are cleared.

    The parameters change only after the last exchange of a step, so the state can be saved.
    """
    buffers = [b for network in networks for b in network.buffers()]
    before = [b.clone() for b in buffers]
    try:
        yield
    except LostProcessError:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        for network in networks:
            network.zero_grad(set_to_none=True)
        raise


def check_buffers(network: nn.Module, inputs: Tensor) -> None:
    """UserError for a network that several processes cannot train as one does.

    Beside the running statistics of norms no buffer may change with a batch. inputs: (N, C, H, W).
    """
    norms = [m for m in network.modules() if isinstance(m, _NormBase)]
    known = {id(b) for norm in norms for b in norm.buffers()}
    others = {name: b for name, b in network.named_buffers() if id(b) not in known}
    before = {name: b.clone() for name, b in others.items()}
    with torch.no_grad():
        network(inputs)
    for name, buffer in others.items():
        if not torch.equal(buffer, before[name]):
            raise UserError(
                f"the network's buffer {name} changes with each batch: train it in one process"
            )
