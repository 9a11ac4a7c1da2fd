"""The adapted layer: a frozen base layer, named updates on it, and the contract every method fulfils.

An `AdapterLayer` takes the place of a linear layer at its parent. It owns the frozen layer (`base`) and one `Update`
per adapter name; the one called `active` acts, unless the layer is disabled or merged.

    W0 (out, in)   frozen weight                    dW (out, in)   the method's update, 0 at the start
    y = x (W0 + dW)^T + bias                        for every method that only adds; DoRA rescales W0 + dW as well
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from randlora_core.adapters.bases import SharedBases
from randlora_core.adapters.config import AdapterConfig
from randlora_core.adapters.layer_kinds import CONV1D, LayerKind, Shape, kind_of
from randlora_core.adapters.read_weight import AdaptedWeight

DEFAULT_NAME = "default"


class Update(nn.Module):
    """One method's parameters on one layer.

    A method subclasses this. Its constructor takes `(config, shape, bases, weight)`: the layer's own settings
    (`AdapterConfig.for_layer`), (out, in), the model's shared bases for this rank or None, and the frozen weight
    (out, in); it calls `super().__init__(config, shape)` and creates float32 parameters on the weight's device such
    that the layer's output does not change.
    """

    limits_rank: ClassVar[bool] = True
    """Whether a rank above min(out, in) calls for a warning; a method may refuse it in `check` instead."""

    def __init__(self, config: AdapterConfig, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.out_features, self.in_features = shape
        self.dropout = nn.Dropout(config.dropout) if config.dropout > 0.0 else nn.Identity()

    @classmethod
    def check(cls, config: AdapterConfig, name: str, shape: Shape) -> None:
        """Refuse settings that the layer `name` cannot take.

        Raises:
            ValueError: Naming the layer and the limit.
        """

    @classmethod
    def resolve(cls, config: AdapterConfig, shapes: Mapping[str, Shape]) -> AdapterConfig:
        """The config with settings that depend on the set of targets (name -> shape) turned into numbers."""
        return config

    @classmethod
    def make_bases(
        cls, config: AdapterConfig, shapes: Sequence[Shape], device: torch.device | str
    ) -> SharedBases | None:
        """The frozen random matrices that layers of `shapes` and of `config`'s rank share; None if there are none."""
        return None

    @classmethod
    def create(cls, config: AdapterConfig, shape: Shape, bases: SharedBases | None, weight: Tensor) -> Update:
        """The update for one layer; arguments as in the constructor. A method with variants picks one here."""
        return cls(config, shape, bases, weight)

    @staticmethod
    @abstractmethod
    def num_parameters(config: AdapterConfig, shape: Shape) -> int:
        """Trainable parameters on a layer of `shape`, from the layer's own settings alone."""

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """Gives what the method adds to the weight: (out, in), scaled, differentiable.

        It is float32, or float64 where the parameters are.
        """

    @abstractmethod
    def added_output(self, x: Tensor) -> Tensor:
        """Gives what the method adds to the output, (..., out), for x (..., in); dropout is not applied."""

    def merged_weight(self, weight: Tensor) -> Tensor:
        """The weight (out, in) that a layer without adapter needs for the same output; `weight` is the frozen one."""
        delta = self.delta_weight()
        return weight.to(delta.dtype) + delta

    def forward(self, x: Tensor, layer: AdapterLayer) -> Tensor:
        """The adapted layer's output (..., out), in the base layer's output dtype, for x (..., in)."""
        result = layer.base(x)
        return result + self.added_output(self.dropout(x)).to(result.dtype)

    @staticmethod
    def parameters_like(weight: Tensor) -> dict[str, Any]:
        """Keyword arguments for new parameters: the weight's device; float32, or float64 where the weight is."""
        return {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32)}

    def input_like_parameters(self, x: Tensor) -> Tensor:
        """The input x in the dtype of the parameters, so that a half-precision model can hold float32 adapters.

        Under autocast x stays as it is, since the products choose their dtype themselves.
        """
        if torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(next(self.parameters()).dtype)

    def extra_repr(self) -> str:
        """The layer's settings."""
        return f"{self.config}"


@dataclass(frozen=True)
class Method:
    """An entry of `METHODS`: the settings of a method and what it puts on a layer."""

    config: type[AdapterConfig]
    update: type[Update]


