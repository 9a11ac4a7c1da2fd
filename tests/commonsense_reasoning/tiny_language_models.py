"""Tiny random language models of the architectures that the experiment trains."""

import torch
from tokenizers_at_hand import make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
)

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}
CONFIGS = {
    "llama": lambda vocabulary: LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **SIZES),
    "qwen2": lambda vocabulary: Qwen2Config(vocab_size=vocabulary, **SIZES),
    "phi3": lambda vocabulary: Phi3Config(vocab_size=vocabulary, **SIZES),
    "gpt2": lambda vocabulary: GPT2Config(vocab_size=vocabulary, n_positions=1024, n_embd=24, n_layer=2, n_head=4),
    "gemma2": lambda vocabulary: Gemma2Config(vocab_size=vocabulary, head_dim=6, final_logit_softcapping=0.1, **SIZES),
}
ARCHITECTURES = ("llama", "qwen2", "phi3")


def new_model(architecture, vocabulary):
    """A model as transformers initialises it, to be trained."""
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture](vocabulary))


def make_model(architecture, vocabulary=60, scale=0.3):
    """A model whose weights are large enough for its predictions to depend on all of the text."""
    model = new_model(architecture, vocabulary)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def random_tokens(generator, low, high, vocabulary=60):
    """Between `low` and `high` tokens, the end token 0 among them."""
    size = int(torch.randint(low, high + 1, (), generator=generator))
    return tuple(torch.randint(0, vocabulary, (size,), generator=generator).tolist())


def save_models(folder, data, *architectures):
    """Tiny models in folders of their names, each with a tokenizer of the tasks' texts under `data`."""
    texts = [path.read_text() for path in sorted((data / "dataset").glob("*/*.json"))]
    tokenizer = make_tokenizer(texts, size=600)
    for architecture in architectures:
        for part in (new_model(architecture, len(tokenizer)), tokenizer):
            part.save_pretrained(folder / architecture)
    return folder
