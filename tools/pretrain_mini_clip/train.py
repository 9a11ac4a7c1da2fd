"""Pre-train the small CLIP on a CPU: image-text contrast over distinct captions beside a class table.

python -m tools.pretrain_mini_clip.train --data PATH --minutes 50

Interrupted, it goes on from its checkpoint. At the end it folds the stem's batch norms into the convolutions, drops the
class table and writes the weights as bf16 safetensors.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from randlora_core.files import atomic_file
from randlora_core.models.mini_clip import build_towers, load_tokenizer, read_config
from randlora_core.models.text_tower import encode_text, shorten
from randlora_core.models.tokenizer import Tokenizer
from tools.pretrain_mini_clip.augment import Augmentation, augment
from tools.pretrain_mini_clip.batches import Batch, Batches, Mixture
from tools.pretrain_mini_clip.data import read_class_names, read_split


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but for the schedule's length.

    Attributes:
        optimizer: "muon" (matrices of the blocks by Muon, the rest by AdamW) or "adamw".
        learning_rate: Peak of both.
        weight_decay: On matrices and convolutions.
        warmup_steps: Steps of linear warm-up; then a cosine to zero.
        label_smoothing: Of the image-to-text and class losses.
        class_weight: Weight of the class table's loss beside the contrastive one.
        seed: Seed of weights, order, augmentation and generated images.
    """

    optimizer: str = "muon"
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    label_smoothing: float = 0.1
    class_weight: float = 1.0
    seed: int = 0
    mixture: Mixture = field(default_factory=Mixture)
    augmentation: Augmentation = field(default_factory=Augmentation)


class Pretraining(nn.Module):
    """Both towers with the class table that training adds.

    Args:
        num_classes: Rows of the class table.
        seed: Seed of the weights.
    """

    def __init__(self, num_classes: int, seed: int) -> None:
        super().__init__()
        config = read_config()
        self.clip = build_towers(config, seed, batch_norm=True)
        self.clip.visual.conv1.to(memory_format=torch.channels_last)
        self.table = nn.Linear(config["embed_dim"], num_classes)
        nn.init.normal_(self.table.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.table.bias)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features (B, embed_dim) of pixels (B, 3, S, S) in [0, 1]."""
        normalised = (pixels - self.mean) / self.std
        return self.clip.visual(normalised.contiguous(memory_format=torch.channels_last))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Gives open_clip's features of texts; shorter and longer texts go through apart, which saves padding."""
        order = tokens.argmax(-1).argsort(stable=True)
        halves = (shorten(self.clip, tokens[rows]) for rows in order.chunk(2))
        features = torch.cat([encode_text(self.clip, half) for half in halves])
        return features[order.argsort()]


