"""Contractions of frozen matrices: gradient, and what they keep."""

import pytest
import torch

from randlora_core import ops

EQUATIONS = {"kpq,k->pq": (4,), "kpq,qp->kq": (5, 3), "kpq,kq->pq": (4, 5)}  # NoLA's, and RandLoRA-a's two


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_gradient_and_what_is_kept(equation, again):
    coefficients = torch.randn(EQUATIONS[equation], dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(4, 3, 7).bfloat16()[:, :, :5]
    remake = matrices.clone if again else None
    expected = torch.einsum(equation, matrices.double(), coefficients)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = ops.contract(equation, matrices, coefficients, remake)
    torch.testing.assert_close(found, expected)
    assert [tensor.data_ptr() for tensor in kept] == ([] if again else [matrices.data_ptr()])
    assert torch.autograd.gradcheck(lambda c: ops.contract(equation, matrices, c, remake), coefficients)
