from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from leanres.errors import UserError
from leanres.training.device import (
    CPU,
    CUDA,
    Stopwatch,
    detect,
    hardware,
    matrix_rate,
    memory_rate,
)


def test_auto_takes_bfloat16_only_where_the_hardware_multiplies_it():
    device = detect("cpu")
    assert device.precision == ("bfloat16" if CPU.multiplies_bfloat16() else "float32")
    assert not device.compiled


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("avx512f avx512_vnni", False)],
)
def test_the_kernels_flags_decide(monkeypatch, flags, fast):
    text = f"processor : 0\nmodel name : A CPU: 2 GHz\nflags : fpu {flags} sse\n"
    monkeypatch.setattr("pathlib.Path.read_text", lambda _: text)
    assert CPU.multiplies_bfloat16() is fast
    assert detect("cpu").precision == ("bfloat16" if fast else "float32")
    assert hardware(detect("cpu"))["cpu"] == "A CPU: 2 GHz"


def test_what_is_asked_for_is_kept():
    device = detect("cpu", "bfloat16", compiled=True)
    assert (device.name, device.precision, device.compiled) == ("cpu", "bfloat16", True)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu", "cpu,1", "hpu", "meta", "mps", ""])
def test_a_device_that_is_not_there_is_one_line(device):
    with pytest.raises(UserError, match="is not usable here") as caught:
        detect(device)
    assert "\n" not in str(caught.value)


def test_the_cards_that_are_there_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda", "cuda:0", "cuda:1"):
        assert detect(device, "float32", compiled=False).name == device
    with pytest.raises(UserError, match=r"give one of auto, cpu, cuda, cuda:0, cuda:1$"):
        detect("cuda:2")


def test_an_unknown_precision_lists_the_known_ones():
    with pytest.raises(UserError, match="auto, float32, bfloat16"):
        detect("cpu", "fp8")


def test_hardware_says_what_a_claim_needs():
    facts = hardware(detect("cpu"))
    assert facts["cpu"]
    assert facts["torch"] == torch.__version__
    assert facts["precision"] in ("float32", "bfloat16")


def test_a_gpus_kernels_are_tried_out_and_a_cpu_is_left_with_its_own(monkeypatch):
    monkeypatch.setattr("leanres.training.device.keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    precision, kept = torch.get_float32_matmul_precision(), []
    try:
        CPU("cpu", "float32", compiled=False).tune()
        assert (kept, torch.backends.cudnn.benchmark) == ([True], False)
        assert torch.get_float32_matmul_precision() == precision
        CUDA("cuda:0", "bfloat16", compiled=True).tune()
        assert (kept, torch.backends.cudnn.benchmark) == ([True], True)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_are_coarse_for_the_optimizer_of_a_bfloat16_training_alone(precision):
    before = torch.get_float32_matmul_precision()
    with CPU("cpu", precision, compiled=False).low_precision_matmul():
        inside = torch.get_float32_matmul_precision()
    assert inside == ("medium" if precision == "bfloat16" else before)
    assert torch.get_float32_matmul_precision() == before


def test_the_allocator_keeps_freed_memory_and_page_faults_stop():
    """A process of its own: the setting is for good."""
    code = (
        "import resource, sys, torch\n"
        "from leanres.training.device import keep_freed_memory\n"
        "if sys.argv[1] == 'kept': keep_freed_memory(0.5)\n"
        "def churn(): [torch.ones(16 << 20).sum() for _ in range(3)]\n"
        "churn()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "churn()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", code, mode]))
        for mode in ("plain", "kept")
    }
    assert faults["plain"] > 40_000  # three tensors of 16,384 pages
    assert faults["kept"] < faults["plain"] / 100


def test_a_stopwatch_adds_up_the_seconds_of_a_name(device, monkeypatch):
    times = iter([0.0, 1.0, 1.5, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    watch = Stopwatch(device)
    assert [watch(name) for name in ("forward", "backward", "forward")] == [1.0, 0.5, 2.5]
    assert watch.parts == {"forward": 1.0 + 2.5, "backward": 0.5}


@pytest.mark.parametrize(("seconds_of_256", "n"), [(1e-6, 4096), (0.07, 512), (0.5, 256)])
def test_the_matrix_product_doubles_its_size_until_it_takes_a_fifth_of_a_second(
    device, monkeypatch, seconds_of_256, n
):
    def timed(device, product, times):
        return seconds_of_256 * (len(product.args[0]) / 256) ** 3

    monkeypatch.setattr("leanres.training.device.PRODUCT_S", 0.2)
    monkeypatch.setattr("leanres.training.device.least_seconds", timed)
    assert matrix_rate(device) == (pytest.approx(2 * 256**3 / seconds_of_256 / 1e12), n)


def test_a_matrix_product_runs_at_a_plausible_rate(device):
    rate, n = matrix_rate(device)
    assert n == 256
    assert 1e-5 < rate < 1e4


def test_memory_is_copied_at_a_plausible_rate(device):
    assert 1e8 < memory_rate(device, mib=64) < 1e13