class AdapterLayer(nn.Module):
    """A frozen linear layer and its updates, in the place where the layer was.

    Args:
        base: nn.Linear, transformers' Conv1D, or another layer that `kind_of` knows.

    Attributes:
        base: The frozen layer.
        updates: Adapter name -> Update.
        active: Name of the update that acts; a layer that holds none of this name answers as its base layer.
        disabled: Whether the layer answers as its base layer.
        rows: Name of the adapter for each row of the input, or None for the base layer; None instead of a tuple where
            `active` counts for all rows.
        row_axis: Axis of the input that `rows` is about.
        merge_error: While merged, what rounding or quantising took from the update: ||stored - (W0 + dW)|| / ||dW||,
            Frobenius norms; None otherwise.

    Raises:
        ValueError: If `base` is of no known kind, or its kind refuses it.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        kind = kind_of(base)
        if kind is None:
            raise ValueError(f"a layer of type {type(base).__name__} cannot be adapted")
        if (reason := kind.refusal(base)) is not None:
            raise ValueError(f"this layer of type {type(base).__name__} cannot be adapted: {reason}")
        kind.prepare(base)
        self.base = base
        self.updates = nn.ModuleDict()
        self.active = DEFAULT_NAME
        self.disabled = False
        self.rows: tuple[str | None, ...] | None = None
        self.row_axis = 0
        self.merge_error: float | None = None
        self._original: dict[str, Tensor] | None = None

    @property
    def kind(self) -> LayerKind:
        """The kind of the base layer, which knows how its weight is read and written."""
        return kind_of(self.base)

    @property
    def weight(self) -> Tensor:
        """The weight for models that multiply by it themselves: frozen weight plus update, in the base layer's layout.

        While the layer is disabled or merged it is the base layer's own parameter, and so it is on quantised layers,
        whose codes no model can multiply by.
        """
        acts = self.acts or (self.rows is not None and not self.disabled)
        return AdaptedWeight.of(self) if acts and not self.kind.quantised else self.base.weight

    @property
    def stores_transposed(self) -> bool:
        """Whether the base layer keeps its weight as (in, out)."""
        return self.kind is CONV1D

    def applied_weight(self) -> Tensor:
        """The frozen weight plus the active update where it acts, in the base layer's layout and dtype.

        Differentiable; dropout is left out.

        Raises:
            ValueError: If every row of the batch has its own adapter.
        """
        if self.rows is not None and not self.disabled:
            raise ValueError(
                "the model computes with the weight of an adapted layer instead of calling the layer, and in a batch "
                "that mixes adapters there is no one weight"
            )
        weight = self.effective_weight()
        return weight.T if self.stores_transposed else weight

    def effective_weight(self) -> Tensor:
        """The weight (out, in), with the active update where it acts; the adapters of rows are not looked at."""
        weight = self.dense_weight()
        return self.update.merged_weight(weight).to(weight.dtype) if self.acts else weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The base layer's bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self.kind.shape(self.base)[1]

    @property
    def out_features(self) -> int:
        """Size of the output's last dimension."""
        return self.kind.shape(self.base)[0]

    @property
    def update(self) -> Update:
        """The update that `active` names; KeyError where there is none."""
        return self.updates[self.active]

    @property
    def merged(self) -> bool:
        """Whether the update is part of the base layer's weight now."""
        return self._original is not None

    @property
    def acts(self) -> bool:
        """Whether the active update is computed in `forward`: there is one, neither disabled nor merged."""
        return self.active in self.updates and not self.disabled and not self.merged

    def forward(self, x: Tensor) -> Tensor:
        """Output (..., out) for x (..., in)."""
        if self.rows is not None and not self.disabled:
            return self._mixed(x, self.rows)
        return self.update(x, self) if self.acts else self.base(x)

    def _mixed(self, x: Tensor, rows: tuple[str | None, ...]) -> Tensor:
        """Output where every row has its own adapter: the rows of one adapter go through it together."""
        if x.shape[self.row_axis] != len(rows):
            raise ValueError(
                f"{len(rows)} adapter names for an input {tuple(x.shape)} with {x.shape[self.row_axis]} rows along "
                f"axis {self.row_axis}: give one name per row of the batch"
            )
        places: dict[str | None, list[int]] = {}
        for place, name in enumerate(rows):
            places.setdefault(name if name in self.updates else None, []).append(place)
        if len(places) == 1:
            return self._by_name(next(iter(places)), x)
        parts = [
            self._by_name(name, x.index_select(self.row_axis, torch.tensor(chosen, device=x.device)))
            for name, chosen in places.items()
        ]
        order = [place for chosen in places.values() for place in chosen]
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(parts, self.row_axis).index_select(self.row_axis, torch.tensor(back, device=x.device))

    def _by_name(self, name: str | None, x: Tensor) -> Tensor:
        return self.base(x) if name is None else self.updates[name](x, self)

    def dense_weight(self) -> Tensor:
        """The base layer's weight as a floating (out, in) tensor without gradient."""
        return self.kind.dense(self.base)

    @torch.no_grad()
    def merge(self) -> None:
        """Put the active update into the base weight.

        Computed in float32 at least, then rounded to the weight's dtype or quantised as the weight was; `merge_error`
        says what that changed.

        Raises:
            ValueError: If the layer is merged already, its weight cannot be written, or the merged weight would not be
                finite.
        """
        if self.merged:
            raise ValueError("the layer is merged already")
        if not isinstance(self.base.weight, nn.Parameter):
            raise ValueError(
                "its weight is no parameter but computed from others (a parametrisation, such as weight_norm); remove "
                "that before you inject adapters"
            )
        weight = self.dense_weight()
        exact = self.update.merged_weight(weight)
        merged = exact.to(weight.dtype)
        if not torch.isfinite(merged).all():
            raise ValueError("the merged weight has values that are not finite")
        size = torch.linalg.vector_norm(exact - weight.to(exact.dtype))
        self._original = {name: tensor.clone() for name, tensor in self.kind.tensors(self.base).items()}
        self.kind.write(self.base, merged)
        lost = torch.linalg.vector_norm(self.dense_weight().to(exact.dtype) - exact)
        self.merge_error = float(lost / size) if lost > 0 else 0.0

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the frozen weight back, to the bit.

        Raises:
            ValueError: If the layer is not merged.
        """
        if not self.merged:
            raise ValueError("the layer is not merged")
        self.exchange_weights()
        self._original = self.merge_error = None

    @torch.no_grad()
    def exchange_weights(self) -> None:
        """While merged, swap the stored weight with the frozen one; a second call swaps back."""
        for name, tensor in self.kind.tensors(self.base).items():
            current = tensor.clone()
            tensor.copy_(self._original[name])
            self._original[name] = current

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterLayer:
        # The frozen weight that a merged layer keeps follows the stored one to its device and dtype.
        super()._apply(fn, recurse)
        if self._original is not None:
            like = self.kind.tensors(self.base)
            self._original = {
                name: kept.to(like[name].device, like[name].dtype) for name, kept in self._original.items()
            }
        return self

    def extra_repr(self) -> str:
        """State of the layer."""
        return f"active={self.active!r}, merged={self.merged}, disabled={self.disabled}"
