"""RandLoRA under `transformers.Trainer`, with this library and with PEFT's tuner.

The quick start of PEFT's RandLoRA page, as it runs: `Trainer` knows neither `dataset_text_field` nor `max_seq_length`
(they are options of TRL's trainer), so that the text is tokenised here, and the collator makes the labels. The model is
a tiny Llama with random weights and its texts are a few sentences, so that nothing is downloaded; for a real run put
`AutoModelForCausalLM.from_pretrained(...)`, its tokeniser and `datasets.load_dataset(...)` in their places.

    python docs/examples/randlora_with_trainer.py [directory]      about 15 seconds on a CPU
"""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import RandLoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from randlora_core import RandLoRAConfig, export_peft, import_peft, inject_adapter, load_adapter, save_adapter

TARGETS = ("q_proj", "v_proj")
TEXTS = ("a higher rank means fewer parameters", "random bases are shared by the layers", "the update has full rank")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokeniser of words, trained on `TEXTS`."""
    words = Tokenizer(WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.train_from_iterator(TEXTS, WordLevelTrainer(special_tokens=["<pad>", "<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """The same tiny Llama at each call."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            pad_token_id=0,
        )
    )


def make_trainer(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, directory: Path, steps: int) -> Trainer:
    """A trainer of next-token prediction on `TEXTS`."""
    texts = Dataset.from_dict({"text": list(TEXTS)})
    tokens = texts.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(directory / "trainer"),
            max_steps=steps,
            learning_rate=1e-2,
            per_device_train_batch_size=3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=tokens,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )


def with_this_library(directory: Path, steps: int = 40) -> LlamaForCausalLM:
    """Train with this library in place of PEFT's tuner; save the adapter for itself and for PEFT, and load it."""
    tokenizer = make_tokenizer()
    model = inject_adapter(make_model(len(tokenizer)), RandLoRAConfig(rank=8), TARGETS)
    make_trainer(model, tokenizer, directory, steps).train()
    save_adapter(model, directory / "adapter")  # what trained, and the seed of the bases
    export_peft(model, directory / "for_peft")  # peft.PeftModel.from_pretrained opens it
    return load_adapter(make_model(len(tokenizer)), directory / "adapter")


def with_pefts_tuner(directory: Path, steps: int = 40) -> LlamaForCausalLM:
    """Train with PEFT's tuner and import its adapter."""
    tokenizer = make_tokenizer()
    config = RandLoraConfig(r=8, randlora_alpha=160, target_modules=list(TARGETS))
    model = get_peft_model(make_model(len(tokenizer)), config)
    make_trainer(model, tokenizer, directory, steps).train()
    model.save_pretrained(directory / "from_peft")
    return import_peft(make_model(len(tokenizer)), directory / "from_peft")


@torch.no_grad()
def loss_of(model: torch.nn.Module) -> float:
    """Next-token loss on `TEXTS`."""
    tokenizer = make_tokenizer()
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.eval()
    inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
    return model(**inputs, labels=labels.to(model.device)).loss.item()


def main(directory: Path) -> None:
    """Run both ways and print the losses."""
    print(f"before               {loss_of(make_model(len(make_tokenizer()))):.3f}")
    print(f"this library         {loss_of(with_this_library(directory)):.3f}")
    print(f"PEFT's, imported     {loss_of(with_pefts_tuner(directory)):.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
