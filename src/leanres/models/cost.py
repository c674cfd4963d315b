"""What a network costs, counted on the real network: parameters, MACs, receptive field, size.

The network runs once on the meta device, which computes shapes but no values, and every operator
that PyTorch dispatches is recorded. What is counted:

- `params`: every `nn.Parameter`, trainable or frozen, shared ones once; buffers do not count. So
  it equals `sum(p.numel() for p in model.parameters())`. The row of a layer has the parameters that
  this layer was the first to use.
- `macs`: multiply-accumulates of convolutions and matrix products for one image, half of what
  `torch.utils.flop_counter` counts; norms, activations, pools and sums count as 0.
- `receptive_field`: side in pixels of the square of input that one position of the last feature
  map depends on, before the global pool. It is exact: the union over branches and residual sums,
  padding included, so it may exceed the image. `global_receptive_field` includes the global pool.
- `memory`: bytes of the activations of one inference at their most (`models.memory`).
- `chained_receptive_field`: what tools that list layers print. It treats every convolution and
  pool as if it were fed by the one executed before it, parallel branches and 1x1 strided shortcuts
  included; slices and the global pool are left out.

Of a network with an operator whose receptive field is unknown, those figures alone are None, and
`unknown` says why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from leanres.errors import UserError, first_line
from leanres.models import receptive
from leanres.models.config import FactoryConfig, ModelConfig
from leanres.models.memory import Operation, peak_elements, writes_over

BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class LayerCost:
    """One call of one layer; receptive fields in pixels, `shape` without the batch axis."""

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    macs: int
    receptive_field: int | None
    chained_receptive_field: int | None


@dataclass(frozen=True)
class Summary:
    """Costs of a network for one image of `input_size` (C, H, W); see the module's docstring."""

    input_size: tuple[int, int, int]
    rows: tuple[LayerCost, ...]
    params: int
    macs: int
    receptive_field: int | None
    global_receptive_field: int | None
    chained_receptive_field: int | None
    peak_activations: int  # elements
    unknown: str = ""  # why there is no receptive field

    @property
    def field_text(self) -> str:
        """The receptive field in words: "64 px"."""
        return "unknown" if self.receptive_field is None else f"{self.receptive_field} px"

    @property
    def memory(self) -> dict[str, int]:
        """Peak bytes of the activations of one image, by number format."""
        return {name: self.peak_activations * BYTES[name] for name in ("float32", "int8")}

    @property
    def size_mib(self) -> dict[str, float]:
        """MiB of the parameters by number format."""
        return {name: self.params * size / 2**20 for name, size in BYTES.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON-able values."""
        values = asdict(self)
        rows = [{**row, "shape": list(row["shape"])} for row in values.pop("rows")]
        size = list(self.input_size)
        own = {"input_size": size, "size_mib": self.size_mib, "memory": self.memory}
        return {**values, **own, "rows": rows}


def summarize(
    network: ModelConfig | nn.Module, input_size: tuple[int, int, int] | None = None
) -> Summary:
    """Cost of `network`, from one forward pass on the meta device; a given module is not changed.

    `input_size` (C, H, W) is by default of 32x32 pixels in a config's channels, in 3 of a module. A
    module that the meta device cannot run, as it looks at values, is run on the CPU. Raises
    `UserError` if the input does not fit.
    """
    channels = 3 if isinstance(network, nn.Module) else network.in_channels
    input_size = input_size or (channels, 32, 32)
    if isinstance(network, FactoryConfig):
        with torch.random.fork_rng(devices=[]):
            network = network.build()
    try:
        return _traced(_on_meta(network), input_size)
    except RuntimeError as error:  # NotImplementedError is one
        problem: Exception = error
    if isinstance(network, nn.Module):
        try:
            return _traced(copy.deepcopy(network).cpu(), input_size)
        except RuntimeError as error:
            problem = error
    misfit = f"images of {input_size} do not fit this network"
    raise UserError(f"{misfit}: {first_line(problem)}") from problem


def _traced(model: nn.Module, input_size: tuple[int, int, int]) -> Summary:
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    trace = _Trace(model.eval())
    images = torch.zeros(1, *input_size, dtype=first.dtype, device=first.device)
    field = trace.run(model, images)
    return Summary(
        input_size=input_size,
        rows=tuple(trace.rows),
        params=count_params(model),
        macs=sum(row.macs for row in trace.rows),
        receptive_field=receptive.field_size(trace.before_pool or field),
        global_receptive_field=receptive.field_size(field),
        chained_receptive_field=receptive.field_size(trace.chained),
        peak_activations=peak_elements(trace.operations, [*model.parameters(), *model.buffers()]),
        unknown=trace.unknown,
    )


def count_params(network: ModelConfig | nn.Module) -> int:
    """Parameters, trainable or frozen, shared ones once; buffers do not count."""
    model = network if isinstance(network, nn.Module) else _on_meta(network)
    return sum(p.numel() for p in model.parameters())


def _on_meta(network: ModelConfig | nn.Module) -> nn.Module:
    """The network on the meta device; of a given module a copy."""
    if isinstance(network, FactoryConfig):
        network = network.build()
    if not isinstance(network, nn.Module):
        with torch.device("meta"):
            return network.build()
    # deepcopy is told that each tensor is already copied, to a meta tensor: no data moves, and
    # shared tensors stay shared (Module.to would separate them).
    copies: dict[int, Any] = {id(b): b.to("meta") for b in network.buffers()}
    for p in network.parameters():
        copies[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(network, copies)


@dataclass
class _RunningLayer:
    """A layer in its forward pass: its own cost, without that of its sublayers."""

    params: int = 0
    macs: int = 0
    windowed: bool = False


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the rows and receptive fields of one forward pass on meta tensors.

    Hooks tell which layer is running; `__torch_dispatch__` sees every operator, adds its cost to
    that layer and computes the receptive field of its result.

    `before_pool` is the receptive field of the map that the last global pool reads (or the last
    flatten of a map larger than 1x1); None without one. After an operator without a rule the
    receptive fields are None, and `unknown` says why.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[LayerCost] = []
        self.chained: receptive.Field | None = receptive.PIXEL
        self.before_pool: receptive.Field | None = None
        self.unknown = ""
        self.operations: list[Operation] = []
        self._uncounted = {id(p): p.numel() for p in model.parameters()}
        # By id. The tensors are kept too, so that no id is reused for another one.
        self._fields: dict[int, tuple[Tensor, receptive.Field | None]] = {}
        self._running = [_RunningLayer()]
        for name, module in model.named_modules(remove_duplicate=True):
            self._add_hooks(name or "(network)", module)

    def run(self, model: nn.Module, images: Tensor) -> receptive.Field | None:
        """The receptive field of the output of `model(images)`; fills the rows."""
        self._fields[id(images)] = (images, receptive.PIXEL)
        with torch.no_grad(), self:
            out = model(images)
        if unused := sum(self._uncounted.values()):
            self.rows.append(LayerCost("(never used)", "parameters", (), unused, 0, 0, 0))
        return self._field_of(out)

    def _add_hooks(self, name: str, module: nn.Module) -> None:
        is_leaf = not any(True for _ in module.children())

        def enter(_module: nn.Module, _args: object) -> None:
            self._running.append(_RunningLayer())

        def leave(_module: nn.Module, _args: object, out: object) -> None:
            layer = self._running.pop()
            if is_leaf or layer.params or layer.macs or layer.windowed:
                shape = tuple(out.shape[1:]) if isinstance(out, Tensor) else ()
                fields = (
                    receptive.field_size(self._field_of(out)),
                    receptive.field_size(self.chained),
                )
                kind = type(module).__name__
                self.rows.append(LayerCost(name, kind, shape, layer.params, layer.macs, *fields))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _field_of(self, out: object) -> receptive.Field | None:
        return self._fields[id(out)][1] if id(out) in self._fields else receptive.PIXEL

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        layer, leaves = self._running[-1], tree_leaves((args, kwargs))
        layer.params += sum(self._uncounted.pop(id(leaf), 0) for leaf in leaves)
        if func.overloadpacket in flop_registry:
            layer.macs += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) // 2
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        results = tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        self.operations.append(Operation(tensors, results, writes_over(func, receptive.NORMS)))
        inputs = [self._fields[id(leaf)] for leaf in leaves if id(leaf) in self._fields]
        if inputs:
            field = self._propagate(func, args, kwargs, inputs, out)
            self._fields |= {id(result): (result, field) for result in results}
        return out

    def _propagate(
        self,
        func: OpOverload[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[tuple[Tensor, receptive.Field | None]],
        out: Any,
    ) -> receptive.Field | None:
        """The receptive field of an operator's result; None once it is unknown."""
        known = [(tensor, field) for tensor, field in inputs if field is not None]
        call = receptive.OperatorCall(func, _by_name(func, args, kwargs), known, out)
        if len(known) < len(inputs):
            return None
        self._running[-1].windowed |= call.windowed
        try:
            field = receptive.propagate(call)
            if receptive.is_global_pool(call, field):
                self.before_pool = known[0][1]
            elif call.windowed and self.chained is not None:
                self.chained = receptive.slide(call, self.chained)
        except UserError as error:
            self.unknown, self.chained, self.before_pool = str(error), None, None
            return None
        return field


def _by_name(func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator's arguments by name, defaults included."""
    schema = func._schema.arguments
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**named, **{a.name: value for a, value in zip(schema, args, strict=False)}, **kwargs}
