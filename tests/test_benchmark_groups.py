"""Step time against the number of groups of the bases, and the plots, on made times and one small run."""

import pytest
from test_benchmark import CPU, SMALL, timing

from randlora_core import benchmark
from randlora_core.adapters.state import adapter_layers
from randlora_core.benchmarking import against_groups, pages
from randlora_core.benchmarking.methods import GROUPS, apply_method
from randlora_core.benchmarking.plots import over_groups, over_tokens
from randlora_core.benchmarking.report import Result, read_cases


def test_step_time_against_the_number_of_groups(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(against_groups, "BLOCKS", (("small", 64, 2, 20), ("small", 64, 1, 8)))
    benchmark.main(["--groups", "4", "2", "--rank", "8", "--rounds", "3", "--seconds", "0", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "/ lora" in printed and "/ dense" in printed and "randlora_g4 (" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"groups.csv", "groups.png"}
    found = read_cases(tmp_path / "groups.csv")
    assert [next(iter(rows.values()))["tokens"] for rows in found] == ["40", "8"]
    for rows_of_case in found:
        assert list(rows_of_case) == ["full", "lora", "randlora", "randlora_g2", "randlora_g4"]
        ours = [rows_of_case[method] for method in rows_of_case if method in GROUPS]
        assert len({row["trainable"] for row in ours}) == 1
        assert [bool(row["to_dense"]) for row in ours] == [False, True, True]
    lines = pages.table(tmp_path / "groups.csv").splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:8]] == ["1", "2", "4"] * 2


def test_a_method_with_groups_has_them():
    layers = adapter_layers(apply_method("randlora_g4", SMALL, CPU).module)
    assert {layer.update.config.groups for layer in layers.values()} == {4}
    with pytest.raises(ValueError, match="unknown method 'randlora_g65'"):
        apply_method("randlora_g65", SMALL, CPU)


def test_plots_have_panels_of_dense_bases_and_of_groups():
    times = {"randlora": 3.0, "randlora_blocks": 2.0, "randlora_g2": 4.0, "lora": 1.0, "full": 6.0}
    result = Result(SMALL, {m: timing(m, seconds) for m, seconds in times.items()})
    tokens = {panel.title: panel.curves for panel in over_tokens([result])}
    assert tokens["randlora / lora"] == {"small block": [(0.625, 3.0, 3.0, 3.0)]}
    assert tokens["randlora_blocks / lora"] == {"small block": [(0.625, 2.0, 2.0, 2.0)]}
    assert len(tokens) == 6 and tokens["randlora_blocks / peft_randlora"] == {}
    without = Result(SMALL, {m: result.timings[m] for m in ("randlora", "lora")})
    assert len(over_tokens([without])) == 3
    lora, dense, full = over_groups([result])
    assert lora.curves == {"small block, 40 tokens": [(1, 3.0, 3.0, 3.0), (2, 4.0, 4.0, 4.0)]}
    assert dense.curves["small block, 40 tokens"][1] == (2, *3 * [pytest.approx(4 / 3)])
    assert full.curves["small block, 40 tokens"][0] == (1, 0.5, 0.5, 0.5)
