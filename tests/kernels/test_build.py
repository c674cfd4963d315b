"""Compiled kernels: where they come from, and what a user is told where there are none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from leanres.kernels import accelerate, build
from leanres.kernels.build import SOURCES, library, problem, simd
from leanres.kernels.winograd import winograd_convolve

HERE = pytest.mark.skipif(library() is None, reason="no own kernels here: PyTorch's are used")


def words(precision: str = "float32") -> str:
    return accelerate(nn.Identity(), "cpu", precision)[1]


def script(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


@HERE
@pytest.mark.parametrize(("columns", "name"), [(32, "AVX-512"), (16, "AVX2")])
@pytest.mark.parametrize("amx", [False, True])
def test_own_kernels_are_named_by_their_instructions(columns, name, amx, monkeypatch):
    constants = {"columns_at_once": columns, "has_amx": amx}
    monkeypatch.setattr(build, "constant", constants.get)
    assert words("float32") == f"own, {name}"
    assert words("bfloat16") == ("own, AMX" if amx else f"own, {name}")


@HERE
def test_this_machine_names_instructions_that_it_has():
    flags = Path("/proc/cpuinfo").read_text()
    for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")):
        if flag in flags:
            assert words() == f"own, {name}"
            break


def test_compiled_networks_are_torch_compiles():
    for device, precision in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16")):
        assert accelerate(nn.Identity(), device, precision, True)[1] == "torch.compile"
    assert accelerate(nn.Identity(), "cuda", "float32")[1] == "PyTorch's"


@pytest.mark.parametrize("system", ["win32", "darwin", "freebsd14"])
def test_another_system_has_pytorchs(system, reload_kernels):
    reload_kernels.setattr("sys.platform", system)
    assert words() == "PyTorch's: own kernels are for Linux on x86-64"


def test_another_processor_has_pytorchs(reload_kernels):
    reload_kernels.setattr("platform.machine", lambda: "aarch64")
    assert words("bfloat16") == "PyTorch's: own kernels are for Linux on x86-64"


def test_a_processor_without_avx2_has_pytorchs(reload_kernels, tmp_path):
    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path))
    reload_kernels.setattr(build, "FLAGS", [*build.FLAGS, "-march=x86-64"])
    assert words() == "PyTorch's: this CPU has no AVX2"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_a_compiler_pytorch_computes_the_same(precision, reload_kernels):
    reload_kernels.setattr("shutil.which", lambda name: None)
    model, images = nn.Conv2d(16, 16, 3, padding=1), torch.randn(4, 16, 16, 16)
    forward, kernels = accelerate(model, "cpu", precision)
    assert kernels == ("PyTorch's: no C compiler found, install gcc for about twice the speed")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        assert forward(images).equal(model(images))


def test_cc_compiles_where_there_is_no_gcc(reload_kernels, tmp_path):
    failing = script(tmp_path / "cc", "exit 1")
    reload_kernels.setattr("shutil.which", {"cc": failing}.get)
    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    assert words() == f"PyTorch's: {failing} could not build them (exit code 1)"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            "echo 'In file included from a.c:' >&2; echo 'a.c:3: error: no' >&2; exit 1",
            "a.c:3: error: no",
        ),
        ("echo 'out of disk' >&2; exit 1", "out of disk"),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "exit code -9"),
        ("exit 0", "it wrote no library"),
        ("exec sleep 30", "it took more than 0.2 s"),
    ],
    ids=["an error", "a line", "no words", "killed", "no library", "too long"],
)
def test_a_compiler_that_fails_is_named_with_its_reason(lines, reason, reload_kernels, tmp_path):
    compiler = script(tmp_path / "gcc", lines)
    reload_kernels.setattr("shutil.which", lambda name: compiler)
    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    reload_kernels.setattr(build, "TIMEOUT_S", 0.2 if "sleep" in lines else 60)
    assert words() == f"PyTorch's: {compiler} could not build them ({reason})"
    assert not list((tmp_path / "cache").iterdir())


def test_a_compiler_that_cannot_be_started_is_named(reload_kernels, tmp_path):
    compiler = tmp_path / "gcc"
    compiler.write_text("no program")
    reload_kernels.setattr("shutil.which", lambda name: str(compiler))
    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    assert words().startswith(f"PyTorch's: {compiler} could not build them (")


def test_a_library_that_does_not_load_is_reported(reload_kernels, tmp_path):
    output = 'while [ "$1" != -o ]; do shift; done; echo text > "$2"'
    compiler = script(tmp_path / "gcc", output)
    reload_kernels.setattr("shutil.which", lambda name: compiler)
    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    assert words().startswith("PyTorch's: cannot load them (")
    assert "set LEANRES_CACHE to another folder" in words()


@pytest.mark.parametrize(
    "cache", ["a file/cache", "a file", "~nobody-of-this-name/cache", "n" * 300]
)
def test_a_cache_that_cannot_be_written_is_one_line(cache, reload_kernels, tmp_path):
    (tmp_path / "a file").write_text("")
    folder = cache if cache.startswith("~") else str(tmp_path / cache)
    reload_kernels.setenv("LEANRES_CACHE", folder)
    assert words().startswith("PyTorch's: cache not writable (")
    assert words().endswith("), set LEANRES_CACHE to another folder")
    assert "\n" not in words()


def test_a_read_only_cache_is_one_line(reload_kernels, tmp_path):
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path))
    reload_kernels.setattr("tempfile.TemporaryDirectory", refuse)  # root may write anywhere
    assert words().startswith("PyTorch's: cache not writable (Permission denied")


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "a byte less": lambda content: content[:-1],
    "changed": lambda content: content[:9] + bytes([content[9] ^ 255]) + content[10:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_library_in_the_cache_is_built_again(damage, reload_kernels, tmp_path):
    builds = []

    def compile_(compiler: str, folder: Path) -> Path:
        builds.append(compiler)
        (folder / "kernels.so").write_bytes(b"compiled code" * 9)
        return folder / "kernels.so"

    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path))
    reload_kernels.setattr(build, "_compile", compile_)
    cached = build._cached_library("gcc")
    intact = cached.read_bytes()
    assert build._cached_library("gcc") == cached
    assert len(builds) == 1  # an intact one is used again
    cached.write_bytes(damage(intact))
    assert build._cached_library("gcc") == cached
    assert len(builds) == 2
    assert cached.read_bytes() == intact
    assert list(tmp_path.iterdir()) == [cached]


@HERE
def test_a_truncated_library_is_not_loaded(tmp_path):
    # In a process of its own, which loading it would kill: its missing pages raise SIGBUS.
    compiler = shutil.which("gcc") or shutil.which("cc")
    cached = build._cached_library(str(compiler))
    content = cached.read_bytes()
    (tmp_path / cached.name).write_bytes(content[: len(content) // 2])
    code = "from leanres.kernels.build import simd; print(simd())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LEANRES_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == simd(), done
    assert len((tmp_path / cached.name).read_bytes()) == len(content)


@HERE
def test_a_cached_library_is_loaded_without_a_compiler_run(reload_kernels, monkeypatch):
    assert library() is not None
    build._load.cache_clear()
    reload_kernels.setattr("subprocess.run", None)
    assert library() is not None
    assert problem() == ""


def test_each_source_compiler_and_processor_has_a_library_of_its_own(reload_kernels, tmp_path):
    def compile_(compiler: str, folder: Path) -> Path:
        (folder / "kernels.so").write_bytes(b"compiled code")
        return folder / "kernels.so"

    reload_kernels.setenv("LEANRES_CACHE", str(tmp_path / "cache"))
    reload_kernels.setattr(build, "_compile", compile_)
    found = {build._cached_library("gcc"), build._cached_library("cc")}
    changed = tmp_path / "fused.c"
    changed.write_text(SOURCES[0].read_text() + "\n")
    reload_kernels.setattr(build, "SOURCES", (changed, *SOURCES[1:]))
    found.add(build._cached_library("gcc"))
    reload_kernels.setattr(build, "_cpu", lambda: "another processor")
    found.add(build._cached_library("gcc"))
    assert len(found) == len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_the_kernels_import_and_train_on_other_systems(system):
    code = f"""
import sys, torch, filelock, platformdirs
sys.platform = {system!r}
for name in ("fcntl", "resource", "pwd"):
    sys.modules[name] = None
import pathlib
def unreadable(self, *_): raise FileNotFoundError(str(self))
pathlib.Path.read_text = unreadable
from leanres.kernels import accelerate
from leanres.models.resnet import ResNetConfig
model = ResNetConfig((8, 16), (1, 1)).build()
for precision in ("float32", "bfloat16"):
    forward, kernels = accelerate(model, "cpu", precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        forward(torch.randn(2, 3, 16, 16)).sum().backward()
    print(kernels)
"""
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == 2 * ["PyTorch's: own kernels are for Linux on x86-64"], done


def test_what_accelerate_returns_without_and_with_kernels(reload_kernels):
    model = nn.Conv2d(16, 16, 3, padding=1)
    if library() is not None:
        assert accelerate(model, "cpu", "float32")[0].convolve is winograd_convolve
    for function in (build._load, build.constant):
        function.cache_clear()
    reload_kernels.setattr("shutil.which", lambda name: None)
    assert accelerate(model, "cpu", "float32")[0] is model
