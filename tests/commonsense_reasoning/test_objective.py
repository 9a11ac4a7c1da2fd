import pytest
import torch
from tiny_language_models import ARCHITECTURES, make_model, random_tokens
from torch.nn import functional as F

from commonsense_reasoning.batches import collate
from commonsense_reasoning.objective import LanguageModelLoss, check_head
from commonsense_reasoning.prompts import EncodedExample


def examples(seed=0, count=5):
    generator = torch.Generator().manual_seed(seed)
    return [EncodedExample(random_tokens(generator, 6, 15), 3 + number % 3, False) for number in range(count)]


def plain_loss(model, samples, loss_on):
    """One text after the other, with all logits and no padding."""
    total, count = 0, 0
    for sample in samples:
        tokens = torch.tensor([sample.tokens])
        losses = F.cross_entropy(model(input_ids=tokens).logits[0, :-1], tokens[0, 1:], reduction="none")
        losses = losses[sample.answer_start - 1 :] if loss_on == "answer" else losses
        total, count = total + losses.sum(), count + len(losses)
    return total, count


@pytest.mark.parametrize("loss_on", ["full", "answer"])
@pytest.mark.parametrize("architecture", (*ARCHITECTURES, "gpt2"))
def test_loss_and_gradients_are_those_of_the_plain_way(architecture, loss_on):
    model, samples = make_model(architecture), examples()
    expected, count = plain_loss(model, samples, loss_on)
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss, num_tokens = LanguageModelLoss(model)(*collate(samples, 0, loss_on))
    loss.backward()
    assert int(num_tokens) == count
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4, msg=name)


def test_the_head_sees_no_more_positions_than_carry_loss():
    model, samples = make_model("llama"), examples()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    loss = LanguageModelLoss(model)
    _, num_tokens = loss(*collate(samples, 0, "answer"))
    assert seen == [(int(num_tokens), 60)] and int(num_tokens) < sum(len(sample.tokens) for sample in samples) // 1.3
    _, num_tokens = loss(*collate(samples, 0, "full"))
    assert seen[1] == (sum(len(sample.tokens) - 1 for sample in samples), 60)


def test_a_batch_without_loss_is_zero_and_can_be_differentiated():
    model = make_model("llama")
    cut = [EncodedExample((4, 5, 6), 3, True)]
    loss, num_tokens = LanguageModelLoss(model)(*collate(cut, 0, "answer"))
    loss.backward()
    assert loss.item() == 0 and int(num_tokens) == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_a_model_that_changes_its_logits_is_refused():
    for architecture in ARCHITECTURES:
        check_head(make_model(architecture), architecture)
    with pytest.raises(ValueError, match="backbone 'capped' changes its logits behind its head"):
        check_head(make_model("gemma2"), "capped")