def compute_losses(model: Pretraining, tokenizer: Tokenizer, batch: Batch, pixels: Tensor, recipe: Recipe) -> Tensor:
    """The contrastive and the class loss of a batch, as a tensor of two."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_image(pixels)
        texts = model.encode_text(tokenizer(batch.captions))
        scores = model.table(features)
    images, texts = F.normalize(features.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    logits = model.clip.logit_scale.exp() * images @ texts.T
    to_text = F.cross_entropy(logits, batch.caption_of, label_smoothing=recipe.label_smoothing)
    shares = F.one_hot(batch.caption_of, len(batch.captions)).float()
    to_image = F.cross_entropy(logits.T, (shares / shares.sum(0)).T)
    classes = F.cross_entropy(scores.float(), batch.label, label_smoothing=recipe.label_smoothing)
    return torch.stack([0.5 * (to_text + to_image), classes])


def build_optimizers(model: Pretraining, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices where asked for, AdamW for all else; no decay on vectors, embeddings and positions.

    Muon: https://kellerjordan.github.io/posts/muon; its step is scaled to AdamW's size, so both share a learning rate.
    """
    blocks, decayed, rest = [], [], []
    for name, parameter in model.named_parameters():
        if ".resblocks." in name and parameter.ndim == 2 and recipe.optimizer == "muon":
            blocks.append(parameter)
        elif parameter.ndim >= 2 and "embedding" not in name:
            decayed.append(parameter)
        else:
            rest.append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)]
    if blocks:
        decay = recipe.weight_decay
        optimizers.append(torch.optim.Muon(blocks, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def learning_rate_at(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warm-up over steps, then a cosine over `progress` (0 to 1, in steps or in time)."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """The training loop with its checkpoint.

    Args:
        recipe: What decides the weights.
        batches: The data.
        folder: Where checkpoint and log go.
        steps: Length of the schedule in steps, or None.
        minutes: Length of the schedule in minutes of training, or None.
    """

    def __init__(
        self, recipe: Recipe, batches: Batches, folder: Path, steps: int | None, minutes: float | None
    ) -> None:
        self.recipe, self.batches, self.folder = recipe, batches, folder
        self.steps, self.minutes = steps, minutes
        self.model = Pretraining(len(batches.class_names), recipe.seed)
        self.optimizers = build_optimizers(self.model, recipe)
        self.tokenizer = load_tokenizer()
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint_file.is_file():
            self._resume()

    @property
    def checkpoint_file(self) -> Path:
        """The state that an interrupted run goes on from."""
        return self.folder / "checkpoint.pt"

    @property
    def progress(self) -> float:
        """Share of the schedule that is done."""
        return self.step / self.steps if self.steps else self.seconds / (60 * self.minutes)

    def run(self, save_every_seconds: float = 180.0) -> None:
        """Train to the end of the schedule."""
        saved = self.seconds
        while self.progress < 1:
            started = time.perf_counter()
            losses = self.train_step()
            self.seconds += time.perf_counter() - started
            if self.step % 50 == 0:
                self.log(contrast=round(losses[0].item(), 4), classes=round(losses[1].item(), 4))
            if self.seconds - saved > save_every_seconds:
                saved = self.seconds
                self.save()
        self.save()

    def save(self) -> None:
        """Write checkpoint and weights, each in one move."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        with atomic_file(self.checkpoint_file) as part:
            torch.save(state, part)
        export_weights(self.model.clip, self.folder / "mini_clip.safetensors")
        self.log(saved=True)

    def _resume(self) -> None:
        """Take up the checkpoint."""
        state = torch.load(self.checkpoint_file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def train_step(self) -> Tensor:
        """One update; returns the losses."""
        batch = self.batches(self.step)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        size = self.model.clip.visual.image_size[0]
        pixels = augment(batch.images, batch.natural, size, self.recipe.augmentation, generator)
        losses = compute_losses(self.model.train(), self.tokenizer, batch, pixels, self.recipe)
        (losses[0] + self.recipe.class_weight * losses[1]).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = learning_rate_at(self.recipe, self.step, self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(max=math.log(100))
        self.step += 1
        return losses.detach()

    def log(self, **values: object) -> None:
        """Add a line to the log, and print it."""
        line = json.dumps({"step": self.step, "minutes": round(self.seconds / 60, 2), **values})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def export_weights(clip: nn.Module, path: Path) -> None:
    """Write the towers as bf16 safetensors with the stem folded; the model stays as it is."""
    from safetensors.torch import save_file

    state = {name: tensor for name, tensor in clip.state_dict().items() if not name.startswith("visual.conv1.")}
    state |= {f"visual.conv1.{name}": tensor for name, tensor in clip.visual.conv1.fold().state_dict().items()}
    with atomic_file(path) as part:
        save_file({name: tensor.detach().bfloat16().contiguous() for name, tensor in state.items()}, part)


@torch.no_grad()
def measure_zero_shot(model: Pretraining, tokenizer: Tokenizer, data: Path, dataset: str) -> float:
    """Top-1 accuracy on a test split of a pre-training set with the prompt "a photo of a ..."."""
    images, labels = read_split(data, dataset, "test")
    texts = tokenizer([f"a photo of a {name}" for name in read_class_names(data, dataset, "test")])
    model.eval()
    classes = F.normalize(model.encode_text(texts), dim=-1)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    small = F.interpolate(pixels, size=model.clip.visual.image_size, mode="bicubic", antialias=True).clamp(0, 1)
    predicted = torch.cat([(model.encode_image(part) @ classes.T).argmax(1) for part in small.split(250)])
    return (predicted == torch.from_numpy(labels)).float().mean().item()


def main() -> None:
    """Pre-train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and emoji/")
    parser.add_argument("--folder", type=Path, default=Path("results/pretrain"), help="for checkpoint, log and weights")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the schedule in steps")
    length.add_argument("--minutes", type=float, help="length of the schedule in minutes of training")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default=Recipe.optimizer)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--pool", type=int, default=Mixture.pool, help="number of generated images")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe(options.optimizer, options.learning_rate, mixture=Mixture(pool=options.pool))
    batches = Batches(options.data, recipe.mixture, recipe.seed, options.threads)
    trainer = Trainer(recipe, batches, options.folder, options.steps, options.minutes)
    trainer.log(recipe=asdict(recipe), classes=len(batches.class_names))
    # Plain attention beats torch's fused CPU kernel on 37 tokens.
    with sdpa_kernel(SDPBackend.MATH):
        trainer.run()
        accuracy = measure_zero_shot(trainer.model, trainer.tokenizer, options.data, "tiny_imagenet")
    trainer.log(tiny_imagenet_zero_shot=accuracy)


if __name__ == "__main__":
    main()
