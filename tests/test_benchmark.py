"""The benchmark's arithmetic on made times, and one small run of each kind; nothing here judges a time."""

import csv
import dataclasses
import gc
import re

import pytest
import torch

from randlora_core import benchmark
from randlora_core.adapters.state import adapter_bases, adapter_layers, tensor_bytes
from randlora_core.benchmarking import cases, grid, table10, whole_models
from randlora_core.benchmarking import measure as measuring
from randlora_core.benchmarking.goals import verdicts
from randlora_core.benchmarking.measure import Step, Timing, measure, measure_memory, peak_memory
from randlora_core.benchmarking.methods import MEASURED_METHODS, MeasuredModule, apply_method, equal_rank, sharing_copy
from randlora_core.benchmarking.report import Result, ResultsFile, read_cases, rows

CPU = torch.device("cpu")
MADE_TIMINGS = (
    ("randlora", (0.65, 0.66, 0.67), 101),
    ("peft_randlora", (1.0, 1.1, 1.0), 150),
    ("full", (0.6, 0.6, 0.6), 120),
    ("lora", (0.5, 0.4, 0.5), 100),
    ("peft_lora", (0.5, 0.5, 0.5), 100),
)
SMALL = cases.vision_case("small", 64, 2, 20, rank=8)


def timing(method: str, *seconds: float, peak: int = 0) -> Timing:
    return Timing(method, 1, list(seconds), [0.0] * len(seconds), peak, "a counter")


@pytest.mark.parametrize("method", MEASURED_METHODS)
def test_every_method_steps_and_trains_what_it_says(method):
    measured = apply_method(method, SMALL, CPU)
    step = Step(SMALL, measured, SMALL.inputs(CPU))
    step.forward_backward()
    assert step.inputs.grad.abs().sum() > 0
    assert (len(measured.trained) == 0) == (method == "frozen")
    assert all(parameter.grad is not None for parameter in measured.trained)
    step.clear()
    assert step.inputs.grad is None and all(parameter.grad is None for parameter in measured.trained)


def test_equal_rank_gives_lora_about_randloras_parameters():
    counts = {
        method: sum(p.numel() for p in apply_method(method, SMALL, CPU).trained) for method in ("lora", "randlora")
    }
    per_rank = counts["lora"] / equal_rank(SMALL)
    assert abs(counts["lora"] - counts["randlora"]) <= per_rank / 2


def test_methods_share_the_frozen_weights_and_full_fine_tuning_does_not():
    base = SMALL.build(CPU)
    shared = {tensor.data_ptr() for tensor in base.parameters()}
    for method in MEASURED_METHODS:
        measured = apply_method(method, SMALL, CPU, base)
        frozen = [p.data_ptr() for p in measured.module.parameters() if not p.requires_grad]
        own = method == "full"
        assert (shared <= set(frozen)) != own
        assert shared.isdisjoint(p.data_ptr() for p in measured.trained)
    assert not any(p.requires_grad for p in base.parameters())


def test_a_case_is_built_once_for_all_and_once_for_full_fine_tuning():
    built = []
    case = dataclasses.replace(SMALL, build=lambda device: built.append(device.type) or SMALL.build(device))
    measure(case, ("frozen", "full", "lora", "randlora", "vera"), rounds=1, seconds=0.0, device=CPU, memory=False)
    assert built.count("cpu") == 2


def test_copies_share_buffers_too():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    copied = sharing_copy(module)
    assert copied is not module and copied[1] is not module[1]
    for (name, tensor), (other_name, other) in zip(
        module.state_dict(keep_vars=True).items(), copied.state_dict(keep_vars=True).items(), strict=True
    ):
        assert name == other_name and tensor is other


