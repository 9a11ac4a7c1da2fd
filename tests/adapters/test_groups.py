"""RandLoRA's bases in groups: their entries, the number of groups, and what the update can reach."""

import json
import warnings

import pytest
import torch
from test_randlora import equation_4, relabelled
from torch import nn

from randlora_core import LoRAConfig, RandLoRAConfig, adapter_parameters, add_adapter, inject_adapter, save_adapter
from randlora_core.adapters.bases import Matrix, RecomputedBases, SharedBases
from randlora_core.adapters.distributions import distribution
from randlora_core.adapters.state import adapter_bases, adapter_layers, adapter_state

# (out, in, rank, groups): g = r and g < r, both orientations, square, and sides that g divides or not
CASES = [(17, 11, 3, 3), (11, 17, 3, 3), (13, 13, 3, 3), (17, 12, 4, 2), (12, 17, 4, 2), (16, 8, 2, 2), (30, 24, 6, 3)]


def adapted(out_features: int, in_features: int, rank: int, groups: int | str, **fields) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(in_features, out_features))
    inject_adapter(model, RandLoRAConfig(rank=rank, groups=groups, **fields), ("0",))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def whole_matrices(update) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, d) and B (D, n, r) with their zeros, entry by entry, divided by the deviation of the whole matrix."""
    (blocks_a, blocks_b), groups, rank = update.basis_slices(), update.config.groups, update.config.rank
    a = torch.zeros(rank, blocks_a.shape[1], dtype=torch.float64)
    b = torch.zeros(*blocks_b.shape[:2], rank, dtype=torch.float64)
    for k in range(rank):
        for i in range(k % groups, a.shape[1], groups):
            a[k, i] = blocks_a[k // groups, i]
        for o in range(k % groups, len(b), groups):
            b[o, :, k] = blocks_b[o, :, k // groups]
    return a * groups**0.5, b * groups**0.5


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_equation_4(case):
    update = adapted(*case)[0].update.double()
    a, b = whole_matrices(update)
    expected = update.config.scale * equation_4(update.randlora_lambda, update.randlora_gamma, a, relabelled(b))
    torch.testing.assert_close(update.delta_weight(), expected.T if case[0] < case[1] else expected)


@pytest.mark.parametrize("rank", [3, 6])
def test_entries_depend_on_their_place_the_seed_and_the_groups_alone(rank):
    """A layer's part of the shared bases is what the layer has by itself; other groups and seeds are other entries."""
    sizes = [(20, 64), (64, 18), (31, 40)]
    model = nn.Sequential(*(nn.Linear(i, o) for o, i in sizes))
    inject_adapter(model, RandLoRAConfig(rank=rank, groups=3), "all-linear")
    (bases,) = adapter_bases(model).values()
    assert bases.shapes == {"A": (rank // 3, 31), "B": (64, -(-31 // rank), rank // 3)}
    for layer, size in zip(adapter_layers(model).values(), sizes, strict=True):
        alone = adapted(*size, rank, 3)[0].update
        for shared, own in zip(layer.update.basis_slices(), alone.basis_slices(), strict=True):
            assert torch.equal(shared, own)
        remade = adapted(*size, rank, 3, store_bases=False)[0].update
        assert isinstance(remade.bases, RecomputedBases)
        for shared, own in zip(layer.update.basis_slices(), remade.basis_slices(), strict=True):
            assert torch.equal(shared, own)
        for other in (adapted(*size, rank, 3, seed=1), adapted(*size, rank, 1)):
            b = other[0].update.basis_slices()[1][..., : rank // 3]
            assert (b == layer.update.basis_slices()[1]).float().mean() < 0.1
        assert bases.checksum != adapter_bases(adapted(64, 31, rank, 3, seed=1))[rank].checksum


def test_golden_entries():
    """Computed once; a change means that saved adapters lose their bases."""
    update = adapted(17, 11, 3, 3, seed=5)[0].update
    a, b = update.basis_slices()
    assert a[0].tolist() == [-1, -1, -1, 1, -1, 1, 1, 1, -1, -1, -1]
    assert b[:4, 0, 0].tolist() == [0.984375, 1.21875, -0.19921875, 0.8671875]
    assert update.bases.checksum == "03b693413911fe68617017f7b6b7263665859d20ecfc508662717670ba03e457"


def test_distributions_and_scale():
    """One row a group takes signs as A, more rows the basis itself; whole matrices have variance 1."""
    one, two = adapted(400, 300, 6, 6)[0].update, adapted(400, 300, 6, 3)[0].update
    assert one.bases.A.dtype == torch.int8 and set(one.bases.A.unique().tolist()) == {-1, 1}
    assert two.bases.A.dtype == two.bases.B.dtype == one.bases.B.dtype == torch.bfloat16
    signs = adapted(400, 300, 6, 3, basis="binary")[0].update
    assert signs.bases.A.dtype == signs.bases.B.dtype == torch.int8
    for update in (one, two, signs):
        for matrix in whole_matrices(update):
            assert (matrix != 0).double().mean() == pytest.approx(1 / update.config.groups, rel=0.02)
            assert matrix.square().mean() == pytest.approx(1.0, rel=0.05)
        assert update.scale == pytest.approx(20 * update.config.groups)


@pytest.mark.parametrize("case", CASES)
def test_every_output_depends_on_every_input_where_there_are_as_many_bases_as_groups(case):
    update = adapted(*case)[0].update.double()
    assert update.randlora_gamma.shape[0] >= update.config.groups
    assert (update.delta_weight() != 0).all()
    values = torch.linalg.svdvals(update.delta_weight().detach())
    assert values[-1] > 1e-10 * values[0]


def test_fewer_bases_than_groups_are_refused_unless_asked_for():
    with pytest.raises(ValueError, match=r"groups=6 is above the 4 bases of layer '0'.*rank_loss"):
        adapted(30, 24, 6, 6)
    update = adapted(30, 24, 6, 6, allow_rank_loss=True)[0].update
    unread = (update.delta_weight() == 0).double().mean()
    assert unread > 0.2  # at most 4 of the 6 groups of outputs read a group of inputs
    with pytest.raises(ValueError, match="groups=3 is above the 2 bases"):
        adapted(30, 24, 6, 3, num_bases=2)
    adapted(30, 24, 6, 3, num_bases=3)


def test_a_permission_to_lose_rank_that_no_layer_needs_changes_nothing():
    permitted, plain = (adapted(30, 24, 6, 3, allow_rank_loss=allowed)[0].update for allowed in (True, False))
    assert torch.equal(permitted.delta_weight(), plain.delta_weight()) and plain.delta_weight().any()


def injected(config: RandLoRAConfig, sizes: list[tuple[int, int]]) -> RandLoRAConfig:
    """The config that layers "0", "1" ... of these sizes (out, in) get."""
    model = nn.Sequential(*(nn.Linear(i, o) for o, i in sizes))
    inject_adapter(model, config, "all-linear")
    return adapter_state(model).config


@pytest.mark.parametrize(
    ("fields", "sizes", "groups"),
    [
        ({"rank": 6}, [(64, 64), (100, 40)], 6),
        ({"rank": 6, "rank_pattern": {"1": 9}}, [(64, 64), (100, 81)], 3),
        ({"rank": 6, "rank_pattern": {"0": 4, "1": 8}}, [(64, 64), (100, 81)], 4),  # no layer has the rank 6
        ({"rank": 6, "num_bases": 8}, [(64, 64), (100, 81)], 6),
    ],
)
def test_max_divides_every_rank_in_use(fields, sizes, groups):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert injected(RandLoRAConfig(groups="max", **fields), sizes).groups == groups


@pytest.mark.parametrize(
    ("fields", "sizes", "groups", "message"),
    [
        ({"rank": 6}, [(64, 64), (100, 24)], 3, r"layer '1' has n = 4 bases: the ranks alone would allow 6"),
        ({"rank": 6, "num_bases": 5}, [(64, 64)], 3, r"layer '0' has n = 5 bases: the ranks alone would allow 6"),
        ({"rank": 10}, [(64, 64), (10, 64)], 1, r"layer '1' has n = 1 bases.*are dense"),
        (
            {"rank": 6, "rank_pattern": {"1": 5}},
            [(64, 64), (64, 64)],
            1,
            r"the ranks in use \(5, 6\) have no.*are dense",
        ),
        ({"rank": 1}, [(64, 64)], 1, r"the ranks in use \(1\) have no.*are dense"),
    ],
)
def test_max_says_what_keeps_it_small(fields, sizes, groups, message):
    with pytest.warns(UserWarning, match=f"groups='max' becomes {groups}, since {message}") as caught:
        assert injected(RandLoRAConfig(groups="max", **fields), sizes).groups == groups
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 30}, "rank 30 is above the smaller side of layer '0'"),
        ({"rank": 6, "rank_pattern": {"0": 30}}, "rank 30 is above the smaller side of layer '0'"),
        ({"rank": 6, "rank_pattern": {"9": 4}}, "rank_pattern '9' matches none of the targets"),
        ({"rank": 6, "num_bases": 5}, "num_bases=5 takes nothing away from layer '0'"),
        ({"rank": 6, "num_bases": {32: 2}}, "num_bases has no number for smaller side 24"),
    ],
)
def test_settings_that_no_layer_takes_are_refused_without_a_warning_about_max(fields, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            injected(RandLoRAConfig(groups="max", **fields), [(24, 24)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 0}, "groups, where it is not 'max', must be an integer of at least 1, got 0"),
        ({"groups": 2.0}, "groups, where it is not 'max', must be an integer of at least 1, got 2.0"),
        ({"groups": "all"}, "must be an integer of at least 1, got 'all'"),
        ({"groups": 2, "distinct_a": True, "num_bases": 9}, "groups=2 is not defined with distinct_a=True: its two"),
        ({"groups": "max", "packed_bases": True, "basis": "binary"}, "groups='max' is not defined with packed_bases"),
        ({"allow_rank_loss": True}, "allow_rank_loss=True has no effect with groups=1"),
        ({"groups": "max", "allow_rank_loss": True}, "allow_rank_loss=True has no effect with groups='max'"),
    ],
)
def test_settings_that_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RandLoRAConfig(rank=4, **fields)


