"""Peak memory: what PyTorch's allocator hands out when the operators run one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from leanres.models.cost import summarize
from leanres.models.davidnet import BranchNetConfig, DavidNetConfig
from leanres.models.resnet import ResNetConfig
from leanres.models.speednet import SpeedNetConfig

IMAGES = 2  # of one image alone PyTorch's convolution makes a matrix
CONFIGS = [
    ResNetConfig((16, 32), (2, 2)),
    ResNetConfig((16, 32), (1, 1), block="wide", shortcut="pad"),
    SpeedNetConfig((24, 32)),
    SpeedNetConfig((24, 32), residual=True, depth=3),
    DavidNetConfig((8, 16, 16, 16)),
    BranchNetConfig((8, 16, 16, 16), 16),
]


class Economical(fx.Interpreter):
    """Runs a graph as a device does that is short of memory.

    A map is freed after its last reader; a norm or pointwise operator writes over a map that
    nothing else reads.
    """

    waiting: Tensor | None = None  # the images, until the network reads them

    def placeholder(self, *_: object) -> Tensor | None:
        images, self.waiting = self.waiting, None
        return images

    def run_node(self, node: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        packet = getattr(node.target, "overloadpacket", None)
        if packet is torch.ops.aten.native_batch_norm:
            nothing = {"save_mean": torch.empty(0), "save_invstd": torch.empty(0)}
            return self.over(node, packet.out, args, args[:1], **nothing)
        if packet is torch.ops.aten.max_pool2d_with_indices:  # without the positions
            images, (k, _), (stride, _), *padding = args
            assert not any(padding)
            windows = images.unfold(2, k, stride).unfold(3, k, stride)
            out = torch.empty(windows.shape[:4], memory_format=torch.channels_last)
            return torch.amax(windows, (4, 5), out=out), None
        if hasattr(packet, "out") and torch.Tag.pointwise in node.target.tags:
            return self.over(node, packet.out, args, args, **kwargs)
        return super().run_node(node)

    def over(self, node: fx.Node, function: Any, args: Any, inputs: Any, **more: Any) -> Any:
        shape = torch.broadcast_shapes(*(x.shape for x in inputs if isinstance(x, Tensor)))
        for given, value in zip(node.args, inputs, strict=False):
            is_last = isinstance(given, fx.Node) and given in self.user_to_last_uses.get(node, ())
            if is_last and value.shape == shape:
                if function is torch.ops.aten.relu.out:  # it makes a map in between
                    return torch.relu_(value)
                return function(*args, out=value, **more)
        return self.call_function(node.target, args, node.kwargs)


def measured(model: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    """The network's answer, and the most bytes that were allocated at once while it ran."""
    with torch.no_grad():
        graph = make_fx(lambda images: model(images))(images)
        for node in graph.graph.nodes:
            node.meta = {}
        graph.graph.eliminate_dead_code()
        runner = Economical(graph)
        runner.waiting = images.clone()
        runner.run(None)  # kernels keep buffers from their first call on
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
            runner.waiting = images.clone()
            answer = runner.run(None)
    changes = [e for e in traced.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda change: change.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return answer, peak


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_walk_predicts_what_is_allocated(config):
    torch.manual_seed(0)
    # channels last: else PyTorch's convolution makes its result in another layout first
    model = config.build().eval().to(memory_format=torch.channels_last)
    images = torch.randn(IMAGES, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    answer, peak = measured(model, images)
    with torch.no_grad():
        torch.testing.assert_close(answer, model(images))
    predicted = summarize(config).memory["float32"]
    scratch = 4 * max(p.numel() for p in model.parameters()) + 16_384  # filters in another layout
    assert IMAGES * predicted <= peak <= IMAGES * predicted + scratch
