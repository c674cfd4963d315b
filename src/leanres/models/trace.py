"""One run of a network on the meta device: what each layer costs, and how far each map sees.

Every operator that PyTorch dispatches is read once. Multiply-accumulates come from the formulas of
`torch.utils.flop_counter`, receptive fields from the rules of `receptive`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from leanres.models.receptive import (
    PIXEL,
    Call,
    Field,
    field_size,
    follow,
    is_global_pool,
    slide,
)


@dataclass(frozen=True)
class Row:
    """One call of one layer; sizes in pixels, `shape` without the batch axis."""

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    macs: int
    receptive_field: int
    chained_receptive_field: int


@dataclass
class _Frame:
    """A layer that is running: what was spent inside it and outside its own layers."""

    params: int = 0
    macs: int = 0
    windowed: bool = False


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects `rows` and receptive fields while the network runs under it, on meta tensors.

    `before_pool` is what the map sees that the last global pool (or flatten of a map larger than
    1x1) reads; None where there is no such pool. `UserError` names an operator without a rule.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Row] = []
        self.chain: Field = PIXEL
        self.before_pool: Field | None = None
        self._unpriced = {id(p): p.numel() for p in model.parameters()}
        # The tensors are kept beside their fields, so that no id is ever used twice.
        self._fields: dict[int, tuple[Tensor, Field]] = {}
        self._frames = [_Frame()]
        for name, module in model.named_modules(remove_duplicate=True):
            self._watch(name or "(network)", module)

    def run(self, model: nn.Module, images: Tensor) -> Field:
        """What the output of `model(images)` sees; fills the rows."""
        self._fields[id(images)] = (images, PIXEL)
        with torch.no_grad(), self:
            out = model(images)
        unused = sum(self._unpriced.values())
        if unused:
            self.rows.append(Row("(never used)", "parameters", (), unused, 0, 0, 0))
        return self._field(out)

    def _watch(self, name: str, module: nn.Module) -> None:
        leaf = not any(True for _ in module.children())

        def enter(_module: nn.Module, _args: object) -> None:
            self._frames.append(_Frame())

        def leave(_module: nn.Module, _args: object, out: object) -> None:
            frame = self._frames.pop()
            if leaf or frame.params or frame.macs or frame.windowed:
                self.rows.append(self._row(name, module, frame, out))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _row(self, name: str, module: nn.Module, frame: _Frame, out: object) -> Row:
        shape = tuple(out.shape[1:]) if isinstance(out, Tensor) else ()
        size, chained = field_size(self._field(out)), field_size(self.chain)
        kind = type(module).__name__
        return Row(name, kind, shape, frame.params, frame.macs, size, chained)

    def _field(self, out: object) -> Field:
        return self._fields[id(out)][1] if id(out) in self._fields else PIXEL

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        frame, leaves = self._frames[-1], tree_leaves((args, kwargs))
        frame.params += sum(self._unpriced.pop(id(leaf), 0) for leaf in leaves)
        if func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            frame.macs += flops // 2
        maps = [self._fields[id(leaf)] for leaf in leaves if id(leaf) in self._fields]
        if maps:
            self._follow(Call(func, _named(func, args, kwargs), maps, out))
        return out

    def _follow(self, call: Call) -> None:
        seen = follow(call)
        if is_global_pool(call, seen):
            self.before_pool = call.maps[0][1]
        elif call.windowed:
            self.chain = slide(call, self.chain)
        self._frames[-1].windowed |= call.windowed
        for result in tree_leaves(call.out):
            if isinstance(result, Tensor):
                self._fields[id(result)] = (result, seen)


def _named(func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    schema = func._schema.arguments
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**named, **{a.name: value for a, value in zip(schema, args, strict=False)}, **kwargs}
