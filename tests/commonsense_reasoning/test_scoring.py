import numpy as np
import pytest
import torch
from tiny_language_models import ARCHITECTURES, make_model, random_tokens

from commonsense_reasoning.batches import pad
from commonsense_reasoning.prompts import EncodedChoice
from commonsense_reasoning.scoring import OptionScores, score_choices, score_options

CPU = torch.device("cpu")
SETTINGS = {"device": CPU, "precision": "fp32", "filler": 0}


def make_choices(count=7, seed=1):
    """Questions with two to five options of unlike lengths, some of whose first tokens are given."""
    generator = torch.Generator().manual_seed(seed)
    choices = []
    for number in range(count):
        context = random_tokens(generator, 1, 12)
        options = tuple(random_tokens(generator, 3, 8) for _ in range(2 + number % 4))
        given = tuple((number + place) % 3 for place in range(len(options)))
        choices.append(EncodedChoice(context, options, given, number % 2))
    return choices


@torch.no_grad()
def plain_scores(model, choice):
    """One option after the other, each with its whole text and all logits."""
    sums = []
    for option, given in zip(choice.options, choice.num_given, strict=True):
        tokens = torch.tensor([[*choice.context, *option]])
        found = model(input_ids=tokens).logits[0].log_softmax(dim=-1)
        first = len(choice.context) + given
        sums.append(sum(float(found[place - 1, tokens[0, place]]) for place in range(first, tokens.shape[1])))
    return sums


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("architecture", (*ARCHITECTURES, "gpt2"))
def test_scores_are_those_of_a_plain_loop(architecture, batch_size):
    model, choices = make_model(architecture), make_choices()
    found = score_options(model, choices, batch_size=batch_size, **SETTINGS)
    for choice, score in zip(choices, found, strict=True):
        np.testing.assert_allclose(score.summed, plain_scores(model, choice), atol=1e-4, rtol=0)
        sizes = [len(option) - given for option, given in zip(choice.options, choice.num_given, strict=True)]
        assert score.num_tokens == tuple(sizes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_options_of_one_token_need_the_context_alone(architecture):
    model = make_model(architecture)
    choices = [EncodedChoice((4, 5, 6), ((7,), (8,)), (0, 0), 0), EncodedChoice((9,), ((7,), (8,), (3,)), (0, 0, 0), 0)]
    found = score_options(model, choices, batch_size=2, **SETTINGS)
    for choice, score in zip(choices, found, strict=True):
        np.testing.assert_allclose(score.summed, plain_scores(model, choice), atol=1e-4, rtol=0)


def test_the_context_is_run_once_and_the_head_on_scored_tokens_alone():
    model, choices = make_model("llama"), make_choices()
    tokens, heads = [], []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel()))
    model.lm_head.register_forward_hook(lambda module, inputs, output: heads.append(output.shape[0]))
    for choice in choices:
        score_options(model, [choice], batch_size=1, **SETTINGS)
    expected = [(len(choice.context), len(choice.options) * (max(map(len, choice.options)) - 1)) for choice in choices]
    assert tokens == [size for pair in expected for size in pair]
    assert heads == [sum(map(len, choice.options)) - sum(choice.num_given) for choice in choices]


def test_the_filler_does_not_matter():
    model, choices = make_model("qwen2"), make_choices()
    first, second = (
        score_options(model, choices, batch_size=7, **{**SETTINGS, "filler": filler}) for filler in (0, 33)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.summed, other.summed, atol=1e-5, rtol=0)


def test_the_score_that_counts_is_per_token():
    score = OptionScores(summed=(-4.0, -5.0, -5.0), num_tokens=(2, 5, 5))
    assert score.best_summed == 0 and score.best_per_token == 1
    assert OptionScores((-2.0, -2.0), (1, 1)).best_per_token == 0


def test_accuracy_predictions_and_the_summed_score():
    model, choices = make_model("llama"), make_choices(count=9)
    expected = [plain_scores(model, choice) for choice in choices]
    sizes = [[len(option) - given for option, given in zip(c.options, c.num_given, strict=True)] for c in choices]
    per_token = [int(np.argmax(np.divide(sums, count))) for sums, count in zip(expected, sizes, strict=True)]
    summed = [int(np.argmax(sums)) for sums in expected]
    assert per_token != summed
    score = score_choices(model, choices, batch_size=4, **SETTINGS)
    labels = [choice.correct for choice in choices]
    assert score.predicted.tolist() == per_token and score.labels.tolist() == labels and score.size == 9
    assert score.value == np.mean(np.equal(per_token, labels))
    assert score.details == {"accuracy_summed": np.mean(np.equal(summed, labels))}


def test_padding_on_both_sides():
    rows = [(5, 6), (7, 8, 0, 9)]
    tokens, mask = pad(rows, 0, "right", CPU)
    assert tokens.tolist() == [[5, 6, 0, 0], [7, 8, 0, 9]] and mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    tokens, mask = pad(rows, 3, "left", CPU)
    assert tokens.tolist() == [[3, 3, 5, 6], [7, 8, 0, 9]] and mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_masked_text_has_the_logits_that_it_has_alone(architecture, side):
    model, rows = make_model(architecture), [(5, 6, 7), (8, 9, 10, 11, 12, 0, 13), (14,)]
    tokens, mask = pad(rows, 0, side, CPU)
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    for number, row in enumerate(rows):
        alone = model(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(logits[number][mask[number].bool()], alone, atol=1e-4, rtol=1e-4)
