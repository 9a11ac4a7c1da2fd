"""Tokenizers: one that the tests make, and real ones where an environment variable names their folder."""

import base64
import os
from pathlib import Path

import pytest

FOLDER = os.environ.get("RANDLORA_TOKENIZERS")
needs_real_tokenizers = pytest.mark.skipif(FOLDER is None, reason="RANDLORA_TOKENIZERS names no folder of tokenizers")


def make_tokenizer(texts, size=500):
    """A byte-level BPE tokenizer as GPT-2's, trained on texts; it has an end token, but neither BOS nor padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


def read_gpt2(folder):
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(str(folder / "gpt2" / "vocab.json"), str(folder / "gpt2" / "merges.txt"))


def read_tiktoken(path, pattern, special, **names):
    """A tokenizer from tiktoken's ranks; the special tokens follow the others."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(path):
            lines = Path(path).read_bytes().splitlines()
            return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}

    words = Converter(str(path), pattern=pattern, extra_special_tokens=special).converted()
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def read_llama3(folder):
    """With BOS before every text, as the published tokenizer has it."""
    from tokenizers.processors import TemplateProcessing

    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    names = {"bos_token": special[0], "eos_token": special[1]}
    tokenizer = read_tiktoken(folder / "llama3" / "tokenizer.model", LLAMA3_PATTERN, special, **names)
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], begin)]
    )
    return tokenizer


def read_qwen2(folder):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = {"eos_token": special[0], "pad_token": special[0]}
    return read_tiktoken(folder / "qwen" / "qwen.tiktoken", QWEN_PATTERN, special, **names)


def make_llama(tokens, **names):
    """A tokenizer of sentencepiece's kind: it puts a space before the text and writes unknown bytes as <0x..>."""
    from transformers import LlamaTokenizer

    ids = {token: number for number, (token, _) in enumerate(tokens)}
    merges = []
    for token, _ in sorted(tokens, key=lambda entry: -entry[1]):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges += sorted(
            (pair for pair in cuts if pair[0] in ids and pair[1] in ids), key=lambda p: (ids[p[0]], ids[p[1]])
        )
    return LlamaTokenizer(vocab=ids, merges=merges, legacy=False, **names)


def read_llama2(folder):
    from transformers.utils import sentencepiece_model_pb2_new

    model = sentencepiece_model_pb2_new.ModelProto()
    model.ParseFromString((folder / "llama2" / "tokenizer.model").read_bytes())
    return make_llama([(piece.piece, piece.score) for piece in model.pieces])


def read_phi3(folder):
    """The vocabulary of Llama-2 with special tokens behind it; its end is <|endoftext|>."""
    import gguf

    fields = gguf.GGUFReader(folder / "phi3" / "ggml-vocab-phi-3.gguf").fields
    tokens = [
        bytes(fields["tokenizer.ggml.tokens"].parts[place]).decode() for place in fields["tokenizer.ggml.tokens"].data
    ]
    scores = [float(fields["tokenizer.ggml.scores"].parts[place][0]) for place in fields["tokenizer.ggml.scores"].data]
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
    return make_llama(list(zip(tokens, scores, strict=True)), **names)


REAL = {"gpt2": read_gpt2, "llama2": read_llama2, "llama3": read_llama3, "phi3": read_phi3, "qwen2": read_qwen2}
"""Name -> reader, which takes the folder of all of them."""
