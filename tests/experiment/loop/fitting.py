"""A small module, its micro-batches and settings, for tests of the training loop."""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from randlora_core.experiment.loop.state import whole

CPU = torch.device("cpu")
PARTS = {"frozen": 0.2}
"""A learning rate of its own for the first layer of `trained_whole`, whose optimizer state comes behind the head's."""


class Regression(nn.Module):
    """A frozen layer, a batch norm with running statistics, dropout and a trained layer; a term is a sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 3)

    def forward(self, x, y):
        output = self.head(self.dropout(self.norm(self.frozen(x)))).float()
        return F.mse_loss(output, y, reduction="none").mean(1).sum(), len(x)


def sample_wise():
    """A `Regression` in which no sample acts on another."""
    module = Regression()
    module.norm, module.dropout.p = nn.Identity(), 0.0
    return module


def trained_whole():
    """A `sample_wise` whose first layer is trained as well."""
    module = sample_wise()
    module.frozen.requires_grad_(True)
    return module


class Masks(Regression):
    """Keeps what its dropout makes of ones in every forward."""

    def __init__(self):
        super().__init__()
        self.norm, self.masks = nn.Identity(), []

    def forward(self, x, y):
        self.masks.append(self.dropout(torch.ones(64)))
        return super().forward(x, y)


class Batches(Dataset):
    """Micro-batch i has `sizes[i % len(sizes)]` random samples."""

    def __init__(self, count, sizes=(8,)):
        self.count, self.sizes = count, sizes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        draw, size = torch.Generator().manual_seed(index), self.sizes[index % len(self.sizes)]
        return torch.randn(size, 6, generator=draw), torch.randn(size, 3, generator=draw)


class Splittable(Batches):
    """Micro-batches of which several processes can have parts."""

    part = slice(None)

    def __getitem__(self, index):
        return tuple(tensor[self.part] for tensor in super().__getitem__(index))

    def shard(self, part, parts):
        shard = Splittable(self.count, self.sizes)
        shard.part = slice(part, None, parts)
        return shard


class Joined(Dataset):
    """Every `parts` micro-batches of another data set as one."""

    def __init__(self, batches, parts):
        self.batches, self.parts = batches, parts

    def __len__(self):
        return len(self.batches) // self.parts

    def __getitem__(self, index):
        parts = [self.batches[index * self.parts + part] for part in range(self.parts)]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


class Killed(BaseException):
    pass


@contextlib.contextmanager
def gradients_of_steps(module):
    """Collects the module's gradients as optimizers get them, a list of tensors for each step."""
    seen = []

    def copy(optimizer, arguments, options):
        seen.append([whole(parameter.grad).clone() for parameter in module.parameters()])

    handle = register_optimizer_step_pre_hook(copy)
    try:
        yield seen
    finally:
        handle.remove()


def kill_at(step):
    def on_step(done, loss):
        if done == step:
            raise Killed

    return on_step


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_identical(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def assert_close(first, second, atol):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=0, atol=atol), name
