"""The number format that a run takes where its configuration leaves it open."""

import pytest
import torch

from randlora_core.experiment.loop import hardware
from randlora_core.experiment.loop.fit import compute

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
    assert hardware.pick_precision("fp32", CPU) == "fp32" and hardware.pick_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize("supported", [True, False])
def test_auto_asks_the_gpu(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert hardware.pick_precision("auto", torch.device("cuda")) == ("bf16" if supported else "fp32")


def test_this_processor_tells_its_features():
    flags = hardware._flags()
    assert flags["avx512_bf16"] == torch.cpu._is_avx512_bf16_supported()


def test_examples_are_prepared_beside_a_gpu_and_not_beside_a_cpu(monkeypatch):
    for cores, expected in ((4, 4), (64, 8), (1, 1)):
        monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert hardware.pick_workers(None, torch.device("cuda")) == expected
    assert hardware.pick_workers(None, CPU) == 0 and hardware.pick_workers(3, CPU) == 3


def test_auto_takes_an_accelerator_where_there_is_one(monkeypatch):
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert hardware.pick_device("auto").type == expected and hardware.pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device='cuda', but torch sees no GPU; accepted here: auto, cpu"):
        hardware.pick_device("cuda")


def test_fp32_means_fp32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    with compute(CPU, "fp32"):
        pass  # the backward pass is run outside
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_convolutions_on_a_gpu_are_as_exact_as_on_the_processor():
    image, filters = torch.randn(8, 3, 98, 98), torch.randn(384, 3, 14, 14)
    expected = torch.nn.functional.conv2d(image.double(), filters.double(), stride=14)
    with compute(torch.device("cuda"), "fp32"):
        found = torch.nn.functional.conv2d(image.cuda(), filters.cuda(), stride=14).cpu()
    assert (found - expected).norm() < 1e-6 * expected.norm()