def test_groups_have_to_divide_the_rank_of_every_layer():
    with pytest.raises(ValueError, match="groups=4 does not divide the rank 6 of layer '0'; accepted: 1, 2, 3, 6, or"):
        adapted(64, 64, 6, 4)
    with pytest.raises(ValueError, match="groups=3 does not divide the rank 4 of layer '1'"):
        injected(RandLoRAConfig(rank=6, groups=3, rank_pattern={"1": 4}), [(64, 64), (64, 64)])


def test_names_and_numbers_of_parameters_are_those_of_dense_bases():
    dense, groups = adapted(30, 24, 6, 1), adapted(30, 24, 6, 3)
    assert {n: p.shape for n, p in dense.named_parameters()} == {n: p.shape for n, p in groups.named_parameters()}
    assert dense.state_dict().keys() == groups.state_dict().keys()


def test_dense_settings_are_written_as_before_there_were_groups(tmp_path):
    save_adapter(adapted(30, 24, 6, 1), tmp_path / "dense")
    save_adapter(adapted(30, 24, 6, 3), tmp_path / "groups")
    dense, groups = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("dense", "groups"))
    assert groups.keys() - dense.keys() == {"groups"} and groups["groups"] == 3
    assert dense.keys() - groups.keys() == set()
    assert RandLoRAConfig(rank=6, groups=1).to_dict() == RandLoRAConfig(rank=6).to_dict()
    assert RandLoRAConfig(rank=6, groups=3, allow_rank_loss=True).to_dict()["allow_rank_loss"] is True


