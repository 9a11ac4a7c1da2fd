"""Two linear towers, and training on them that several processes share."""

import math

import torch
from fit_settings import settings
from torch import nn
from torch.utils.data import Dataset

from randlora_core.experiment.loop.fit import fit
from vision_language.objective import ContrastiveObjective, TextBatches


class TinyClip(nn.Module):
    """Linear towers: images (B, 3, 4, 4) and token vectors (C, 5) to 6 features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(48, 6), nn.Linear(5, 6)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def encode_image(self, images):
        return self.image(images.flatten(1))

    def encode_text(self, tokens):
        return self.text(tokens.float())


class RandomImages(Dataset):
    """Micro-batches of seven images of up to five classes, as `ImageBatches` gives and splits them."""

    def __init__(self, count, part=slice(None)):
        self.count, self.part = count, part

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        images = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(index))
        return images[self.part], self.whole_labels(index)[self.part]

    def whole_labels(self, index):
        return torch.randint(5, (7,), generator=torch.Generator().manual_seed(100 + index))

    def shard(self, part, parts):
        return RandomImages(self.count, slice(part, None, parts))


def train(every_class, accumulate):
    """Trains both towers for four steps; losses and weights."""
    model = TinyClip()
    tokens = torch.randint(9, (5, 5), generator=torch.Generator().manual_seed(1))
    batches = TextBatches(RandomImages(4 * accumulate), tokens, every_class=every_class)
    plan = settings(steps=4, accumulate=accumulate)
    result = fit(ContrastiveObjective(model), batches, plan, torch.device("cpu"))
    return {"losses": result.losses, "weights": model.state_dict()}
