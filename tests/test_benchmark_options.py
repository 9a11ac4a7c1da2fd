"""Options and places that the benchmark refuses, each with one line before anything is measured."""

import dataclasses

import pytest
import torch

from randlora_core import benchmark
from randlora_core.benchmarking import cases, memory, whole_models
from randlora_core.benchmarking.measure import measure_memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    for name in ("measure", "Step"):
        monkeypatch.setattr(benchmark, name, pytest.fail)
    monkeypatch.setattr(benchmark.table10, "measure_stack", pytest.fail)
    monkeypatch.setattr(benchmark.grid, "measure_point", pytest.fail)


def refusal(arguments: list[str], capsys) -> str:
    """The line with which the command ends, with exit code 2."""
    assert benchmark.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--batch", "4"], "--batch has no effect without --models"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["--tokens", "64"], "--tokens has no effect without --table10"),
        (["--rank", "6"], "--rank has no effect without --groups"),
        (["--groups", "3"], "--groups 3 with rank 10; accepted: 1, 2, 5, 10"),
        (["--groups", "--rank", "385"], "--rank 385 is above the smallest width of the blocks, 384"),
        (["--groups", "30", "--rank", "30"], "--groups 30 with rank 30; accepted: 1, 2, 3, 5, 6, 10"),
        (["--groups", "2", "2"], "--groups names 2 more than once"),
        (["--groups", "--methods", "randlora"], "--methods has no effect on --groups"),
        (["--groups", "0"], "'0' is no whole number above 0"),
        (["--grid", "--seconds", "3"], "--seconds has no effect on --grid and --profile"),
        (["--grid", "--half"], "--half has no effect on --grid"),
        (["--quick", "--seconds", "-3"], "'-3' is no number of seconds, 0 or more"),
        (["--quick", "--seconds", "soon"], "'soon' is no number of seconds"),
        (["--table10", "--methods", "randlora"], "--methods has no effect on"),
        (["--quick", "--methods", "lora"], "--methods needs randlora"),
        (["--models", "clip_vit_z1"], "unknown model 'clip_vit_z1'; known: mini_clip"),
        (["--quick", "--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["--quick", "--device", "meta"], "device 'meta' cannot be used"),
        (["--quick", "--methods", "randlora", "lora", "full", "lora"], "--methods names lora more than once"),
        (["--models", "mini_clip", "mini_clip"], "--models names mini_clip more than once"),
        (["--profile"], "--out has no effect on --profile"),
        (["--profile", "--rounds", "5"], "--rounds has no effect on --profile"),
        (["--table10", "--tokens", "16449"], "--tokens 16449 is above the largest of the paper's batches, 16448"),
        (["--models", "mini_clip", "--batch", "100000000"], "a smaller --batch"),
        (["--table10", "--tokens", "0"], "'0' is no whole number above 0"),
        (["--rounds", "-2"], "'-2' is no whole number above 0"),
    ],
)
def test_bad_options_get_one_line_and_exit_code_2(arguments, message, capsys, tmp_path):
    assert message in refusal([*arguments, "--out", str(tmp_path)], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_out_that_takes_no_files_is_refused_before_anything_is_measured(below, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / "file" / below)
    assert f"--out {out!r} is no folder that files can be written to" in refusal(["--quick", "--out", out], capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--models", "mini_clip"], "models"),
        (["--models", "mini_clip", "--half"], "models_bfloat16"),
        (["--quick"], "quick"),
        (["--groups", "--half"], "groups_bfloat16"),
        ([], "shapes"),
        (["--table10"], "table10"),
        (["--grid", "--device", "cpu"], "grid_cpu"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".part.csv", ".png"])
def test_a_folder_in_the_place_of_a_file_is_refused(arguments, name, ending, capsys, tmp_path):
    folder = tmp_path / f"{name}{ending}"
    folder.mkdir()
    assert f"{folder} is a folder, where a file of this name" in refusal([*arguments, "--out", str(tmp_path)], capsys)


def test_what_a_stopped_run_left_is_not_overwritten(capsys, tmp_path):
    left = tmp_path / "quick.part.csv"
    left.write_text("an hour of measurements")
    line = refusal(["--quick", "--out", str(tmp_path)], capsys)
    assert f"{left} is left from a run that was stopped; move or delete it, or choose another --out" in line
    assert left.read_text() == "an hour of measurements"


@pytest.mark.parametrize("half", [False, True])
def test_a_model_beyond_memory_is_refused_with_both_numbers(half, capsys, tmp_path, monkeypatch):
    case = whole_models.model_case("mini_clip", 4, half=half)
    needed = memory.needed_bytes(case, ("full", "randlora"))
    arguments = ["--models", "mini_clip", "--batch", "4", "--methods", "full", "randlora", "--out", str(tmp_path)]
    arguments += ["--half"] if half else []
    monkeypatch.setattr(memory, "available_bytes", lambda device: needed - 1)
    line = refusal([*arguments, "--device", "cpu"], capsys)
    gigabytes = f"{needed / 1e9:,.1f} GB"
    assert f"mini_clip (batch 4): a step needs about {gigabytes} of memory, and {gigabytes} of cpu memory are" in line
    for enough in (needed, None):
        monkeypatch.setattr(memory, "available_bytes", lambda device, enough=enough: enough)
        memory.check_fits(case, ("full", "randlora"), CPU, "")


def test_table_10_beyond_memory_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**8)
    assert "CLIP ViT-B/32 block x 2: a step needs about " in refusal(["--table10", "--out", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    "case",
    [
        cases.vision_case("small", 128, 8, 40, rank=8),
        cases.vision_case("small", 128, 8, 40, rank=8, half=True),
        cases.language_case("small", (128, 320, 64), 4, 64, rank=8),
        whole_models.model_case("mini_clip", 16),
    ],
    ids=lambda case: f"{case.name}, {case.format}",
)
def test_the_estimate_is_near_what_a_step_takes(case):
    """Within a third; the profiler counts gradients and temporaries of the backward pass as well."""
    for method in ("full", "lora"):
        ((peak, _),) = measure_memory(case, (method,), device=CPU).values()
        estimate = memory.needed_bytes(case, (method,))
        assert 0.66 < estimate / peak < 1.5, (method, estimate / peak)


def test_the_estimate_grows_with_the_batch_and_allocates_nothing(monkeypatch):
    small, large = (
        memory.needed_bytes(whole_models.model_case("qwen2_05b", batch), ("randlora",)) for batch in (1, 1001)
    )
    weights = 4 * 494_032_768  # parameters of Qwen2-0.5B, whose head is tied to its embedding
    assert small > weights and large - weights == pytest.approx(1001 * (small - weights), rel=0.01)


@pytest.mark.parametrize(
    ("limit", "usage", "expected"), [(None, None, 5000 * 1024), ("max", "7", 5000 * 1024), ("3000", "1000", 2000)]
)
def test_free_memory_is_the_machines_or_the_containers(limit, usage, expected, tmp_path, monkeypatch):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       9000 kB\nMemAvailable:       5000 kB\n")
    for name, value in (("LIMIT", limit), ("USAGE", usage)):
        path = tmp_path / name
        monkeypatch.setattr(memory, name, path)
        if value is not None:
            path.write_text(f"{value}\n")
    monkeypatch.setattr(memory, "MEMORY_INFO", info)
    assert memory.available_bytes(CPU) == expected
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "absent")
    assert memory.available_bytes(CPU) is None


def test_methods_that_a_model_cannot_have_are_named(capsys, tmp_path, monkeypatch):
    case = dataclasses.replace(cases.vision_case("small", 64, 2, 20, rank=8), for_peft=False)
    monkeypatch.setattr(cases, "quick_cases", lambda half: (case,))
    monkeypatch.setattr(benchmark, "measure", lambda case, methods, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert benchmark.main(["--quick", "--methods", "randlora", "peft_lora", "--out", str(tmp_path)]) == 130
    assert "small block: without peft_lora, since PEFT cannot adapt its attn.in_proj" in capsys.readouterr().out
