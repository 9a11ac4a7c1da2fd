"""The Triton kernel through Triton's interpreter, which has to be chosen before Triton is imported: in a child."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from randlora_core import ops

CHECK = """
import torch
from randlora_core.adapters.bases import pack_signs
from randlora_core.ops.factors import delta
from randlora_core.ops.triton_kernels import b_times_m

torch.manual_seed(0)
for larger, smaller, rank in ((70, 40, 3), (64, 64, 8), (130, 66, 7)):
    n = -(-smaller // rank)
    lambda_, gamma = torch.randn(rank, n), torch.randn(n, smaller)
    a = torch.randn(rank, smaller + 5).bfloat16()[:, :smaller]
    b = torch.randn(larger, n + 2, rank).bfloat16()[:, :n]
    expected = delta(lambda_, gamma, a, b, 0.3)
    torch.testing.assert_close(b_times_m(lambda_, gamma, a, b, 0.3, half=False), expected, rtol=1e-4, atol=1e-4)
    signs = torch.randint(-1, 2, (larger, n, rank), dtype=torch.int8)
    a = torch.randint(-1, 2, (rank, smaller), dtype=torch.int8)
    expected = delta(lambda_, gamma, a, signs, 0.3)
    for stored, packed in ((signs, False), (pack_signs(signs), True)):
        found = b_times_m(lambda_, gamma, a, stored, 0.3, half=False, packed=packed)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
print("checked")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_kernel_equals_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "checked"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("half", [False, True])
def test_kernel_on_a_gpu(half):
    from randlora_core.ops.triton_kernels import b_times_m

    lambda_, gamma = torch.randn(7, 10, device="cuda"), torch.randn(10, 66, device="cuda")
    a, b = torch.randn(7, 66, device="cuda").bfloat16(), torch.randn(130, 10, 7, device="cuda").bfloat16()
    expected = ops.delta(lambda_.double(), gamma.double(), a, b, 0.3).float()
    difference = b_times_m(lambda_, gamma, a, b, 0.3, half=half) - expected
    assert difference.norm() < (0.005 if half else 1e-5) * expected.norm()


def test_without_triton_it_cannot_be_turned_on(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        ops.use_triton(True)
    ops.use_triton(False)
