import torch
from randlora_core.experiment.measuring import measured
from randlora_core.experiment.provenance import provenance


def test_the_peak_is_of_the_stretch_and_not_of_what_came_before():
    megabytes = 1 << 20
    before = torch.ones(200 * megabytes // 4)
    del before
    with measured(torch.device("cpu")) as small:
        torch.ones(4)
    with measured(torch.device("cpu")) as large:
        held = torch.ones(150 * megabytes // 4)
        del held
    if small.counter.startswith("VmHWM"):
        assert large.peak_bytes - large.baseline_bytes > 120 * megabytes
        assert small.peak_bytes - small.baseline_bytes < 100 * megabytes
    assert large.peak_bytes >= 150 * megabytes
    assert set(large.memory()) == {"peak_bytes", "baseline_bytes", "counter"}


def test_a_measurement_is_made_also_of_what_fails():
    measurement = None
    try:
        with measured(torch.device("cpu")) as measurement:
            raise RuntimeError
    except RuntimeError:
        pass
    assert measurement.seconds > 0 and measurement.peak_bytes > 0


def test_provenance_names_versions_and_hardware():
    facts = provenance()
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["hardware"]["threads"] == torch.get_num_threads()
    assert (facts["commit"] is None) == (facts["dirty"] is None)
    assert facts["commit"] is None or len(facts["commit"]) == 40
