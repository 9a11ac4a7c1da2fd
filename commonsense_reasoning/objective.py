"""The loss of a causal language model, whose product with the vocabulary runs only where it is needed.

A language model's logits over all positions are often larger than all its other activations: 256 tokens times 128,256
entries of Llama-3's vocabulary are 131 MB in fp32 for one text. So the model's body runs alone, and its output head on
the positions that carry loss or a score.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randlora_core.experiment.loop.fit import compute


def run_body(model: nn.Module, tokens: Tensor, **inputs: Any) -> Any:
    """The output of a causal language model of transformers before its head, with `last_hidden_state` (B, L, H).

    Args:
        model: The model.
        tokens: (B, L).
        **inputs: Further arguments of the body's forward.
    """
    return model.base_model(input_ids=tokens, **inputs)


def token_log_likelihoods(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihoods (N,) in float32 of tokens, each predicted from one position.

    Args:
        model: The model, whose output head is applied.
        hidden: The body's output at the positions before the tokens, (N, H).
        targets: The tokens, (N,).
    """
    return -F.cross_entropy(model.get_output_embeddings()(hidden).float(), targets, reduction="none")


class LanguageModelLoss(nn.Module):
    """Cross-entropy of tokens given those before them.

    Args:
        model: A causal language model of transformers whose logits are its head's output, see `check_head`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the number of tokens that it is over.

        Args:
            tokens: Texts (B, L), padded at their end.
            is_target: Which tokens carry loss, (B, L), bool; the first of a text is not predicted.
        """
        hidden = run_body(self.model, tokens, use_cache=False).last_hidden_state
        at = is_target[:, 1:].nonzero(as_tuple=True)  # once: a device is waited for to know how many they are
        found = token_log_likelihoods(self.model, hidden[:, :-1][at], tokens[:, 1:][at])
        return -found.sum(), len(found)


@torch.no_grad()
def mean_loss(
    module: LanguageModelLoss, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, precision: str
) -> float:
    """The loss per token over all batches.

    Args:
        module: In evaluation mode and on the device.
        batches: As for the module's forward, on the CPU.
        device: Where to compute.
        precision: "bf16" or "fp32".
    """
    total, count = 0.0, 0
    for batch in batches:
        with compute(device, precision):
            loss, num_tokens = module(*(values.to(device) for values in batch))
        total, count = total + float(loss), count + num_tokens
    return total / count


@torch.no_grad()
def check_head(model: nn.Module, name: str) -> None:
    """Checks that a model's logits are nothing but its head's output on its body's, by trying two tokens.

    Raises:
        ValueError: They are not, as where a model caps or scales its logits.
    """
    head = model.get_output_embeddings()
    tokens = torch.tensor([[0, 1]], device=head.weight.device)
    expected = model(input_ids=tokens, use_cache=False).logits
    found = head(run_body(model, tokens, use_cache=False).last_hidden_state)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"backbone {name!r} changes its logits behind its head; accepted: models whose head gives them"
        )