def test_the_other_methods_are_held_against_pefts():
    one = (1.0, 1.0, 1.0)
    timings = {"randlora": timing("randlora", *one), "lora": timing("lora", 1.2, 1.0, 1.05)}
    timings |= {"peft_lora": timing("peft_lora", *one), "dora": timing("dora", *one), "peft_vera": timing("v", *one)}
    (verdict,) = Result(SMALL, timings).verdicts
    assert (verdict.goal, verdict.value) == ("LoRA's step time / PEFT's LoRA", 1.05)
    assert verdict.limit == pytest.approx(1.1)  # quartiles 1.025 and 1.125
    assert verdict.met
    timings["lora"] = timing("lora", 1.2, 1.2, 1.2)
    assert not Result(SMALL, timings).verdicts[0].met


def test_ratios_are_of_the_same_round():
    ours, other = timing("randlora", 1.0, 20.0, 3.0), timing("full", 2.0, 20.0, 1.0)
    assert ours.ratio_to(other) == pytest.approx((0.75, 1.0, 2.0))
    assert ours.quartiles() == pytest.approx((2.0, 3.0, 11.5))


@pytest.mark.parametrize(
    ("tokens", "half", "kind", "limits"),
    [
        (32, False, "block", {"(a)": 1.0}),
        (400, False, "block", {"(a)": 0.7, "(b)": 1.10, "(c)": 1.02}),
        (800, False, "layer", {"(a)": 0.6, "(b)": 1.18125, "(c)": 1.02}),
        (1600, False, "block", {"(a)": 0.6, "(b)": 1.05, "(c)": 1.02}),
        (1600, True, "block", {"(a)": 0.6, "(c)": 1.02}),
    ],
)
def test_goals_that_apply(tokens, half, kind, limits):
    case = dataclasses.replace(SMALL, tokens=tokens, smaller=100, half=half, kind=kind)
    timings = {
        "randlora": timing("randlora", 0.65, 0.65, peak=101),
        "peft_randlora": timing("peft_randlora", 1.0, 1.0),
        "full": timing("full", 0.5, 0.5),
        "lora": timing("lora", 0.4, 0.4, peak=100),
    }
    found = Result(case, timings).verdicts
    assert {verdict.goal[:3]: verdict.limit for verdict in found} == pytest.approx(limits)
    for verdict in found:
        expected = {"(a)": verdict.limit >= 0.65, "(b)": False, "(c)": True}[verdict.goal[:3]]
        assert verdict.met == expected


@pytest.mark.parametrize(
    ("kind", "tokens", "limits"),
    [
        ("layer", 80, {"(b)": 1.0, "(d)": 1.02}),
        ("block", 80, {"(a)": 1.15, "(b)": 1.0, "(d)": 1.02}),
        ("block", 100, {"(a)": 1.15, "(b)": 1.0, "(c)": 1.0, "(d)": 1.02}),
    ],
)
def test_goals_of_bases_in_groups(kind, tokens, limits):
    case = dataclasses.replace(SMALL, tokens=tokens, smaller=100, kind=kind)
    timings = {m: timing(m, *times, peak=peak) for m, times, peak in MADE_TIMINGS}
    for seconds, peak, met in ((0.4, 101, True), (0.9, 103, False)):
        timings["randlora_blocks"] = timing("randlora_blocks", *(3 * [seconds]), peak=peak)
        timings |= {"randlora": timing("randlora", *(3 * [0.5])), "lora": timing("lora", *(3 * [0.4]), peak=100)}
        found = [verdict for verdict in Result(case, timings).verdicts if verdict.goal.startswith("blocks ")]
        assert {verdict.goal[7:10]: verdict.limit for verdict in found} == pytest.approx(limits)
        assert all(verdict.met == met for verdict in found)
    assert cases.language_case("tiny", (128, 192, 64), 1, 6, rank=16).blocks_limit == 1.10


def test_the_measured_blocks_are_in_groups_and_have_randloras_parameters():
    dense, blocks = (apply_method(method, SMALL, CPU) for method in ("randlora", "randlora_blocks"))
    assert [p.shape for p in dense.trained] == [p.shape for p in blocks.trained]
    assert {layer.update.config.groups for layer in adapter_layers(blocks.module).values()} == {8}


