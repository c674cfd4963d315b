from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from leanres.errors import UserError
from leanres.metrics.gradcam import explain
from leanres.metrics.inference import memory_format, predict_logits
from leanres.models.speednet import SpeedNetConfig
from leanres.runs.fit import fit
from leanres.runs.run import prepare
from leanres.training.device import CPU, CUDA, DEVICES, MPS, XPU, detect, hardware
from leanres.training.loop import steps
from leanres.training.recipe import Recipe


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


@pytest.fixture
def apple_and_intel(monkeypatch) -> None:
    """PyTorch's answers on a machine with one Apple GPU and two of Intel's."""
    answers = {
        "torch.backends.mps.is_available": True,
        "torch.backends.mps.is_macos_or_newer": True,
        "torch.backends.mps.get_name": "Apple M4",
        "torch.mps.driver_allocated_memory": 7 << 20,
        "torch.mps.synchronize": None,
        "torch.xpu.is_available": True,
        "torch.xpu.device_count": 2,
        "torch.xpu.is_bf16_supported": True,
        "torch.xpu.get_device_name": "Intel Arc B580",
        "torch.xpu.max_memory_allocated": 9 << 20,
        "torch.xpu.get_device_properties": SimpleNamespace(has_fp64=True),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(name, lambda *_, _answer=answer, **__: _answer)


@pytest.mark.usefixtures("apple_and_intel")
def test_the_gpus_of_apple_and_intel_are_used_where_they_are_named(monkeypatch):
    assert detect().name == "cpu"  # auto: no training of ours has run on them
    mps, xpu = detect("mps"), detect("xpu:1")
    assert (mps.kind, mps.precision, mps.compiled) == ("mps", "float32", False)
    assert (xpu.kind, xpu.precision, xpu.compiled) == ("xpu", "bfloat16", False)
    assert (mps.augments_on, xpu.augments_on) == ("cpu", "xpu:1")
    assert [d.model_name() for d in (mps, xpu)] == ["Apple M4", "Intel Arc B580"]
    assert [d.peak_memory() >> 20 for d in (mps, xpu)] == [7, 9]
    no_float64 = SimpleNamespace(has_fp64=False)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda _: no_float64)
    assert xpu.augments_on == "cpu"
    with pytest.raises(UserError, match=r"one of auto, cpu, mps, xpu, xpu:0, xpu:1$"):
        detect("xpu:2")


@pytest.mark.usefixtures("apple_and_intel")
def test_bfloat16_is_refused_where_macos_has_none(monkeypatch):
    assert detect("mps", "bfloat16").precision == "bfloat16"
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
    with pytest.raises(UserError, match=r"bfloat16: mps lacks it here; give float32$"):
        detect("mps", "bfloat16")


@pytest.mark.parametrize("kind", [MPS, XPU, CUDA])
def test_the_generator_of_a_gpu_is_put_back(monkeypatch, kind):
    state, module = [torch.tensor([1])], torch.get_device_module(kind.kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device: state[0])
    monkeypatch.setattr(module, "set_rng_state", lambda new, device: state.append(new))
    before = torch.get_rng_state()
    with kind(kind.kind, "float32", compiled=False).seeded(3):
        state[0] = torch.tensor([2])
    assert state[1:] == [torch.tensor([1])]
    assert torch.equal(torch.get_rng_state(), before)


def test_only_on_an_apple_gpu_nothing_is_channels_last():
    formats = {name: memory_format(name) for name in DEVICES}
    assert formats.pop("mps") == torch.contiguous_format
    assert set(formats.values()) == {torch.channels_last}


def test_where_channels_last_fails_no_network_gets_it(monkeypatch, digits, device):
    for room in ("training.loop", "training.batch", "training.device", "training.preflight"):
        monkeypatch.setattr(f"leanres.{room}.memory_format", lambda _: torch.contiguous_format)
    for room in ("inference", "gradcam"):
        monkeypatch.setattr(
            f"leanres.metrics.{room}.memory_format", lambda _: torch.contiguous_format
        )
    shape, seen = SpeedNetConfig((8, 16)), []
    recipe = Recipe(shape, 1, 200, selector=shape, progressive_resizing=((0, 0.5), (0.5, 1)))
    run = prepare(recipe, digits, device)
    for network in run.state.networks:
        assert all(p.is_contiguous() for p in network.parameters())
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    for _ in steps(run.state, run.setup):
        pass
    predict_logits(run.state.model, digits.test.images, normalize=run.setup.normalize, tta="flip")
    few = run.setup.normalize(digits.test.images[:4])
    assert not few.is_contiguous()
    explain(run.state.model, few, "stages.1", digits.test.labels[:4])
    assert len(seen) > 20
    assert all(seen)


@pytest.mark.usefixtures("apple_and_intel")
def test_a_run_on_an_apple_gpu_is_that_of_a_cpu(monkeypatch, digits, device, tmp_path):
    """A stand-in: it does what `MPS` says, with PyTorch's functions for it, but on the CPU."""
    calls = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: calls.append(state))
    recipe = Recipe(SpeedNetConfig((8, 16)), 2, 200, augment=(("crop", {"padding": 2}),), val=200)
    stand_in = MPS("cpu", "float32", compiled=False)
    results = [fit(tmp_path / d.kind, recipe, digits, d) for d in (device, stand_in)]
    assert calls
    assert results[0]["accuracy"] == pytest.approx(results[1]["accuracy"], abs=0.02)
    info = json.loads((tmp_path / "mps" / "run.json").read_text())
    assert info["hardware"]["gpu"] == "Apple M4"


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
        "import resource, torch\n"
        "from leanres.training.allocator import keep_freed_memory\n"
        "def churn(): [torch.ones(16 << 20).sum() for _ in range(3)]\n"
        "for kept in (False, True):\n"
        "    if kept: keep_freed_memory(0.5)\n"
        "    churn()\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    churn()\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    plain, kept = map(int, subprocess.check_output([sys.executable, "-c", code]).split())
    assert plain > 40_000  # three tensors of 16,384 pages
    assert kept < plain / 100
