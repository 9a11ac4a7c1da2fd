"""The converged linear probe: logistic regression on frozen features, its strength chosen on the validation split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STRENGTHS = tuple(10.0**power for power in range(-5, 4))
"""Inverse strengths of the L2 penalty that are tried (scikit-learn's C)."""
MAX_ITERATIONS = 2000


class LinearHead(nn.Module):
    """Standardises features and classifies them: (B, E) -> logits (B, classes).

    Args:
        embed_dim: Width E of the features.
        num_classes: Classes.
    """

    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("scale", torch.ones(embed_dim))
        self.linear = nn.Linear(embed_dim, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits in float32, whatever the autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.linear((features.float() - self.mean) / self.scale)


class Probe(nn.Module):
    """A frozen model and a head on its features.

    Args:
        model: The pre-trained model.
        head: The head.
    """

    def __init__(self, model: nn.Module, head: LinearHead):
        super().__init__()
        self.model, self.head = model, head


@dataclass(frozen=True)
class FittedProbe:
    """A chosen probe.

    Attributes:
        strength: The chosen value of `STRENGTHS`.
        converged: Whether the solver came to its end with every strength.
        grid: (strength, validation accuracy) of everything tried.
    """

    strength: float
    converged: bool
    grid: tuple[tuple[float, float], ...]


@torch.no_grad()
def fit_probe(head: LinearHead, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> FittedProbe:
    """Fits a head on features and labels, in place.

    Every strength is fitted to convergence; the best on the validation split is taken, of equal ones the strongest
    penalty.

    Args:
        head: The head to fill.
        train: Features (N, E) and labels (N,) to fit.
        validation: The same of the validation split, to choose the strength by.
    """
    from sklearn.linear_model import LogisticRegression

    features, labels = train
    head.mean.copy_(features.mean(dim=0))
    head.scale.copy_(features.std(dim=0, correction=0).clamp(min=1e-6))
    scaled = ((features - head.mean.cpu()) / head.scale.cpu()).numpy()
    grid, best, converged = [], None, True
    for strength in STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(scaled, labels.numpy())
        converged &= bool(fitted.n_iter_.max() < MAX_ITERATIONS)
        weight, bias = _all_classes(fitted, head.linear.out_features)
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
        predicted = head(validation[0].to(head.mean.device)).argmax(dim=-1).cpu()
        grid.append((strength, float((predicted == validation[1]).double().mean())))
        if best is None or grid[-1][1] > best[1]:
            best = (strength, grid[-1][1], weight, bias)
    head.linear.weight.copy_(best[2])
    head.linear.bias.copy_(best[3])
    return FittedProbe(best[0], converged, tuple(grid))


def _all_classes(fitted: object, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weights (classes, E) and biases (classes,) of a regression; a class without examples is never predicted."""
    weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    if len(fitted.classes_) == 2:  # scikit-learn keeps one row for two classes
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    whole = torch.zeros(num_classes, weight.shape[1]), torch.full((num_classes,), -torch.inf)
    for values, filled in zip((weight, bias), whole, strict=True):
        filled[torch.from_numpy(fitted.classes_)] = values
    return whole