def test_adapters_share_bases_of_the_same_groups_only():
    model = nn.Sequential(nn.Linear(24, 30), nn.Linear(30, 24))
    inject_adapter(model, RandLoRAConfig(rank=6, groups=3), "all-linear")
    for name, config in {
        "same": RandLoRAConfig(rank=6, groups=3, alpha=7),
        "dense": RandLoRAConfig(rank=6),
        "fewer": RandLoRAConfig(rank=6, groups=2),
        "lora": LoRAConfig(rank=2),
    }.items():
        add_adapter(model, config, name)
    first = adapter_bases(model, "default")[6]
    assert adapter_bases(model, "same")[6] is first
    assert len({id(adapter_bases(model, name)[6]) for name in ("default", "dense", "fewer")}) == 3


def test_covers_looks_at_groups_units_and_distributions():
    uniform, signs = distribution("uniform"), distribution("binary")

    def bases(**fields) -> SharedBases:
        return SharedBases(0, {"A": Matrix(**{"shape": (2, 9), "entries": uniform, **fields})})

    large = bases(shape=(3, 10), groups=2, unit=1.5)
    assert large.covers(bases(groups=2, unit=1.5))
    different = [{"groups": 3, "unit": 1.5}, {"groups": 2}, {"groups": 2, "unit": 1.5, "entries": signs}]
    different += [{"groups": 2, "unit": 1.5, "shape": shape} for shape in ((4, 9), (3, 11), (3, 10, 1))]
    assert not any(large.covers(bases(**fields)) for fields in different)
