"""`leanres` itself: help pages, exit codes, mistakes."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from leanres.cli import COMMANDS, app, main
from leanres.runs.stop import Stopped

ROOT = Path(__file__).resolve().parents[2]
GROUP = typer.main.get_command(app)


def pages(command=GROUP, words=()) -> dict[str, object]:
    """The words of every help page -> its command: "" is the whole command line's."""
    found = {" ".join(words): command}
    for name, child in getattr(command, "commands", {}).items():
        found |= pages(child, (*words, name))
    return found


PAGES = pages()
EXAMPLES = {
    name: shlex.split(line.partition("Example: leanres ")[2])
    for name, command in PAGES.items()
    for line in command.help.splitlines()
    if line.startswith("Example: ")
}
# What makes the example take a second here; the other commands' own tests run them in full.
QUICKER = {
    "data": [],
    "models": [],
    "summary": [],
    "recipes": [],
    "find-lr": ["--lr-min", "1e-3", "--steps", "32"],
    "train": ["--epochs", "1"],
    "resume": ["--epochs", "7", "--no-report"],
    "evaluate": [],
    "report": [],
    "runs": [],
    "runs diff": [],
    "export": [],
    "verify": [],
    "predict": [],
}
TRAINS = ("find-lr", "train")


@pytest.mark.parametrize("words", [(), ("bench",), ("--help",), ("-h",), ("bench", "--help")])
def test_a_group_without_a_command_prints_its_help_and_exits_with_0(leanres, words):
    code, out, err = leanres(*words)
    assert (code, err) == (0, "")
    name = " ".join(["leanres", *words[: words != ("--help",) and words != ("-h",)]])
    assert out.startswith("Usage: ")
    assert "COMMAND [ARGS]..." in out
    children = GROUP.commands["bench"].commands if "bench" in name else GROUP.commands
    at = [out.index(f"\n  {child} ") for child in children]
    assert len(at) == len(children)


def test_help_is_quick_and_lists_the_commands_in_the_order_of_use():
    best = 9.0
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "leanres", "--help"], capture_output=True, text=True, check=True
        )
        after = os.times()
        used = after.children_user + after.children_system
        best = min(best, used - before.children_user - before.children_system)
    listed = re.findall(r"^(?:(\S[^:]*):$|  ([a-z][a-z-]*)  )", done.stdout, re.MULTILINE)
    headings = [heading for heading, _ in listed if heading and heading != "Options"]
    assert headings == [*COMMANDS]
    named = [name for _, name in listed if name]
    assert named == [
        *("data", "models", "summary"),
        *("recipes", "find-lr", "train", "resume"),
        *("evaluate", "report", "runs"),
        *("export", "verify", "predict"),
        *("compare", "search", "campaign", "bench"),
    ]
    assert set(named) == set(GROUP.commands)
    assert best < 0.6  # seconds of a CPU; 0.15 is usual, torch alone would take over 1


