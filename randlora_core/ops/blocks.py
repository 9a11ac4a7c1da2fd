"""The block structure of RandLoRA's bases: how blocks are stored, made dense, and arranged for batched products.

With g groups, t = r / g, and the letters of `randlora_core.ops.factors`:

    A (r, d)      is zero but where k mod g == i mod g; stored as (t, d):     A[t' g + i mod g, i] = stored[t', i]
    B (D, n, r)   is zero but where o mod g == k mod g; stored as (D, n, t):  B[o, j, t' g + o mod g] = stored[o, j, t']

So group q of the inputs, those i with i mod g == q, meets the rows k with k mod g == q of the scaled A, and likewise
for outputs and columns of B. Row (k, j) of the scaled A is paired with column k n + j of B, which belongs to group
(k n + j) mod g: where n >= g, every group of outputs reads every group of inputs.

A factor is the scaled A, or B transposed; its rows are the k = n r inner components. In blocks it has four axes:

    (g, s, m, w)   rows (s' g + q) m + j' of group q, and its w = ceil(size / g) columns, filled up with zeros
                   scaled A: s = t, m = n, of d columns;    B transposed: s = n t, m = 1, of D columns
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dense_a(stored: Tensor, groups: int) -> Tensor:
    """Makes A (r, d) with its zeros from its blocks (t, d)."""
    inputs = torch.arange(stored.shape[1], device=stored.device)
    return (stored[:, None] * _members(inputs, groups).T).flatten(0, 1)


def dense_b(stored: Tensor, groups: int) -> Tensor:
    """Makes B (D, n, r) with its zeros from its blocks (D, n, t)."""
    outputs = torch.arange(stored.shape[0], device=stored.device)
    return (stored[..., None] * _members(outputs, groups)[:, None, None]).flatten(2)


def _members(indices: Tensor, groups: int) -> Tensor:
    """Tells for every index which of the groups it is in: bool (indices, g)."""
    return (indices % groups)[:, None] == torch.arange(groups, device=indices.device)


def blocks_of_a(dense: Tensor, groups: int) -> Tensor:
    """Takes the blocks (t, d) out of an A (r, d); what is outside of them must be zero."""
    return dense.unflatten(0, (-1, groups)).sum(1, dtype=dense.dtype)


def blocks_of_b(dense: Tensor, groups: int) -> Tensor:
    """Takes the blocks (D, n, t) out of a B (D, n, r); what is outside of them must be zero."""
    return dense.unflatten(2, (-1, groups)).sum(3, dtype=dense.dtype)


def find_groups(a: Tensor, b: Tensor) -> int:
    """Finds the largest number of groups between which A (r, d) and B (D, n, r) are zero; 1 for dense ones."""
    for groups in (g for g in range(len(a), 1, -1) if len(a) % g == 0):
        is_a = torch.equal(dense_a(blocks_of_a(a, groups), groups), a)
        if is_a and torch.equal(dense_b(blocks_of_b(b, groups), groups), b):
            return groups
    return 1


def split(x: Tensor, groups: int) -> Tensor:
    """Sorts the columns of (T, size) by group: (g, T, w), filled up with zeros; not differentiable."""
    tokens, size = x.shape
    whole, rest = divmod(size, groups)
    parts = x.new_empty(groups, tokens, whole + (rest > 0))
    parts[:, :, :whole] = x[:, : whole * groups].unflatten(1, (whole, groups)).permute(2, 0, 1)
    if rest:
        parts[:rest, :, whole] = x[:, whole * groups :].T
        parts[rest:, :, whole] = 0
    return parts


def join(parts: Tensor, size: int) -> Tensor:
    """Puts the columns (g, T, w) back into their places: (T, size)."""
    groups, tokens, _ = parts.shape
    whole, rest = divmod(size, groups)
    x = parts.new_empty(tokens, size)
    x[:, : whole * groups].unflatten(1, (whole, groups)).copy_(parts[:, :, :whole].permute(1, 2, 0))
    if rest:
        x[:, whole * groups :] = parts[:rest, :, whole].T
    return x


def scaled_a_blocks(lambda_: Tensor, gamma: Tensor, stored_a: Tensor, scale: float) -> Tensor:
    """Forms the blocks (g, t, n, w) of the scaled A, in the dtype of lambda; not differentiable."""
    groups = lambda_.shape[0] // stored_a.shape[0]
    weights = (scale * lambda_).unflatten(0, (-1, groups)).transpose(0, 1)  # (g, t, n)
    a = split(stored_a.to(lambda_.dtype), groups)  # (g, t, w)
    return (weights[..., None] * a[:, :, None]).mul_(split(gamma, groups)[:, None])


def with_whole_groups(flat_b: Tensor, groups: int) -> Tensor:
    """Fills the stored blocks (D, n t) of B up with rows of zeros to a multiple of g; B itself where D is one."""
    missing = -len(flat_b) % groups
    return F.pad(flat_b, (0, 0, 0, missing)) if missing else flat_b


def b_blocks(flat_b: Tensor, groups: int) -> Tensor:
    """Arranges the stored blocks (D, n t) of B as the factor (g, n t, 1, w): a view where g divides D."""
    return with_whole_groups(flat_b, groups).unflatten(0, (-1, groups)).permute(1, 2, 0).unsqueeze(2)


def vector_gradients_in_blocks(
    grad_m: Tensor, lambda_: Tensor, gamma: Tensor, stored_a: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of lambda (r, n) and gamma (n, d) from that of the scaled A's blocks (g, t, n, w).

    All are of one dtype. The blocks' gradient is multiplied by A in place.
    """
    groups = len(grad_m)
    p = grad_m.mul_((scale * split(stored_a.to(lambda_.dtype), groups))[:, :, None]).transpose(1, 2)  # (g, n, t, w)
    weights = lambda_.unflatten(0, (-1, groups)).permute(1, 2, 0)  # (g, n, t)
    grad_lambda = (p @ split(gamma, groups)[..., None])[..., 0]  # (g, n, t)
    grad_gamma = (weights[:, :, None] @ p)[:, :, 0]  # (g, n, w)
    return grad_lambda.permute(2, 0, 1).flatten(0, 1), grad_gamma.permute(1, 2, 0).flatten(1)[:, : gamma.shape[1]]
