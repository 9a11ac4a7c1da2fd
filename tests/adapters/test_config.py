"""Settings: what they refuse, and how they resolve for a layer."""

import dataclasses
import json

import numpy as np
import pytest

from randlora_core import METHODS, LoRAConfig, RandLoRAConfig, make_config

NAMES = {
    "randlora": {"rank", "alpha", "dropout", "seed", "rank_pattern", "alpha_pattern", "basis", "sparsity"},
    "lora": {"rank", "alpha", "dropout", "rank_pattern", "alpha_pattern", "rank_stabilized"},
    "dora": {"rank", "alpha", "dropout", "rank_pattern", "alpha_pattern"},
    "vera": {"rank", "dropout", "rank_pattern", "seed", "d_initial"},
    "nola": {"rank", "alpha", "dropout", "rank_pattern", "alpha_pattern", "seed", "num_bases_a", "num_bases_b"},
}


@pytest.mark.parametrize("method", METHODS)
def test_fields_and_json_round_trip(method):
    config = make_config(method, rank=3, dropout=0.1, rank_pattern={"fc": 2})
    stored = json.loads(json.dumps(config.to_dict()))
    assert NAMES[method] <= stored.keys() - {"method"}
    assert ("alpha" in stored) == (method != "vera")
    assert make_config(**stored) == config
    assert make_config(method, rank=3).dropout == 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rank = 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", -3),
        ("rank", 2.5),
        ("rank", True),
        ("rank", "8"),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", float("nan")),
        ("dropout", "a"),
        ("rank_pattern", {"fc": 0}),
        ("rank_pattern", ["fc"]),
    ],
)
def test_bad_values_are_refused_with_the_value(method, field, value):
    with pytest.raises(ValueError, match=field):
        make_config(method, **{"rank": 2, field: value})


@pytest.mark.parametrize("method", ["randlora", "lora", "dora", "nola"])
@pytest.mark.parametrize("alpha", [0, 0.0, float("inf"), float("nan"), "10", True])
def test_bad_alpha(method, alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number other than 0"):
        make_config(method, rank=2, alpha=alpha)
    with pytest.raises(ValueError, match=r"alpha_pattern\['fc'\]"):
        make_config(method, rank=2, alpha_pattern={"fc": alpha})


@pytest.mark.parametrize("method", ["randlora", "vera", "nola"])
@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, None, True])
def test_bad_seed(method, seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        make_config(method, rank=2, seed=seed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"basis": "unifrom"},
            "unknown basis 'unifrom' .did you mean uniform.*known: uniform, normal, binary, ternary",
        ),
        ({"init": "zero"}, "unknown init 'zero'.*known: lambda_zero, gamma_zero"),
        ({"sparsity": 6.0}, "no effect with basis='uniform'"),
        ({"basis": "sparse", "sparsity": 6.0}, "no effect with basis='sparse'"),
        ({"basis": "very_sparse", "sparsity": 6.0}, "no effect with basis='very_sparse'"),
        ({"basis": "ternary"}, "needs a finite sparsity of at least 2, got None"),
        ({"basis": "ternary", "sparsity": 1.9}, "at least 2, got 1.9"),
        ({"basis": "ternary", "sparsity": float("inf")}, "finite sparsity"),
        ({"basis": "ternary", "sparsity": "6"}, "finite sparsity"),
    ],
)
def test_bad_bases(fields, message):
    with pytest.raises(ValueError, match=message):
        RandLoRAConfig(rank=2, **fields)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'randlra' .did you mean randlora.*known: .*nola"):
        make_config("randlra", rank=2)
    with pytest.raises(
        ValueError, match=r"unknown field 'aplha' of lora .did you mean alpha.*known: rank, .*rank_stab"
    ):
        make_config("lora", rank=2, aplha=3)
    with pytest.raises(ValueError, match="unknown field 'alpha' of vera"):
        make_config("vera", rank=2, alpha=3)
    with pytest.raises(ValueError, match="lora needs a rank"):
        make_config("lora")
    for number in ("num_bases_a", "num_bases_b"):
        with pytest.raises(ValueError, match=number):
            make_config("nola", rank=2, **{number: 0})
    with pytest.raises(ValueError, match="d_initial"):
        make_config("vera", rank=2, d_initial=0.0)


def test_settings_of_a_layer():
    config = LoRAConfig(
        rank=8,
        rank_pattern={"attn.q_proj": 2, r"blocks\.\d+\..*": 4},
        alpha_pattern={r".*k_proj": 3.0},
    )
    assert (config.for_layer("blocks.0.attn.q_proj").rank, config.for_layer("blocks.0.attn.q_proj").alpha) == (2, 4.0)
    assert (config.for_layer("blocks.11.mlp").rank, config.for_layer("blocks.11.mlp").alpha) == (4, 8.0)
    assert (config.for_layer("blocks.0.k_proj").rank, config.for_layer("blocks.0.k_proj").alpha) == (4, 3.0)
    assert (config.for_layer("head").rank, config.for_layer("head").alpha) == (8, 16.0)
    # A suffix ends at a dot.
    assert config.for_layer("xattn.q_proj").rank == 8
    explicit = dataclasses.replace(config, alpha=5.0)
    assert explicit.for_layer("blocks.0.attn.q_proj").alpha == 5.0
    assert explicit.for_layer("head").rank_pattern == {}


def test_numpys_numbers_become_json():
    configs = (
        LoRAConfig(rank=np.int64(3), alpha=np.float32(8), dropout=np.float32(0.5), rank_stabilized=np.bool_(True)),
        LoRAConfig(rank=3, rank_pattern={"a": np.int64(2)}, alpha_pattern={"a": np.float32(2)}),
        RandLoRAConfig(rank=3, seed=np.int64(1), num_bases=np.int64(2), basis="ternary", sparsity=np.float32(4)),
        make_config("nola", rank=3, num_bases_a=np.int64(2), seed=np.uint64(1)),
        make_config("vera", rank=3, d_initial=np.float32(0.5)),
    )
    assert type(configs[0].rank) is int
    for config in configs:
        assert make_config(**json.loads(json.dumps(config.to_dict()))) == config
