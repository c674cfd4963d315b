"""A training step's kernels as one CUDA graph: some hundred launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

WARM_UP = 3  # calls before a capture: the compiler, cuDNN and the allocator settle
Batch = Any  # a NamedTuple of tensors and None, its first the inputs: training.batch.Batch
Gradients = Callable[[Batch], tuple[Tensor, Tensor]]


class Graph(Protocol):
    """What has been captured."""

    def replay(self) -> None:
        """Do it again, with what now lies in its inputs."""


class Replay:
    """`work` of batches of one shape, captured at its fourth call and replayed from then on.

    `work` adds to the gradients of `model` and gives its mean loss () and correct predictions ();
    it decides nothing by values on the device. The gradients must be cleared before each call.
    Another shape of batch, or other parameters to train, begin anew.
    """

    def __init__(
        self,
        work: Gradients,
        model: nn.Module,
        capture: Callable[[Callable[[], None]], Graph] | None = None,
    ) -> None:
        self.work, self.parameters = work, list(model.parameters())
        self.capture = capture or captured
        self.key: object = None
        self.calls = 0
        self.graph: Graph | None = None
        self.inputs: Batch
        self.found: tuple[Tensor, Tensor]
        self.gradients: list[Tensor | None] = []

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        shapes = [None if t is None else (t.shape, t.stride(), t.dtype) for t in batch]
        key = (shapes, [p.requires_grad for p in self.parameters])
        if key != self.key:
            self.key, self.calls, self.graph = key, 0, None
        self.calls += 1
        if self.calls <= WARM_UP:
            return aside(self.work, batch)
        if self.graph is None:
            self._capture(batch)
        for own, new in zip(self.inputs, batch, strict=True):
            if own is not None and new is not None:
                own.copy_(new)
        assert self.graph is not None
        self.graph.replay()
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        loss, correct = self.found
        return loss.clone(), correct.clone()

    def _capture(self, batch: Batch) -> None:
        self.inputs = type(batch)(*(None if t is None else t.clone() for t in batch))

        def work() -> None:
            self.found = self.work(self.inputs)

        self.graph = self.capture(work)
        self.gradients = [p.grad for p in self.parameters]


def captured(work: Callable[[], None]) -> Graph:
    """The kernels that `work` would run, without running them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def aside(work: Gradients, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run it on a stream of its own, as autograd wants it before a capture."""
    if not batch[0].is_cuda:
        return work(batch)
    side = torch.cuda.Stream(batch[0].device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = work(batch)
    torch.cuda.current_stream().wait_stream(side)
    return found
