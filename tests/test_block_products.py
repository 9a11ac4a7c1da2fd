"""The command that times products with blocks by torch and by Triton, on tiny layers in Triton's interpreter.

The interpreter has to be chosen before Triton is imported: a child runs this file in it, on a CPU.
"""

import csv
import functools
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton_interpreter import INTERPRETED, check_in_interpreter, needs_triton, outside_of_it

from randlora_core.benchmarking import block_products, measure, pages
from randlora_core.benchmarking.block_products import (
    CHECKED,
    PRODUCTS,
    STEPS,
    WAYS,
    compute,
    draw_operands,
    largest_errors,
    main,
    measure_all,
    products_by,
    step_functions,
)
from randlora_core.benchmarking.cases import layer_case
from randlora_core.benchmarking.measure import Step
from randlora_core.benchmarking.report import ResultsFile
from randlora_core.ops import linear, products

interpreted = pytest.mark.skipif(not INTERPRETED, reason="is run by test_this_file_in_the_interpreter")

CPU = torch.device("cpu")
COMMITTED = pages.RESULTS / "blocks_h200.csv"
KERNELS = ("into", "out_of", "gradient_of_scaled_a")


@pytest.fixture
def tiny(monkeypatch):
    """Two layers with 5 bases of rank 3, in the formats that the interpreter has, and as few rounds as there can be."""
    monkeypatch.setattr(block_products, "LAYERS", ((20, 14, 3), (14, 20, 3)))
    monkeypatch.setattr(block_products, "TOKENS", (9, 2))
    monkeypatch.setattr(block_products, "FORMATS", ("float32",))
    monkeypatch.delitem(block_products.LIMITS, "bfloat16")
    monkeypatch.setattr(block_products, "ROUNDS", 1)


@pytest.fixture
def kernel_calls(monkeypatch):
    """The names of the kernels' functions, one for each call."""
    kernels, calls = import_module("randlora_core.ops.triton_blocks"), []

    def counted(name, function):
        def call(*arguments):
            calls.append(name)
            return function(*arguments)

        return call

    for name in KERNELS:
        monkeypatch.setattr(kernels, name, counted(name, getattr(kernels, name)))
    return calls


@pytest.fixture
def untimed(monkeypatch):
    """Nothing is computed: every function that would be timed takes 1 ms."""
    monkeypatch.setattr(block_products, "draw_operands", lambda *arguments: None)
    monkeypatch.setattr(block_products, "step_functions", lambda case, device: dict.fromkeys(STEPS))
    monkeypatch.setattr(
        block_products, "median_milliseconds", lambda functions, **limits: dict.fromkeys(functions, 1.0)
    )


