import dataclasses
import io
import pathlib

import pytest
import tiny_experiment

from randlora_core.experiment.compose import CONFIGS
from randlora_core.experiment.interface import MissingInputError
from randlora_core.experiment.loop import hardware
from randlora_core.experiment.planning import distinct, plan_run, plan_runs
from randlora_core.experiment.records.ledger import Ledger
from randlora_core.experiment.running import opening, run


def refuse(config):
    raise AssertionError("a model was built")


def test_planning_builds_no_task(tiny, results):
    guarded = dataclasses.replace(tiny, build_task=refuse)
    planned = plan_run(guarded, ["adapter=vera", results])
    assert planned.status == "planned" and planned.identity.data == "rule sum"
    with pytest.raises(AssertionError, match="built"):
        run(guarded, ["adapter=vera", results])


def test_inputs_that_runs_share_are_identified_once(tiny, results):
    asked = []

    def ask(kind):
        return lambda config: asked.append((kind, config.rule, config.seed)) or f"{kind} {config.rule}"

    counting = dataclasses.replace(tiny, identify_data=ask("data"), identify_weights=ask("weights"))
    lists = [
        [f"rule={rule}", f"adapter={name}", f"seed={seed}", f"training.batch_size={size}", results]
        for rule in ("sum", "difference")
        for name in ("lora", "vera")
        for seed in (1, 2)
        for size in (8, 16)
    ]
    planned = plan_runs(counting, lists)
    assert len({entry.run_id for entry in planned}) == len(lists)
    assert [kind for kind, _, _ in asked].count("data") == 2  # one for each rule
    assert [kind for kind, _, _ in asked].count(
        "weights"
    ) == 2  # likewise: they might depend on any setting that is no method's


def test_random_weights_are_identified_for_every_seed(tiny, results):
    asked = []
    counting = dataclasses.replace(tiny, identify_weights=lambda config: asked.append(config.seed) or f"{config.seed}")
    lists = [["+backbone.pretrained=false", f"seed={seed}", f"training.steps={n}"] for seed in (1, 2) for n in (3, 4)]
    planned = plan_runs(counting, lists)
    assert asked == [1, 2] and [entry.identity.weights for entry in planned] == ["1", "1", "2", "2"]


def test_tables_of_committed_records_need_no_inputs(tiny, results):
    """What does not exist here is as good as missing then."""
    (planned,) = plan_runs(tiny, [["rule=products", results]], inputs_needed=False)
    assert planned.status == "missing" and planned.missing.startswith("unknown rule 'products'")
    with pytest.raises(ValueError, match="unknown setting"):
        plan_runs(tiny, [["rul=products", results]], inputs_needed=False)


def test_missing_inputs_are_a_status_and_misspelt_ones_an_error(tiny, results):
    here, data, rate = plan_runs(
        tiny, [[results], ["rule=product", results], ["training.rate_from=['training.steps=9']", results]]
    )
    assert (here.status, data.status, rate.status) == ("planned", "missing", "missing")
    assert data.missing == "the rule product is not here" and data.identity.data == ""
    assert rate.missing == "no learning rate has been tuned for training.steps=9; tune it, or give one"
    assert data.finished is None and distinct([here, data, here, rate]) == [here]
    with pytest.raises(ValueError, match="unknown rule 'products'; accepted: sum, difference"):
        plan_runs(tiny, [[results], ["rule=products", results]])
    with pytest.raises(ValueError, match="the rule product is not here"):
        plan_run(tiny, ["rule=product", results])


def test_missing_weights_are_told_beside_missing_data(tiny, results):
    def nowhere(config):
        raise MissingInputError("the weights are not here")

    (planned,) = plan_runs(dataclasses.replace(tiny, identify_weights=nowhere), [["rule=product", results]])
    assert planned.missing == "the rule product is not here; the weights are not here"


