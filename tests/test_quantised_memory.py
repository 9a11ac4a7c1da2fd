"""The command that measures RandLoRA beside LoRA on a 4-bit model, on two small blocks in place of Llama-3's."""

import csv
import dataclasses

import pytest
import torch

from randlora_core.adapters.state import model_tensors, quantised_layers, tensor_bytes
from randlora_core.benchmarking import quantised_memory
from randlora_core.benchmarking.cases import block_sizes, language_case
from randlora_core.benchmarking.measure import Step, measure_memory
from randlora_core.benchmarking.methods import apply_method
from randlora_core.benchmarking.quantised_memory import main, measure_peaks, quantised_case
from randlora_core.benchmarking.table10 import STACKS, Stack
from randlora_core.models.language_models import LANGUAGE_MODELS
from randlora_core.ops import cost

pytest.importorskip("bitsandbytes")

CPU = torch.device("cpu")


def small_block(rows, blocks, half):
    return language_case("small", (128, 256, 64), rows, 32, 8, half=half, depth=blocks)


SMALL = Stack("Llama-3-8B", 7, "lora", 2, 32, small_block)
ENTRIES = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256
"""Weights of the linear layers of a small block."""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(quantised_memory, "STACKS", (SMALL,))


def test_all_linear_layers_are_in_four_bits_and_compute_what_the_decoded_ones_do():
    case = quantised_case(small_block(2, 2, False), torch.float32, checkpointing=False)
    module, plain = case.build(CPU), small_block(2, 2, False).build(CPU)
    layers = quantised_layers(module)
    assert sum(layer.in_features * layer.out_features for layer in layers) == 2 * ENTRIES
    assert not any(parameter.requires_grad for parameter in module.parameters())
    for name, layer in module.named_modules():
        if layer in layers:
            plain.get_submodule(name).weight.copy_(layers[layer].dense(layer))
    x = case.inputs(CPU)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)
    again = quantised_case(small_block(2, 2, False), torch.float32, checkpointing=True).build(CPU)
    assert torch.equal(again(x), module(x))
    half = quantised_case(small_block(2, 1, False), torch.bfloat16, checkpointing=False)
    assert half.half and half.build(CPU)(half.inputs(CPU)).dtype == torch.bfloat16
    assert half.build(torch.device("meta"))[0].q_proj.weight.is_meta


def test_the_peak_is_carried_on_from_one_and_two_blocks():
    rows = {way: measure_peaks(SMALL, torch.float32, CPU, checkpointing=way) for way in (False, True)}
    for row in (*rows[False], *rows[True]):
        one, two = row["peak_bytes_1_block"], row["peak_bytes_2_blocks"]
        assert row["peak_bytes_7_blocks_extrapolated"] == one + 6 * (two - one) > two > one > ENTRIES // 2
    for lora, *others in rows.values():
        assert (lora["method"], lora["ratio_to_lora"]) == ("lora", 1.0)
        assert [other["method"] for other in others] == ["randlora", "randlora_blocks"]
        for other in others:
            ratio = other["peak_bytes_7_blocks_extrapolated"] / lora["peak_bytes_7_blocks_extrapolated"]
            assert other["ratio_to_lora"] == pytest.approx(ratio, abs=1e-4)
    plain, checkpointed = (rows[way][0] for way in (False, True))
    assert checkpointed["peak_bytes_7_blocks_extrapolated"] < 0.8 * plain["peak_bytes_7_blocks_extrapolated"]


@pytest.mark.parametrize(("ways", "measured"), [("with", ["True"]), ("without", ["False"])])
def test_one_way_can_be_measured_alone(small, tmp_path, monkeypatch, ways, measured):
    monkeypatch.setattr(quantised_memory, "LIMIT", 100.0)
    assert main(["--device", "cpu", "--dtype", "float32", "--out", str(tmp_path), "--checkpointing", ways]) == 0
    with (tmp_path / "quantised_memory_cpu.csv").open() as file:
        assert [row["checkpointing"] for row in csv.DictReader(file)] == len(quantised_memory.METHODS) * measured


