"""`leanres bench step`."""

from __future__ import annotations

import json

TABLES = ("parts", "operators")
WORDS = [
    *(
        "bench",
        "step",
        "--data",
        "digits",
        "--size",
        "16",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--steps",
        "1",
    ),
    *("--set", "model={family='speednet', widths=[8, 16]}"),
    *("--set", "batch_size=350", "--set", "precision=float32"),
]


def test_a_step_is_printed_in_parts_beside_the_machines_rates(leanres, keep_threads, tmp_path):
    out = tmp_path / "deep" / "step.json"
    done = leanres(*WORDS, "--out", out)
    assert done.code == 0, done.err
    r = json.loads(out.read_text())
    lines = done.out.splitlines()
    assert lines[0] == "custom speednet at 16 px, batch 350, float32"
    assert lines[1].endswith(f", 1 thread; kernels: {r['hardware']['kernels']}")
    assert lines[2].startswith(f"{r['images_per_s']:,.0f} images/s, ")
    rows = [line.rsplit(maxsplit=3)[0] for line in lines if line.endswith(" %")]
    parts, operators = (sorted(r[key], key=r[key].get, reverse=True) for key in TABLES)
    assert rows == parts + operators
    assert f"of what a {r['matrix_size']}^3 product reaches ({r['matrix_tflops']:.3g})" in done.out
    assert f"of the {r['memory_gb_per_s']:.1f} GB/s of a copy" in done.out


def test_json_is_the_report_alone_and_scale_shrinks_the_images(leanres, keep_threads):
    done = leanres(*WORDS, "--scale", "0.5", "--json")
    report = json.loads(done.out)
    assert (report["side"], report["batch_size"]) == (8, 350)
    assert report["hardware"]["precision"] == "float32"
