"""Two processes with half a batch each get the gradients of one process with the whole batch."""

import pytest
import torch
from torch import nn

from randlora_core import RandLoRAConfig, inject_adapter, ops


def _model(settings: dict) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
    inject_adapter(model, RandLoRAConfig(**settings), targets=["0", "2"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model


def _batch() -> torch.Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}


def _worker(rank: int, store: str, path: str, results: str, settings: dict) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(_model(settings))
    with ops.force_path(path):
        model(_batch()[4 * rank : 4 * rank + 4]).square().mean().backward()
    if rank == 0:
        torch.save(_gradients(model), results)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"rank": 5}, {"rank": 3, "groups": 3}])
@pytest.mark.parametrize("path", ["weight", "activation"])
def test_data_parallel_gradients(tmp_path, path, settings):
    store, results = tmp_path / "store", tmp_path / "gradients.pt"
    torch.multiprocessing.spawn(_worker, args=(str(store), path, str(results), settings), nprocs=2)
    model = _model(settings)
    model(_batch()).square().mean().backward()
    expected, actual = _gradients(model), torch.load(results)
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(actual[name], grad, rtol=1e-4, atol=1e-5)