@pytest.fixture
def a_gpu(monkeypatch):
    """The command takes this machine for one with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(block_products, "multiplies_bf16", lambda device: True)
    monkeypatch.setattr(block_products, "hardware", lambda device: "a GPU")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in ("ms", "hardware")} for row in rows]


@needs_triton
def test_the_file_has_the_rows_and_columns_of_the_committed_one(untimed, a_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(block_products, "largest_errors", lambda device: {("float32", "triton"): 4e-7})
    assert main(["--out", str(tmp_path / "new")]) == 0
    path = tmp_path / "new" / "blocks_cuda.csv"
    assert path.read_text().splitlines()[0] == COMMITTED.read_text().splitlines()[0]
    rows = read(path)
    assert without_times(rows) == without_times(read(COMMITTED))
    assert {(row["kind"], row["ms"]) for row in rows} == {(name, "1.0") for name in (*PRODUCTS, "step")} | {
        ("all five", "5.0")
    }
    assert pages.table(path).count("\n| ") == pages.table(COMMITTED).count("\n| ")
    assert pages.table(path).splitlines()[-1].startswith("ms, medians; a GPU, triton ")
    assert "float32 triton 4.0e-07" in capsys.readouterr().out


@needs_triton
def test_a_wrong_product_ends_the_command_with_one_line_and_no_file(untimed, a_gpu, tmp_path, monkeypatch, capsys):
    def wrong(device):
        raise ValueError("into(wide, B) by triton is wrong")

    monkeypatch.setattr(block_products, "largest_errors", wrong)
    assert main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: into(wide, B) by triton is wrong\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["is_available", "is_bf16_supported"])
def test_without_a_gpu_one_line_says_so(tmp_path, capsys, monkeypatch, missing):
    for name in ("is_available", "is_bf16_supported"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name, **settings: name != missing)
    assert main(["--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("error: this needs a GPU")
    assert not (tmp_path / "new").exists()


def test_without_triton_one_line_says_so(a_gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("error: this needs the package triton")


def test_the_rule_for_triton_is_put_back():
    rule = products.by_triton
    with pytest.raises(KeyError), products_by("triton"):
        assert products.by_triton(torch.ones(1, 1), 1, 1, 1)
        raise KeyError
    assert products.by_triton is rule


def test_functions_are_timed_in_alternated_rounds_and_the_median_is_taken(monkeypatch):
    now, calls = [0.0], []
    seconds = {"a": [7, 7, 1, 9, 2, 3], "b": [7, 7, 5, 5, 4, 6]}  # two calls each before the rounds
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def function(name):
        calls.append(name)
        now[0] += seconds[name].pop(0)

    functions = {name: functools.partial(function, name) for name in "ab"}
    # Three rounds take 26 s, and the fourth, begun before the limit, another 9.
    found = measure.median_milliseconds(functions, rounds=9, seconds=30.0, device=CPU)
    assert found == {"a": 2500.0, "b": 5000.0}
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ba" + "ab"


@interpreted
def test_products_are_computed_by_the_way_they_are_named_after(kernel_calls):
    operands = draw_operands(20, 14, 3, 9, "float32", CPU)
    for name, product in CHECKED.items():
        for way in WAYS:
            kernel_calls.clear()
            compute(product, way, operands)
            assert [call.startswith(name.partition("(")[0]) for call in kernel_calls] == [True] * (way == "triton")


@interpreted
@pytest.mark.parametrize("sides", [(20, 14), (14, 20)])
def test_steps_are_of_the_method_path_and_way_they_are_named_after(sides, kernel_calls, monkeypatch):
    used, forward_backward = {}, Step.forward_backward

    def checked(step):
        assert step.method == name.partition(" by ")[0]
        assert linear._default_path == ("activation" if "activations" in name else "auto")
        forward_backward(step)
        assert all(parameter.grad is not None for parameter in step.trained)

    monkeypatch.setattr(Step, "forward_backward", checked)
    for name, step in step_functions(layer_case(*sides, 9, 3), CPU).items():
        kernel_calls.clear()
        step()
        used[name] = set(kernel_calls)
    assert list(used) == list(STEPS)
    assert used["randlora_blocks by activations and Triton"] == set(KERNELS)
    assert not any(kernels for name, kernels in used.items() if "Triton" not in name)


@interpreted
def test_everything_is_timed_and_written(tiny, tmp_path):
    table = ResultsFile(tmp_path / "blocks_tiny.csv")
    measure_all(table, "a machine", CPU)
    rows = read(table.path)
    made = [(row["kind"], row["out_features"], row["in_features"], row["tokens"], row["method"]) for row in rows]
    expected = [(kind, "20", "14", t, way) for t in "92" for kind in (*PRODUCTS, "all five") for way in WAYS]
    expected += [("step", *sides, t, name) for sides in (("20", "14"), ("14", "20")) for t in "92" for name in STEPS]
    assert made == expected
    assert all(float(row["ms"]) > 0 and row["hardware"] == "a machine" for row in rows)
    assert {(row["rank"], row["format"]) for row in rows} == {("3", "float32")}
    assert pages.table(table.path).count(" -> ") == 4


@interpreted
def test_right_products_have_errors_of_rounding(tiny):
    errors = largest_errors(CPU)
    assert list(errors) == [(name, way) for name in ("float32", "float16") for way in WAYS]
    assert all(0 < error < 1e-6 for (name, _), error in errors.items() if name == "float32")
    assert all(1e-5 < error < 1e-3 for (name, _), error in errors.items() if name == "float16")


@interpreted
@pytest.mark.parametrize("change", [1e-3, float("nan")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_wrong_entry_stops_it_before_anything_is_timed(tiny, kernel, change, tmp_path, monkeypatch):
    kernels = import_module("randlora_core.ops.triton_blocks")
    right = getattr(kernels, kernel)

    def wrong(*arguments):
        result = right(*arguments)
        result.view(-1)[-1] += change * result.norm()
        return result

    monkeypatch.setattr(kernels, kernel, wrong)
    monkeypatch.setattr(block_products, "median_milliseconds", lambda *arguments, **limits: pytest.fail("timed"))
    start = "gradient" if kernel.startswith("gradient") else kernel
    with pytest.raises(ValueError, match=rf"^{start}.* by triton, 20 x 14, 9 tokens, float32: .* is rounding$"):
        measure_all(ResultsFile(tmp_path / "blocks_tiny.csv"), "a machine", CPU)
    assert list(tmp_path.iterdir()) == []


@outside_of_it
def test_this_file_in_the_interpreter():
    check_in_interpreter(__file__)
