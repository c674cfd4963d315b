"""The kernels in C on random shapes, between guard pages, compiled in many ways, against float64.

    python tests/faults/kernels.py 43 0 -O1 -fno-inline

computes 43 random shapes from seed 0 with these flags added. Every tensor that a kernel gets is
copied to memory of its own, which ends (or begins) at a page that nothing may touch: a read or
write beyond a tensor kills the process. Memory that PyTorch leaves uninitialised holds NaN. AMX and
AVX-512 are emulated where the CPU does not have them (tests/kernels/emulated).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanres.kernels import amx_conv, build, fused_norm, winograd
from leanres.kernels.tiled_conv import _TiledConv, tile_layout

EMULATED = Path(__file__).parents[1] / "kernels" / "emulated"
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """A tensor's bytes in memory of their own, between two pages that nothing may touch."""

    def __init__(self, tensor: Tensor, at_end: bool) -> None:
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        assert tensor.numel() in (0, extent), f"not dense: {tensor.shape} {tensor.stride()}"
        self.original, count = tensor, tensor.numel() * tensor.element_size()
        size = max(PAGE, -(-count // PAGE) * PAGE)
        self.memory = mmap.mmap(-1, size + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for page in (start, start + PAGE + size):
            assert LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
        self.at, self.count = start + PAGE + (size - count if at_end else 0), count
        ctypes.memmove(self.at, tensor.data_ptr(), count)

    def data_ptr(self) -> int:
        return self.at

    def copy_back(self) -> None:
        ctypes.memmove(self.original.data_ptr(), self.at, self.count)


def guarded_call(name: str, *values: Tensor | int | None) -> int:
    """`build.call` with each tensor between guard pages."""
    held = [Guarded(v, random.random() < 0.7) if isinstance(v, Tensor) else v for v in values]
    library = build.library()
    assert library is not None
    pointers = [
        ctypes.c_void_p(v.data_ptr()) if isinstance(v, Guarded) else ctypes.c_int64(v or 0)
        for v in held
    ]
    code = int(getattr(library, name)(*pointers, ctypes.c_int64(torch.get_num_threads())))
    for v in held:
        if isinstance(v, Guarded):
            v.copy_back()
    return code


FORMS: dict[str, Callable[[Tensor], Tensor]] = {  # the same values in other places
    "contiguous": torch.Tensor.contiguous,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack((t, t), -1)[..., 0],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "double": torch.Tensor.double,
}


def in_any_form(tensor: Tensor) -> Tensor:
    return FORMS[random.choice(list(FORMS))](tensor)


def bf16(*shape: int) -> Tensor:
    """Random values that are bfloat16 ones."""
    return torch.randn(shape).bfloat16().float()


def near(ours: Tensor | None, right: Tensor | None, most: float) -> None:
    assert ours is not None
    assert right is not None
    assert ours.shape == right.shape, (ours.shape, right.shape)
    error, size = (ours.double() - right.double()).norm(), right.double().norm()
    assert error <= most * size + 1e-6, f"off by {float(error / size):.2g}"


def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).requires_grad_()


def backward(out: Tensor, gradient: Tensor) -> None:
    """Backward through a gradient in any form, which nothing else refers to."""
    (out * in_any_form(gradient).to(out.dtype)).sum().backward()


def shape_of(side: int = 9, channels: int = 40, batch: int = 20) -> tuple[int, int, int, int]:
    n, c = random.randint(1, batch), random.randint(1, channels)
    return n, c, random.randint(1, side), random.randint(1, side)


def exact_norm_act(x: Tensor, other: Tensor | None, wb: list[Tensor], act: int) -> Tensor:
    z = F.batch_norm(x, None, None, *wb, training=True)
    z = z if other is None else z + other
    return F.relu(z) if act == 1 else F.gelu(z) if act == 2 else z


def check_norm(pool: bool, add: bool, conv: int = 0) -> None:
    """[conv,] [max-pool,] batch norm, [sum,] activation: forward and every gradient."""
    n, c, h, w = shape_of()
    h, w, n = max(h, 1 + pool), max(w, 1 + pool), n + 4
    act, o = random.choice([0, 1, 2]), conv or c
    images, gradient = bf16(n, c, h, w), bf16(n, o, h // (1 + pool), w // (1 + pool))
    other, filters = bf16(*gradient.shape), bf16(o, c, 3, 3) / 4
    wb = [torch.randn(o), torch.randn(o)]
    x, xo, xf = (leaf(t, torch.float64) for t in (images, other, filters))
    xwb = [leaf(t, torch.float64) for t in wb]
    maps = F.conv2d(x, xf, padding=1) if conv else x
    maps = maps + (maps.bfloat16().double() - maps).detach()
    maps = F.max_pool2d(maps, 2) if pool else maps
    right = exact_norm_act(maps, xo if add else None, xwb, act)
    right.backward(gradient.double())
    y, yo, yf = (in_any_form(t).detach().requires_grad_() for t in (images, other, filters))
    ywb = [leaf(t, torch.float32) for t in wb]
    if conv:
        out, *_ = fused_norm.ConvPoolNormAct.apply(y, yf, *ywb, 1e-5, act)
    elif add:
        out, *_ = fused_norm.AddNormAct.apply(y, yo, *ywb, 1e-5, act)
    else:
        out, *_ = fused_norm.PoolNormAct.apply(y, pool, *ywb, 1e-5, act)
    backward(out, gradient)
    # A value at the kink of ReLU may round to either side: gradients are compared less strictly.
    near(out, right, 2e-2)
    near(y.grad, x.grad, 0.1)
    near(ywb[1].grad, xwb[1].grad, 0.1)
    if add:
        near(yo.grad, xo.grad, 0.1)
    if conv:
        near(yf.grad, xf.grad, 0.1)


def check_activation() -> None:
    images, act = bf16(*shape_of()), random.choice([1, 2])
    gradient = bf16(*images.shape)
    x, y = leaf(images, torch.float64), in_any_form(images).detach().requires_grad_()
    right = F.relu(x) if act == 1 else F.gelu(x)
    right.backward(gradient.double())
    out = fused_norm.Activation.apply(y, act)
    backward(out, gradient)
    near(out, right, 1e-2)
    near(y.grad, x.grad, 1e-2)


def check_conv(compute: Callable[..., Tensor], most: float, pad: int, dtype: torch.dtype) -> None:
    n, c, h, w = shape_of()
    h, w, o = max(h, 5 - 2 * pad), max(w, 5 - 2 * pad), random.randint(1, 40)
    images, filters = bf16(n, c, h, w), bf16(o, c, 3, 3)
    x, xf = leaf(images, torch.float64), leaf(filters, torch.float64)
    right = F.conv2d(x, xf, padding=pad)
    gradient = bf16(*right.shape)
    right.backward(gradient.double())
    y, yf = (in_any_form(t).to(dtype).detach().requires_grad_() for t in (images, filters))
    out = compute(y, yf)
    backward(out, gradient)
    near(out, right, most)
    near(y.grad, x.grad, most)
    near(yf.grad, xf.grad, most)


def check_winograd() -> None:
    pad = random.choice([0, 1, 2])
    compute = lambda y, f: winograd.winograd_conv(y, f, pad)  # noqa: E731
    check_conv(compute, 1e-4, pad, torch.float32)


def check_amx() -> None:
    check_conv(amx_conv.amx_conv, 1e-2, 1, torch.float32)


def check_tiled() -> None:
    """Any kernel size, stride and padding: right, or left to PyTorch."""
    size, stride, padding = random.randint(2, 5), random.randint(1, 3), random.randint(0, 3)
    n, c, side, o = random.randint(2, 9), *(random.randint(1, 9) for _ in "ab"), 4
    images, filters = bf16(n, c, side, side), bf16(o, c, size, size)
    layout = tile_layout(images, filters, stride, padding) if side + 2 * padding >= size else None
    if layout is None:
        return
    x, xf = leaf(images, torch.float64), leaf(filters, torch.float64)
    right = F.conv2d(x, xf, None, stride, padding)
    gradient = bf16(*right.shape)
    right.backward(gradient.double())
    y, yf = (leaf(t, torch.bfloat16) for t in (images, filters))
    out = _TiledConv.apply(y, yf, layout)
    out.backward(gradient.to(out.dtype))
    near(out, right, 1e-2)
    near(y.grad, x.grad, 2e-2)
    near(yf.grad, xf.grad, 2e-2)


def check_empty() -> None:
    """No images: nothing computed, gradients of filters zero, no division by zero."""
    c, o, h, w = (random.randint(1, 20) for _ in range(4))
    for compute in (amx_conv.amx_conv, lambda y, f: winograd.winograd_conv(y, f, 1)):
        images = torch.zeros(0, c, h, w, requires_grad=True)
        filters = torch.randn(o, c, 3, 3, requires_grad=True)
        out = compute(images, filters)
        out.sum().backward()
        assert out.shape == (0, o, h, w)
        assert filters.grad is not None
        assert filters.grad.count_nonzero() == 0


CHECKS: dict[str, Callable[[], None]] = {
    "norm, activation": lambda: check_norm(False, False),
    "max-pool, norm, activation": lambda: check_norm(True, False),
    "norm, sum, activation": lambda: check_norm(False, True),
    "convolution, max-pool, norm, activation": lambda: check_norm(True, False, 24),
    "activation": check_activation,
    "Winograd": check_winograd,
    "AMX": check_amx,
    "tiled": check_tiled,
    "no images": check_empty,
}


def main(count: int, seed: int, flags: list[str]) -> dict[str, Any]:
    """Compute `count` random cases; how many of each check ran. AssertionError at a wrong value."""
    build.FLAGS = [*build.FLAGS, *flags, "-Wno-psabi"]
    if not build.has_amx():
        build._load.cache_clear()
        build.constant.cache_clear()
        build.FLAGS += [f"-I{EMULATED}", "-D__AMX_BF16__", "-D__AVX512BF16__"]
        assert build.has_amx(), build.problem()
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    for module in (amx_conv, fused_norm, winograd):
        module.call = guarded_call
    amx_conv.MAX_WIDTH = 99
    done = dict.fromkeys(CHECKS, 0)
    for case in range(count):
        name = list(CHECKS)[case % len(CHECKS)]
        random.seed(f"{seed} {case}")
        torch.manual_seed(random.randrange(2**32))
        torch.set_num_threads(random.choice([1, 2, 3]))
        try:
            CHECKS[name]()
        except AssertionError as error:
            raise AssertionError(f"{name}, seed {seed}, case {case}: {error}") from error
        done[name] += 1
    return done


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("LEANRES_CACHE", folder)
        print(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
