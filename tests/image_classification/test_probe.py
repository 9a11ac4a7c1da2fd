"""The converged probe against an independent solution of the same problem."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from randlora_core.image_classification import probe
from randlora_core.image_classification.probe import STRENGTHS, LinearHead, fit_probe


def clusters(count, num_classes, spread, seed, embed_dim=6):
    """Features around one centre for each class, of very different scales, and their labels."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, embed_dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % num_classes
    features = centres[labels] + spread * torch.randn(count, embed_dim, generator=draw)
    return features * torch.logspace(-2, 3, embed_dim) + 100, labels


def fitted(train, validation, num_classes, strengths=None):
    head = LinearHead(train[0].shape[1], num_classes)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        if strengths is not None:
            patch.setattr(probe, "STRENGTHS", strengths)
        return head, fit_probe(head, train, validation)


def oracle_logits(train, features, strength, num_classes):
    """Multinomial logistic regression, C times the summed loss plus half the squared weights, by another solver."""
    inputs, labels = train[0].double().numpy(), train[1].numpy()
    mean, scale = inputs.mean(0), inputs.std(0)
    inputs = (inputs - mean) / scale
    shape = (num_classes, inputs.shape[1] + 1)
    onehot = np.eye(num_classes)[labels]

    def loss(values):
        weight, bias = np.split(values.reshape(shape), [-1], axis=1)
        logits = inputs @ weight.T + bias.T
        logits -= logits.max(1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        error = (np.exp(logs) - onehot) * strength
        gradient = np.concatenate([error.T @ inputs + weight, error.sum(0)[:, None]], axis=1)
        return -strength * (logs * onehot).sum() + 0.5 * (weight**2).sum(), gradient.ravel()

    found = minimize(loss, np.zeros(np.prod(shape)), jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 5000})
    weight, bias = np.split(found.x.reshape(shape), [-1], axis=1)
    return (features.double().numpy() - mean) / scale @ weight.T + bias.T


def centred(logits):
    """Logits up to what a softmax does not see."""
    logits = np.asarray(logits, dtype=np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_the_probe_is_the_converged_regression_on_standardised_features(num_classes, strength):
    train, validation = clusters(90, num_classes, 1.0, 1), clusters(30, num_classes, 1.0, 2)
    head, found = fitted(train, validation, num_classes, (strength,))
    with torch.no_grad():
        logits = head(validation[0])
    # Of two classes scikit-learn penalises one vector, the difference of the two: half the strength means the same.
    expected = oracle_logits(train, validation[0], strength / 2 if num_classes == 2 else strength, num_classes)
    assert np.allclose(centred(logits), centred(expected), atol=2e-2 * np.abs(centred(expected)).max())
    assert found.strength == strength and len(found.grid) == 1 and found.converged


def test_every_strength_converges_without_a_warning_even_where_classes_separate():
    train, validation = clusters(60, 3, 0.01, 1), clusters(30, 3, 0.01, 2)
    _, found = fitted(train, validation, 3)
    assert [strength for strength, _ in found.grid] == list(STRENGTHS)


def test_a_solver_that_was_stopped_early_is_told(monkeypatch):
    train, validation = clusters(60, 3, 1.0, 1), clusters(30, 3, 1.0, 2)
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert not fit_probe(LinearHead(6, 3), train, validation).converged


def test_features_are_standardised_by_the_training_images_alone():
    train, validation = clusters(50, 3, 1.0, 1), clusters(30, 3, 1.0, 2)
    head, _ = fitted(train, (validation[0] + 1000, validation[1]), 3, (1.0,))
    assert torch.allclose(head.mean, train[0].mean(0), rtol=1e-6)
    assert torch.allclose(head.scale, train[0].std(0, correction=0), rtol=1e-6)
    assert torch.equal(head.linear((train[0] - head.mean) / head.scale), head(train[0]))


def test_a_feature_that_never_changes_does_no_harm():
    train, validation = clusters(50, 3, 1.0, 1), clusters(30, 3, 1.0, 2)
    for features, _ in (train, validation):
        features[:, 2] = 7.0
    head, _ = fitted(train, validation, 3, (1.0,))
    assert torch.isfinite(head(validation[0])).all()


def test_the_strength_is_chosen_on_validation_even_where_another_would_win_on_test():
    """A strong penalty leaves noise in the signal, a weak one fits wrong labels by sixty features of noise."""
    draw = torch.Generator().manual_seed(3)

    def noisy(count, wrong=0.0):
        labels = torch.arange(count) % 2
        features = torch.randn(count, 62, generator=draw)
        features[:, 0] += (2 * labels - 1) + features[:, 1]
        return features, labels ^ (torch.rand(count, generator=draw) < wrong).long()

    train, validation, test = noisy(150, 0.25), noisy(1000), noisy(1000)
    head, found = fitted(train, validation, 2)
    scores = dict(found.grid)
    assert found.strength == min(strength for strength, score in scores.items() if score == max(scores.values()))
    assert scores[STRENGTHS[0]] < scores[found.strength] > scores[STRENGTHS[-1]]
    alone, _ = fitted(train, validation, 2, (found.strength,))
    assert torch.equal(head.linear.weight, alone.linear.weight) and torch.equal(head.linear.bias, alone.linear.bias)
    _, by_test = fitted(train, test, 2)
    assert by_test.strength != found.strength and dict(by_test.grid)[found.strength] < max(dict(by_test.grid).values())


def test_of_equally_good_strengths_the_strongest_penalty_is_taken():
    train, validation = clusters(60, 3, 0.01, 1), clusters(30, 3, 0.01, 2)
    _, found = fitted(train, validation, 3)
    best = [strength for strength, score in found.grid if score == 1.0]
    assert len(best) > 1 and found.strength == best[0]


def test_the_grid_tells_the_validation_accuracy_of_every_strength():
    train, validation = clusters(60, 3, 1.5, 1), clusters(60, 3, 1.5, 2)
    _, found = fitted(train, validation, 3)
    for strength, score in found.grid:
        expected = oracle_logits(train, validation[0], strength, 3).argmax(1) == validation[1].numpy()
        assert score == pytest.approx(expected.mean(), abs=1 / 59)


def test_a_class_without_training_examples_is_never_predicted():
    features, labels = clusters(60, 3, 0.1, 1)
    kept = labels != 1
    validation = clusters(30, 3, 0.1, 2)
    head, _ = fitted((features[kept], labels[kept]), validation, 4)
    predicted = head(validation[0]).argmax(1)
    assert set(predicted.tolist()) == {0, 2} and (head(validation[0])[:, [1, 3]] == -torch.inf).all()
    assert torch.equal(predicted[validation[1] == 0], torch.zeros(10, dtype=torch.int64))
    assert torch.equal(predicted[validation[1] == 2], torch.full((10,), 2))


def test_the_head_computes_in_float32_whatever_the_autocast():
    train, validation = clusters(50, 3, 1.0, 1), clusters(30, 3, 1.0, 2)
    head, _ = fitted(train, validation, 3, (1.0,))
    expected = head(validation[0])
    with torch.autocast("cpu", torch.bfloat16):
        found = head(validation[0])
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_a_head_starts_undecided():
    assert torch.equal(LinearHead(4, 3)(torch.randn(5, 4)), torch.zeros(5, 3))