def test_a_missing_run_is_found_among_committed_records_by_its_settings(tiny, results):
    """Its settings do not depend on whether its data are here."""
    here = plan_run(tiny, ["rule=difference", results])

    def nowhere(config):
        raise MissingInputError("not here")

    (missing,) = plan_runs(dataclasses.replace(tiny, identify_data=nowhere), [["rule=difference", results]])
    assert missing.identity.settings == here.identity.settings and missing.run_id != here.run_id


def test_the_status_follows_the_record(tiny, results):
    overrides = [results, "adapter.rank=2", "training.steps=1"]
    planned = plan_run(tiny, overrides)
    planned.ledger.write({**opening(planned), "error": {"type": "E", "message": "m", "traceback": ""}})
    failed = plan_run(tiny, overrides)
    assert failed.status == "failed" and failed.finished is None and failed.record["error"]["type"] == "E"
    record = run(tiny, [*overrides, "evaluate.test=false"])
    assert plan_run(tiny, [*overrides, "evaluate.test=false"]).finished == record
    untested = plan_run(tiny, overrides)
    assert untested.run_id == planned.run_id and untested.status == "planned"
    tested = run(tiny, overrides)
    assert plan_run(tiny, overrides).status == plan_run(tiny, [*overrides, "evaluate.test=false"]).status == "done"
    assert tested["scores"]["mean"] is not None
    assert plan_run(tiny, [*overrides, "save.adapter=true"]).status == "planned"  # the weights were not kept


def test_records_belong_to_the_experiment_in_the_repository_unless_said_otherwise(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = plan_run(tiny, [])
    assert planned.path == CONFIGS.parent / "results" / "tiny" / f"{planned.run_id}.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan_run(tiny, ["paths.results='~/here'"]).ledger.directory == tmp_path / "here" / "tiny"
    assert isinstance(planned.ledger, Ledger)


def test_a_run_has_a_name_and_a_point(tiny):
    planned = plan_run(tiny, ["adapter=lora", "adapter.rank=3", "seed=4", "rule=difference"])
    assert planned.name == "difference LoRA-3 seed 4" and planned.point == ("difference",)


def test_the_number_format_is_settled_before_the_run_is_identified(tiny, monkeypatch):
    for flags, precision in (({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(hardware, "_flags", lambda flags=flags: flags)
        planned = plan_run(tiny, ["training.precision=auto", "device=cpu"])
        assert planned.config.training.precision == planned.recorded["training"]["precision"] == precision
        assert planned.run_id == plan_run(tiny, [f"training.precision={precision}", "device=cpu"]).run_id
        other = {"bf16": "fp32", "fp32": "bf16"}[precision]
        assert planned.run_id != plan_run(tiny, [f"training.precision={other}", "device=cpu"]).run_id


def test_a_device_that_is_not_there_is_told_before_anything_starts(tiny, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'"):
        plan_run(tiny, ["device=cuda"])


def test_settings_without_effect_do_not_make_another_run(tiny):
    planned = plan_runs(tiny, [["adapter=zero_shot", f"seed={seed}"] for seed in (1, 2, 3)])
    assert len(planned) == 3 and distinct(planned) == planned[:1]


def test_committed_tunings_are_read_once_for_many_runs(tiny, results, monkeypatch):
    tiny.records.mkdir()
    (tiny.records / "tuning_some.jsonl").write_text("")
    opened = []
    original = pathlib.Path.open

    def counted(path, *arguments, **options):
        opened.extend([path] if path.suffix == ".jsonl" else [])
        return original(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", counted)
    plan_runs(tiny, [[f"seed={seed}", results] for seed in range(20)])
    assert len(opened) == 1


def test_a_planned_run_travels_to_another_process(tiny, results):
    import pickle

    planned = plan_run(tiny, ["adapter.rank_pattern={fc: 2}", results])
    buffer = io.BytesIO(pickle.dumps(planned))
    assert pickle.load(buffer) == planned and tiny.build_task is tiny_experiment.TinyTask