def test_peak_memory_counts_what_a_step_holds():
    class Twice(torch.nn.Module):
        def forward(self, x):
            return (x.exp().exp()).sum(0, keepdim=True)  # saves both results: two tensors of x's size

    x = torch.randn(250, 1000, requires_grad=True)
    case = dataclasses.replace(SMALL, half=False)
    step = Step(case, MeasuredModule("frozen", Twice()), x)
    step.forward_backward()
    step.clear()
    peak, counter = peak_memory(step, CPU)
    assert "live tensor bytes" in counter
    size = tensor_bytes([x])
    assert size == 10**6
    assert 4 * size <= peak <= 6 * size  # x, its gradient, and two saved results; temporaries of the backward pass


def test_memory_alone_equals_that_of_a_measured_method():
    methods = ("full", "randlora")
    timings = measure(SMALL, methods, rounds=3, seconds=0.0, device=CPU)
    assert measure_memory(SMALL, methods, device=CPU) == {t.method: (t.peak_bytes, t.counter) for t in timings}


def test_what_a_library_allocates_once_for_all_is_counted_for_no_method():
    workspace = []

    class NeedsWorkspace(torch.nn.Linear):
        def forward(self, x):
            if not workspace:
                workspace.append(torch.empty(10**6, device=x.device))
            return super().forward(x)

    case = dataclasses.replace(SMALL, build=lambda device: torch.nn.Sequential(NeedsWorkspace(64, 64, device=device)))
    first, later = (measure_memory(case, ("full",), device=CPU)["full"][0] for _ in range(2))
    assert workspace and 10**4 < first == later < 10**6


def test_on_the_meta_device_no_weight_is_drawn():
    torch.manual_seed(0)
    fresh = torch.get_rng_state()
    assert all(parameter.is_meta for parameter in SMALL.build(torch.device("meta")).parameters())
    assert torch.equal(torch.get_rng_state(), fresh)
    SMALL.build(CPU)
    assert not torch.equal(torch.get_rng_state(), fresh)


def test_methods_share_the_gradient_of_the_output_and_are_let_go_once_measured(monkeypatch):
    alive, upstreams = [], []

    def count(step, device):
        upstreams.append(step.upstream)
        alive.append(sum(type(thing) is Step for thing in gc.get_objects()))
        return 1, "made up"

    gc.collect()
    monkeypatch.setattr(measuring, "peak_memory", count)
    measure(SMALL, ("frozen", "lora", "randlora"), rounds=3, seconds=0.0, device=CPU)
    assert alive == [3, 2, 1]
    assert upstreams[0] is upstreams[1] is upstreams[2] is not None


def test_peak_memory_counts_the_casts_that_bases_keep():
    step = Step(SMALL, apply_method("vera", SMALL, CPU), SMALL.inputs(CPU))
    held = tensor_bytes(measuring._module_tensors(step.module))
    step.forward_backward()
    (bases,) = adapter_bases(step.module).values()
    casts = sum(4 * getattr(bases, name).numel() for name in ("A", "B"))
    assert tensor_bytes(measuring._module_tensors(step.module)) == held + casts


def test_bytes_of_shared_storage_count_once():
    x = torch.zeros(10, 10)
    assert tensor_bytes([x, x[1:], x.T]) == 400


def test_rows_hold_ratios_and_the_counter():
    result = Result(SMALL, {m: t for m in ("randlora", "full") for t in [timing(m, 2.0, 2.0, peak=5)]})
    row = rows(result)[0]
    assert (row["method"], row["to_full"], row["step_ms"], row["peak_bytes"]) == ("randlora", 1.0, 2000.0, 5)
    assert "to_lora" not in row and "to_peft" not in row


def test_goals_from_the_file_are_those_printed(tmp_path):
    case = dataclasses.replace(SMALL, tokens=400, smaller=100)
    timings = {m: timing(m, *times, peak=peak) for m, times, peak in MADE_TIMINGS}
    result = Result(case, timings)
    table = ResultsFile(tmp_path / "made.csv")
    table.add(rows(result), "a machine")
    table.finish()
    (read,) = read_cases(table.path)
    assert verdicts(read) == result.verdicts
    assert len(result.verdicts) == 4


