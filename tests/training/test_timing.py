from __future__ import annotations

import time

import pytest

from leanres.training.timing import Stopwatch, matrix_rate, memory_rate


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

    monkeypatch.setattr("leanres.training.timing.PRODUCT_S", 0.2)
    monkeypatch.setattr("leanres.training.timing.least_seconds", timed)
    assert matrix_rate(device) == (pytest.approx(2 * 256**3 / seconds_of_256 / 1e12), n)


def test_a_matrix_product_runs_at_a_plausible_rate(device):
    rate, n = matrix_rate(device)
    assert n == 256
    assert 1e-5 < rate < 1e4


def test_memory_is_copied_at_a_plausible_rate(device):
    assert 1e8 < memory_rate(device, mib=64) < 1e13
