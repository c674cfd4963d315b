"""A training step's kernels as one CUDA graph: some hundred launches become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WARM_UP = 3  # calls before a capture: the compiler, cuDNN and the allocator settle
Inputs = Any  # a NamedTuple of tensors and constants, the images first: training.batch.Batch
Result = Any  # a NamedTuple of tensors: training.loop.StepResult
Work = Callable[[Inputs], Result]
# Records the kernels that a call launches; what it returns runs them again.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]


class Replay:
    """A step that is captured as a graph after three warm-up calls, and replayed from then on.

    There is one graph per batch shape and set of trainable parameters. `work` updates `model` by
    the optimizers at their groups' lr, clears the gradients, and branches on no value that lies on
    the device.
    """

    def __init__(
        self,
        work: Work,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        record: Recorder | None = None,
    ) -> None:
        self.work, self.parameters = work, list(model.parameters())
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.record = record or record_graph
        self.seen: Counter[object] = Counter()
        self.captures: dict[object, Capture] = {}

    def __call__(self, batch: Inputs) -> Result:
        shapes = [(t.shape, t.stride(), t.dtype) if isinstance(t, Tensor) else t for t in batch]
        kind = (*shapes, *(p.requires_grad for p in self.parameters))
        if kind not in self.captures:
            if self.seen[kind] < WARM_UP:
                self.seen[kind] += 1
                return run_on_side_stream(self.work, batch)
            self.captures[kind] = Capture(self.work, batch, self.groups, self.record)
        return self.captures[kind](batch)


class Capture:
    """`work` as a graph with its input tensors: a batch of one shape, and each group's lr."""

    def __init__(
        self,
        work: Work,
        batch: Inputs,
        groups: Sequence[dict[str, Any]],
        record: Recorder,
    ) -> None:
        self.groups = groups
        self.inputs = type(batch)(*(t.clone() if isinstance(t, Tensor) else t for t in batch))
        self.rates = torch.zeros(len(groups), device=batch[0].device)
        self.set: list[float] = []  # the values in `rates`
        self.found: Result = None

        def run() -> None:
            self.found = work(self.inputs)

        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates.unbind(), strict=True):
            group["lr"] = rate
        try:
            self.replay = record(run)
        finally:
            for group, number in zip(groups, rates, strict=True):
                group["lr"] = number

    def __call__(self, batch: Inputs) -> Result:
        for own, new in zip(self.inputs, batch, strict=True):
            if isinstance(own, Tensor):
                own.copy_(new)
        rates = [group["lr"] for group in self.groups]
        if rates != self.set:
            self.rates.copy_(torch.tensor(rates), non_blocking=True)
            self.set = rates
        self.replay()
        return type(self.found)(*(t.clone() for t in self.found))


def record_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Record the kernels of `work` as a graph, without running them; returns its replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def run_on_side_stream(work: Work, batch: Inputs) -> Result:
    """Run it on a side stream, as autograd requires before a capture."""
    if not batch[0].is_cuda:
        return work(batch)
    side = torch.cuda.Stream(batch[0].device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = work(batch)
    torch.cuda.current_stream().wait_stream(side)
    return found