@pytest.mark.parametrize("name", PAGES)
def test_every_help_page_fits_80_columns_and_has_its_options_under_headings(leanres, name):
    code, out, _ = leanres(*name.split(), "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert not re.search(r"--no-\w+ ?/|/ --no-|<\w+|\.{4}", out)
    command = PAGES[name]
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"
        is_option = parameter.param_type_name == "option"
        assert (f"  {parameter.opts[0]}" if is_option else "Arguments:") in out
    if not hasattr(command, "commands"):
        assert out.count("Example: leanres ") == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_a_command_that_exists_with_its_options(name):
    command, words = GROUP, [word for word in EXAMPLES[name] if word != ">"]
    for child in name.split():
        assert words[0] == child
        command, words = command.commands[child], words[1:]
    if "mine.toml" in words:
        words.remove("mine.toml")
    command.make_context(name, words)  # raises what the parser refuses


def test_every_command_has_an_example():
    assert {name for name, c in PAGES.items() if not hasattr(c, "commands")} <= EXAMPLES.keys()


@pytest.mark.parametrize("name", QUICKER)
def test_an_example_runs(leanres, run_folder, pictures, tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    words = EXAMPLES[name]
    if name not in TRAINS:
        for run in ("first", "second"):
            shutil.copytree(run_folder, tmp_path / "runs" / run)
        shutil.copytree(pictures, tmp_path / "photos")
    if name == "verify":
        assert leanres("export", "runs/first", "first.onnx").code == 0
    if ">" in words:
        words = words[: words.index(">")]
    network = [word for word in tiny if name == "train" or word != "--no-report"]
    done = leanres(*words, *QUICKER[name], *(network if name in TRAINS else []))
    assert done.code == 0, done.err
    assert done.out


def test_the_version_is_printed(leanres):
    from leanres import __version__

    assert leanres("--version")[:2] == (0, f"leanres {__version__}\n")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["summary", "resnet21"], ["no model 'resnet21'", "did you mean 'resnet"]),
        (["summary", "resnet20", "--budget", "many"], ["'many' is not a count"]),
        (["train", "sped"], ["no recipe 'sped'", "did you mean 'speed'"]),
        (["train", "--set", "lrr=1"], ["no setting 'lrr'", "did you mean 'lr'"]),
        (["train", "--set", "lr"], ["give key=value"]),
        (["train", "--set", "lr=-1"], ["lr = -1"]),
        (["train", "--set", "model=resnet21"], ["did you mean 'resnet"]),
        (["train", "--measure", "train"], ["--measure train: give test or val"]),
        (["train", "--tta", "flop"], ["did you mean 'flip'"]),
        (["train", "--device", "gpu"], ["'gpu' is not usable here"]),
        (["train", "--data", "imagenet"], ["no data source 'imagenet'"]),
        (["train", "--epochs", "x"], ["--epochs x: give a whole number"]),
        (["bench", "step", "--steps", "0"], ["--steps 0: give a whole number of 1 or"]),
        (["train", "mine.toml"], ["mine.toml cannot be read: No such file"]),
        (["resume", "nowhere"], ["is not a run folder"]),
        (["evaluate", "nowhere"], ["nowhere does not exist"]),
        (["predict", "nowhere", "x.png"], ["nowhere does not exist"]),
        (["trian"], ["trian"]),
        (["train", "--lr", "1"], ["--lr"]),
        (
            ["train", "--set", "epochs=3", "--epochs", "2"],
            ["epochs = 3 and epochs = 2 were both given"],
        ),
        (["train", "--set", "lr=0.1", "--lr-max", "auto"], ["lr = 0.1", "--lr-max auto"]),
        (
            ["train", "--threads", "1000000"],
            ["--threads 1000000: give", "from 0 to 1024"],
        ),
        (["campaign", "plan.toml", "--threads", "1000000"], ["--threads", "1024"]),
        (["data", "nowhere/at/all"], ["nowhere/at/all", "give a folder"]),
        (["summary"], ["NETWORK"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(leanres, mistake, words, parts):
    mistake(leanres(*words), *parts)


def test_a_place_that_cannot_be_written_is_one_line(leanres, mistake, tiny):
    outcome = leanres("train", "--data", "digits", "--out", "/dev/null/x", *tiny)
    mistake(outcome, "/dev/null/x")


def test_an_error_of_our_own_has_a_traceback_and_exit_code_1():
    code = (
        "from leanres import cli\nimport leanres.runs.ledger as ledger\n"
        "ledger.read_ledger = None\ncli.main(['runs'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("interrupt", "code", "by"),
    [
        (KeyboardInterrupt(), 130, "Ctrl-C"),
        (Stopped(2), 130, "Ctrl-C"),
        (Stopped(15), 143, "SIGTERM"),
    ],
)
def test_an_interrupt_is_one_line_and_the_signals_exit_code(
    leanres, monkeypatch, interrupt, code, by
):
    def interrupted(*_, **__):
        raise interrupt

    monkeypatch.setattr("leanres.data.sources.load_data", interrupted)
    assert leanres("data", "digits") == (code, "", f"leanres: stopped by {by}\n")


def test_a_system_error_that_names_no_file_is_our_own(monkeypatch):
    def fail(*_, **__):
        raise OSError("no more handles")

    monkeypatch.setattr("leanres.data.sources.load_data", fail)
    with pytest.raises(OSError, match="no more handles"):
        main(["data", "digits"])


FULL = "leanres: cannot read or write the output: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a shell and devices of Linux")
@pytest.mark.parametrize(
    ("words", "code", "err"),
    [
        ("{} runs --json | true", 141, ""),  # click writes it
        ("{} runs | true", 141, ""),  # rich
        ("{} runs --help | true", 141, ""),
        ("{} runs >&-", 0, ""),
        ("{} runs >&- 2>&-", 0, ""),
        ("{} runs diff a b >&- 2>&-", 2, ""),
        ("{} runs --json > /dev/full", 2, FULL),
        ("{} runs > /dev/full", 2, FULL),
        ("{} --help > /dev/full", 2, FULL),
    ],
)
def test_output_that_nobody_takes_is_no_traceback(words, code, err):
    """By a command that prints a table and does not import torch: results/ of the repository."""
    line = words.format(f"{sys.executable} -m leanres") + "; exit ${PIPESTATUS[0]}"
    shell = ["bash", "-c", line]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", err)


def test_an_encoding_that_lacks_a_character_prints_a_question_mark(run_folder, monkeypatch):
    def printed(encoding: str) -> bytes:
        written = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, write_through=True))
            with pytest.raises(SystemExit) as end:
                main(["report", str(run_folder), "--text"])
        assert not end.value.code
        return written.getvalue()

    latin, utf8 = printed("latin-1"), printed("utf-8")
    assert latin == utf8.decode().encode("latin-1", "replace")
    assert b"?" in latin


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=["Python", "CPU", "GPU", "C++"],
)
def test_memory_that_runs_out_is_one_line(leanres, mistake, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("leanres.data.sources.load_data", fail)
    mistake(leanres("data", "digits"), "out of memory: give a smaller network, smaller batches")


def test_other_errors_of_torch_are_our_own(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("leanres.data.sources.load_data", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["data", "digits"])


def test_an_unknown_command_is_answered_with_the_nearest_or_all(leanres, mistake):
    mistake(leanres("trian"), "no command 'trian'; did you mean 'train'? there are: bench, ")
    mistake(leanres("nocmd"), "no command 'nocmd'; there are: bench, campaign, compare, data")
    mistake(leanres("bench", "stp"), "no command 'stp'; did you mean 'step'?")