def small_16_bit_case(blocks):
    return quantised_case(small_block(16, blocks, False), torch.bfloat16, checkpointing=False)


def saved_bytes(method):
    """Bytes that a block on a 4-bit base keeps for its backward pass, beside what the module holds anyway."""
    case = small_16_bit_case(1)
    step = Step(case, apply_method(method, case, CPU), case.inputs(CPU))
    held = {tensor.untyped_storage()._cdata for tensor in model_tensors(step.module)}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.forward_backward()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in held)


QUANTISED = cost.Problem(512, 64, 128, 64, torch.bfloat16, "cuda", may_sum=False, input_grad=True, vector_grad=True)
"""A layer on a quantised base, of which only what `cost.allowed` looks at matters."""


@pytest.mark.parametrize("paths", cost.allowed(QUANTISED), ids=lambda paths: "-".join(dataclasses.astuple(paths)))
def test_a_block_keeps_no_more_for_its_backward_pass_than_loras(monkeypatch, paths):
    """By whatever paths the cost model of a device may choose, and so also by those it takes on CUDA."""
    monkeypatch.setattr(cost, "choose", lambda problem, path: paths)
    assert ENTRIES < saved_bytes("randlora") <= saved_bytes("lora")


@pytest.mark.parametrize("method", ["lora", "randlora"])
def test_the_peak_grows_by_what_another_block_holds_and_keeps(method):
    held, peaks = [], []
    for case in map(small_16_bit_case, (1, 2)):
        trained = (measured := apply_method(method, case, CPU)).trained
        optimizer = 2 * tensor_bytes(trained) + 4 * len(trained)  # AdamW's two moments, and a counter for each tensor
        held.append(tensor_bytes(model_tensors(measured.module)) + optimizer)
        peaks.append(measure_memory(case, (method,), device=CPU)[method][0])
    assert peaks[1] - peaks[0] == pytest.approx(held[1] - held[0] + saved_bytes(method), abs=100)


def test_more_rows_need_more_memory():
    few, many = (dataclasses.replace(SMALL, batch=rows) for rows in (1, 8))
    peaks = [measure_peaks(stack, torch.float32, CPU, checkpointing=False)[1] for stack in (few, many)]
    assert peaks[0]["peak_bytes_1_block"] < peaks[1]["peak_bytes_1_block"]


@pytest.mark.parametrize(("limit", "code"), [(100.0, 0), (0.1, 1)])
def test_the_command_says_whether_the_goal_is_met(small, tmp_path, capsys, monkeypatch, limit, code):
    monkeypatch.setattr(quantised_memory, "LIMIT", limit)
    assert main(["--device", "cpu", "--dtype", "float32", "--out", str(tmp_path / "new")]) == code
    lines = capsys.readouterr().out.splitlines()
    assert sum("extrapolated" in line for line in lines) == 6
    assert [line.rpartition(": ")[2] for line in lines[-4:]] == ["met" if code == 0 else "NOT met"] * 4
    with (tmp_path / "new" / "quantised_memory_cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["checkpointing"]) for row in rows] == [
        (method, way) for way in ("False", "True") for method in ("lora", "randlora", "randlora_blocks")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device tpu cannot be used; accepted here: cpu"),
        (["--rows", "0"], "--rows 0; accepted: 1 or more"),
        (["--rows", "100000000"], "GB of memory, and"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(small, tmp_path, capsys, arguments, message):
    assert main(["--device", "cpu", "--out", str(tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_bitsandbytes_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('loading in 4 bits needs bitsandbytes: pip install "randlora[quantization]"')


def test_the_real_widths_are_llamas():
    stack = next(stack for stack in STACKS if stack.model == "Llama-3-8B")
    assert (stack.depth, stack.batch, stack.length) == (32, 4, 256)
    assert block_sizes("llama3_8b") == (4096, 14336, 1024) and LANGUAGE_MODELS["llama3_8b"].sizes["hidden_size"] == 4096