def test_a_stopped_run_leaves_its_cases_and_keeps_the_results_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "quick_cases", lambda half: (SMALL, dataclasses.replace(SMALL, name="second")))
    command = ["--quick", "--rounds", "3", "--seconds", "0", "--methods", "randlora", "--out", str(tmp_path)]
    assert benchmark.main(command) == 0
    before = (tmp_path / "quick.csv").read_text()

    def stopped_at_the_second(case, *args, **kwargs):
        if case.name == "second":
            raise KeyboardInterrupt
        return measure(case, *args, **kwargs)

    monkeypatch.setattr(benchmark, "measure", stopped_at_the_second)
    assert benchmark.main(command) == 130
    assert f"is in {tmp_path}/*.part.csv" in capsys.readouterr().err
    assert (tmp_path / "quick.csv").read_text() == before
    (left,) = read_cases(tmp_path / "quick.part.csv")
    assert left["randlora"]["case"] == SMALL.name and left["randlora"]["hardware"]


def test_measure_makes_at_least_three_aligned_rounds():
    timings = measure(SMALL, ("frozen", "randlora"), rounds=9, seconds=0.0, device=CPU)
    assert [len(t.step_seconds) for t in timings] == [3, 3]
    assert all(t.peak_bytes > 0 for t in timings)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quick_prints_ratios_goals_and_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "quick_cases", lambda half: (SMALL, cases.layer_case(24, 32, 240, rank=8)))
    benchmark.main(["--quick", "--rounds", "3", "--seconds", "0", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in ("small block", "layer 32 -> 24", "peft_randlora", "(a) step time", "(b) step time", "(c) peak memory"):
        assert text in printed
    benchmark.main(["--quick", "--half", "--rounds", "3", "--seconds", "0", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        f"quick{form}.{kind}" for form in ("", "_bfloat16") for kind in ("csv", "png")
    }
    with (tmp_path / "quick.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * len(benchmark.QUICK_METHODS)
    assert all(row["hardware"] and row["counter"] for row in table)
    assert (tmp_path / "quick.png").stat().st_size > 1000


@pytest.mark.parametrize("half", [False, True])
def test_profile_shows_the_operations_of_both_steps(half, monkeypatch, capsys):
    monkeypatch.setattr(cases, "quick_cases", lambda half: (dataclasses.replace(SMALL, half=half),))
    benchmark.main(["--profile", *(["--half"] if half else [])])
    printed = capsys.readouterr().out
    assert f"small block, T = 40, {'bfloat16 autocast' if half else 'float32'}" in printed
    dense, blocks, lora, full = re.split(r"\n(?:randlora_blocks|lora|full)\n", printed)
    assert "RandLoRAFunction" in dense and "RandLoRAFunction" in blocks
    assert "RandLoRAFunction" not in lora and "RandLoRAFunction" not in full
    assert "aten::" in full


def test_grid_rows_are_judged_by_the_faster_path(tmp_path, monkeypatch):
    monkeypatch.setattr(
        grid,
        "points",
        lambda halves=(), groups=(): iter([grid.Point(16, 24, 64, True, True), grid.Point(16, 16, 8, False, False, 8)]),
    )
    benchmark.main(["--grid", "--rounds", "3", "--device", "cpu", "--out", str(tmp_path)])
    found = grid.read_grid(tmp_path / "grid_cpu.csv")
    assert len(found) == 2
    assert grid.is_complete(found)
    assert not grid.is_complete(found[:1]) and not grid.is_complete([])
    point = grid.Point(768, 768, 10**6, half=False, train=True)
    assert grid.prediction(point, "cpu") == "weight"
    spread = {f"{path}_ms_q{q}": 1.0 for path in grid.PATHS for q in (1, 3)}
    slow = vars(point) | spread | {"activation_ms": 1.0, "weight_ms": 2.0}
    assert not grid.agrees(slow, "cpu")
    assert grid.slowdown(slow, "cpu") == 2
    assert grid.slowdown(slow | {"activation_ms": 3.0}, "cpu") == 1
    assert grid.agrees(slow | {"activation_ms": 3.0}, "cpu")
    assert grid.agrees(slow | {"weight_ms_q3": 2.5}, "cpu")  # within the quartiles' distance
    mixed = slow | {"auto_ms": 1.1, "auto_ms_q1": 1.0, "auto_ms_q3": 1.05}
    assert not grid.auto_is_fastest(mixed)
    assert grid.auto_is_fastest(mixed | {"auto_ms": 0.9})
    assert grid.auto_is_fastest(mixed | {"auto_ms_q3": 1.2})


def test_table10_carries_memory_on_to_the_depth(monkeypatch):
    seconds = {"randlora": 2.0, "randlora_blocks": 1.2, "full": 1.5}

    def times(case, methods, **options):
        return [timing(m, seconds.get(m, 1.0)) for m in methods]

    def peaks(case, methods, **options):
        blocks = 2 if case.name.endswith("x 2") else 1
        return {m: (100 + 10 * blocks * (2 if m == "full" else 1), "bytes") for m in methods}

    monkeypatch.setattr(table10, "measure", times)
    monkeypatch.setattr(table10, "measure_memory", peaks)
    stack = table10.STACKS[0]
    settings = {"rounds": 1, "seconds": 0, "tokens": 128, "device": CPU, "half": True}
    found = {row["method"]: row for row in table10.measure_stack(stack, **settings)}
    assert (found["lora"]["format"], found["lora"]["timed_tokens"]) == ("bfloat16 autocast", 100)
    assert found["full"]["peak_bytes_extrapolated"] == 100 + 20 * 12
    assert found["randlora"]["memory_percent"] == pytest.approx(100 * 220 / 340, abs=0.1)
    speed, verdict, *of_blocks = table10.verdicts(list(found.values()))
    assert [(v.goal[:10], v.value, v.limit) for v in of_blocks] == [
        ("blocks (a)", pytest.approx(1.2, abs=2e-3), 1.15),
        ("blocks (c)", pytest.approx(0.8), 1.0),
        ("blocks (d)", 1.0, 1.02),
    ]
    ratio = found["randlora"]["time_percent"] / found["peft_randlora"]["time_percent"]
    assert speed.value == pytest.approx(ratio) and speed.goal == "(a) CLIP ViT-B/32, step time / PEFT's RandLoRA"
    assert (verdict.value, verdict.limit, verdict.met) == (1.0, 1.02, True)
    heavier = dict(found["randlora"], peak_bytes_extrapolated="225")
    assert str(table10.verdicts([heavier, found["lora"], found["peft_randlora"]])[1]).endswith(
        "1.023, at most 1.020: NOT met"
    )
    assert (found["randlora"]["time_percent"], found["randlora"]["paper_time_percent"]) == (133.3, 113)


def test_language_blocks_and_unknown_models():
    case = cases.language_case("tiny", (128, 192, 64), 1, 6, rank=16)
    assert apply_method("randlora", case, CPU).module(case.inputs(CPU)).shape == (1, 6, 128)
    with pytest.raises(ValueError, match="unknown model 'clip_vit_z1'; known: mini_clip"):
        whole_models.model_case("clip_vit_z1", 2)
    with pytest.raises(ValueError, match="unknown method 'lore'; known: frozen"):
        apply_method("lore", SMALL, CPU)


@pytest.mark.parametrize("name", ["dinov2_vit_s14", "dinov2_vit_b14", "vit_s14_focus"])
def test_the_tokens_and_the_width_that_are_written_down_are_the_models(name):
    case, known = whole_models.model_case(name, 3), whole_models.KNOWN[name]
    model = case.build(torch.device("meta"))
    assert (known.length, known.smaller) == (model.patch_embed.num_patches + 1, model.embed_dim)
    assert case.tokens == 3 * known.length and case.inputs(torch.device("meta")).shape[0] == 3


def test_a_whole_model_with_random_weights():
    case = whole_models.model_case("mini_clip", 2)
    step = Step(case, apply_method("randlora", case, CPU), case.inputs(CPU))
    step.forward_backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in step.trained)
