"""RandLoRA and its rivals: parameter-efficient adapters for any nn.Module.

Importing this package loads torch and nothing heavier.
"""

from randlora_core.adapters import METHODS, make_config
from randlora_core.adapters.checkpoint import load_adapter, save_adapter
from randlora_core.adapters.delta import delta_of, inject_delta
from randlora_core.adapters.dora import DoRAConfig
from randlora_core.adapters.inject import inject_adapter, unload_adapter
from randlora_core.adapters.lora import LoRAConfig, lora_plus_groups
from randlora_core.adapters.merging import disable_adapter, merge_adapter, merge_error, unmerge_adapter
from randlora_core.adapters.named import adapter_names, add_adapter, delete_adapter, set_adapter, use_adapters
from randlora_core.adapters.nola import NoLAConfig
from randlora_core.adapters.peft_acceleration import accelerate_peft
from randlora_core.adapters.peft_export import export_peft
from randlora_core.adapters.peft_import import import_peft
from randlora_core.adapters.randlora import RandLoRAConfig
from randlora_core.adapters.state import adapter_parameters, count_parameters
from randlora_core.adapters.vera import VeRAConfig

__all__ = [
    "METHODS",
    "DoRAConfig",
    "LoRAConfig",
    "NoLAConfig",
    "RandLoRAConfig",
    "VeRAConfig",
    "accelerate_peft",
    "adapter_names",
    "adapter_parameters",
    "add_adapter",
    "count_parameters",
    "delete_adapter",
    "delta_of",
    "disable_adapter",
    "export_peft",
    "import_peft",
    "inject_adapter",
    "inject_delta",
    "load_adapter",
    "lora_plus_groups",
    "make_config",
    "merge_adapter",
    "merge_error",
    "save_adapter",
    "set_adapter",
    "unload_adapter",
    "unmerge_adapter",
    "use_adapters",
]
