import os

import pytest
import torch

from randlora_core.experiment.loop import measuring
from randlora_core.experiment.loop.measuring import measured

CPU = torch.device("cpu")
MEGABYTES = 1 << 20


def allocate(megabytes):
    """Touches so much memory and gives it back."""
    held = torch.ones(megabytes * MEGABYTES // 4)
    del held


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the high-water mark cannot be reset")
def test_the_peak_is_of_the_stretch_and_not_of_what_came_before():
    allocate(200)
    with measured(CPU) as small:
        torch.ones(4)
    with measured(CPU) as large:
        allocate(150)
    assert small.counter.startswith("VmHWM")
    assert large.peak_bytes - large.baseline_bytes > 120 * MEGABYTES
    assert small.peak_bytes - small.baseline_bytes < 100 * MEGABYTES
    assert large.memory() == {
        "peak_bytes": large.peak_bytes,
        "baseline_bytes": large.baseline_bytes,
        "counter": large.counter,
    }


def test_where_the_mark_cannot_be_reset_the_counter_says_since_when_it_counts(monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError

    allocate(200)
    with monkeypatch.context() as patch:
        patch.setattr(measuring.Path, "write_text", refuse)
        with measured(CPU) as stretch:
            torch.ones(4)
    assert stretch.counter == "ru_maxrss (resident set since the process began)"
    assert stretch.peak_bytes >= 200 * MEGABYTES


def test_seconds_are_those_between_the_clocks_two_readings(monkeypatch):
    readings = iter([10.0, 12.5])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(readings))
    with measured(CPU) as stretch:
        pass
    assert stretch.seconds == 2.5


def test_a_measurement_is_made_also_of_what_fails():
    with pytest.raises(RuntimeError), measured(CPU) as measurement:
        raise RuntimeError
    assert measurement.seconds > 0 and measurement.peak_bytes > 0


def test_a_gpu_is_drained_at_both_ends_and_has_a_counter_of_its_own(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("drained"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9)
    with measured(torch.device("cuda")) as stretch:
        done.append("body")
    assert done == ["drained", "reset", "body", "drained"]
    assert (stretch.peak_bytes, stretch.baseline_bytes) == (9, 5)
    assert stretch.counter == "torch.cuda.max_memory_allocated"
