"""Settings of PEFT's tuners: what is refused, what is part of a run's identity, and what PEFT itself says."""

import json
import os
import subprocess
import sys

import pytest

from randlora_core.experiment import peft_tuners
from randlora_core.experiment.peft_tuners import tuner_label
from randlora_core.experiment.rates import build_config
from randlora_core.extras import MissingExtraError


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["adapter.peft_type=HIRRA"], ["adapter.peft_type='HIRRA'", "is no type", "C3A", "HIRA"]),
        (["adapter.peft_type=null"], ["adapter.peft_type is missing; accepted: ", "HIRA"]),
        (["adapter.peft_type=FROD"], ["adapter.peft_type='FROD'", "one width", "accepted: BEFT, "]),
        (["adapter.kwargs={rank: 16}"], ["adapter.kwargs.rank", "HIRA (did you mean r?)", "accepted: r, "]),
        (["adapter.peft_type=PROMPT_TUNING"], ["adapter.peft_type='PROMPT_TUNING'", "prompts", "accepted: ", "HIRA"]),
        (["adapter.peft_type=PREFIX_TUNING"], ["adapter.peft_type='PREFIX_TUNING'", "prompts", "accepted: "]),
        (["adapter.peft_type=ADALORA"], ["adapter.peft_type='ADALORA'", "in every step", "accepted: "]),
        (["adapter.peft_type=LN_TUNING"], ["adapter.peft_type='LN_TUNING'", "norms", "accepted: "]),
        (["adapter.kwargs={rang: 4}"], ["adapter.kwargs.rang", "HIRA", "accepted: r, ", "adapter.targets"]),
        (["adapter.kwargs={target_modules: [a]}"], ["kwargs.target_modules", "(did you mean adapter.targets?)"]),
        (["adapter.kwargs={inference_mode: true}"], ["adapter.kwargs.inference_mode", "accepted: r, "]),
        (["adapter.kwargs={r: many}"], ["adapter.kwargs.r='many'", "accepted: a valid integer"]),
        (["adapter.kwargs={hira_dropout: a}"], ["adapter.kwargs.hira_dropout='a'", "accepted: a valid number"]),
        (["adapter.kwargs=3"], ["adapter.kwargs=3", "a mapping, such as adapter.kwargs={r: 16}"]),
        (["adapter.rank=4"], ["adapter.rank", "'peft'", "adapter.kwargs"]),
        (["adapter.budget=lora4"], ["adapter.budget='lora4'", "'peft'", "no rank", "accepted: randlora, lora"]),
    ],
)
def test_bad_settings_are_one_line_with_the_accepted_ones(overrides, named, tiny):
    with pytest.raises(ValueError) as caught:
        build_config(tiny, ["adapter=peft", "adapter.peft_type=HIRA", *overrides])
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


def test_the_identity_holds_type_and_settings_whatever_their_order_and_label(tiny):
    def settings(*overrides):
        config = build_config(tiny, ["adapter=peft", "adapter.peft_type=HIRA", *overrides])
        return config.identity(1e-3)["adapter"], config.adapter.label

    first, label = settings("adapter.kwargs={r: 4, hira_dropout: 0.1}")
    assert first == {"method": "peft", "targets": None, "peft_type": "HIRA", "kwargs": {"hira_dropout": 0.1, "r": 4}}
    assert label == "HIRA hira_dropout=0.1 r=4"
    other_order, other_label = settings("adapter.kwargs={hira_dropout: 0.1, r: 4}", "adapter.label=HiRA")
    assert json.dumps(other_order) == json.dumps(first) and other_label == "HiRA"
    assert settings("adapter.kwargs={hira_dropout: 0.1, r: 5}")[0] != first
    assert settings("adapter.peft_type=C3A")[0] != settings()[0]
    assert tuner_label({"peft_type": "LORA", "kwargs": {"init_lora_weights": "gaussian", "use_dora": True}}) == (
        "LORA init_lora_weights=gaussian use_dora=true"
    )


def test_the_preset_has_no_type_of_its_own(tiny):
    with pytest.raises(ValueError, match=r"adapter\.peft_type is missing; accepted: BEFT, "):
        build_config(tiny, ["adapter=peft"])


def test_warnings_of_bitsandbytes_while_peft_is_imported_are_not_shown(tmp_path):
    """A package that logs as bitsandbytes does, imported by a peft of our own."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text(
        "import logging\n"
        "logger = logging.getLogger('bitsandbytes.backends.cpu.ops')\n"
        "logger.warning('Failed to load CPU kernel')\n"
        "logger.error('a real error')\n"
        "logging.getLogger('other').warning('of others')\n"
        "raise ModuleNotFoundError('no peft', name='peft')\n"
    )
    code = (
        "from randlora_core.experiment.peft_tuners import check_tuner\n"
        "try:\n    check_tuner({'peft_type': 'HIRA'})\n"
        "except ModuleNotFoundError:\n"
        "    import logging\n    logging.getLogger('bitsandbytes').warning('afterwards')\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stderr.splitlines() == ["a real error", "of others", "afterwards"]


def test_without_peft_the_extra_that_installs_it_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r'package peft is not installed: pip install "randlora\[peft\]"'):
        build_config(tiny, ["adapter=peft"])
    assert build_config(tiny, ["adapter=lora"]).adapter.method == "lora"


def test_running_out_of_memory_is_not_taken_for_a_fault_of_the_settings():
    with pytest.raises(RuntimeError, match="can't allocate memory"), peft_tuners._described("HIRA", {"r": 2}):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(ValueError, match=r"of HIRA: some other fault$"), peft_tuners._described("HIRA", {"r": 2}):
        raise RuntimeError("some\nother fault")
