"""RandLoRA and its rivals: parameter-efficient adapters for any nn.Module.

Importing this package loads torch and nothing heavier.
"""

from randlora_core.adapters import METHODS, make_config
from randlora_core.adapters.checkpoint import load_adapter, save_adapter
from randlora_core.adapters.dora import DoRAConfig
from randlora_core.adapters.inject import (
    adapter_parameters,
    count_parameters,
    disable_adapter,
    inject_adapter,
    merge_adapter,
    unload_adapter,
    unmerge_adapter,
)
from randlora_core.adapters.lora import LoRAConfig
from randlora_core.adapters.nola import NoLAConfig
from randlora_core.adapters.randlora import RandLoRAConfig
from randlora_core.adapters.vera import VeRAConfig

__all__ = [
    "METHODS",
    "DoRAConfig",
    "LoRAConfig",
    "NoLAConfig",
    "RandLoRAConfig",
    "VeRAConfig",
    "adapter_parameters",
    "count_parameters",
    "disable_adapter",
    "inject_adapter",
    "load_adapter",
    "make_config",
    "merge_adapter",
    "save_adapter",
    "unload_adapter",
    "unmerge_adapter",
]
