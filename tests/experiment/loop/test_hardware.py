"""The number format that a run takes where its configuration leaves it open."""

import pytest
import torch
from vision_language.config import build_config

from randlora_core.experiment import hardware

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx512_f": True}, "fp32"),  # 512 bits wide, but bf16 only by emulation
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"architecture": "aarch64", "bf16": True}, "bf16"),
    ],
)
def test_auto_takes_bf16_only_where_the_processor_multiplies_it(monkeypatch, flags, precision):
    monkeypatch.setattr(hardware, "_flags", lambda: flags)
    assert hardware.pick_precision("auto", CPU) == precision
    assert build_config(["device=cpu"]).training.precision == precision
    assert build_config(["device=cpu", "training.precision=fp32"]).training.precision == "fp32"
    assert build_config(["device=cpu", "training.precision=bf16"]).training.precision == "bf16"


@pytest.mark.parametrize("supported", [True, False])
def test_auto_asks_the_gpu(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert hardware.pick_precision("auto", torch.device("cuda")) == ("bf16" if supported else "fp32")


def test_this_processor_tells_its_features():
    flags = hardware._flags()
    assert flags["avx512_bf16"] == torch.cpu._is_avx512_bf16_supported()


def test_images_are_prepared_beside_a_gpu_and_not_beside_a_cpu(monkeypatch):
    for cores, expected in ((4, 4), (64, 8), (1, 1)):
        monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert hardware.pick_workers(None, torch.device("cuda")) == expected
    assert hardware.pick_workers(None, CPU) == 0 and hardware.pick_workers(3, CPU) == 3
    with pytest.raises(ValueError, match="workers=-1"):
        build_config(["workers=-1"])
