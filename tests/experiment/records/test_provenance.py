import os
import subprocess

import pytest
import torch

from randlora_core.experiment.records import provenance as module
from randlora_core.experiment.records.provenance import provenance


def git(folder, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit in which the module lies as deep as it does here."""
    file = tmp_path / "a" / "b" / "c" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(module, "__file__", str(file))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_record_names_the_commit_and_whether_the_code_differs_from_it(checkout):
    facts = provenance()
    assert facts["commit"] == git(checkout, "rev-parse", "HEAD") and facts["dirty"] is False
    (checkout / "new.py").write_text("")
    assert provenance()["dirty"] is True
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "second")
    assert provenance()["commit"] == git(checkout, "rev-parse", "HEAD") != facts["commit"]
    (checkout / "new.py").write_text("changed")
    assert provenance()["dirty"] is True


def test_records_that_a_sweep_writes_are_no_difference_in_the_code(checkout):
    for written in ("a/records/figure3.jsonl", "docs/results/figure3.md"):
        (checkout / written).parent.mkdir(parents=True, exist_ok=True)
        (checkout / written).write_text("")
    assert provenance()["dirty"] is False
    (checkout / "a" / "records" / "reading.py").write_text("")
    assert provenance()["dirty"] is True


def test_code_outside_a_checkout_has_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert (provenance()["commit"], provenance()["dirty"]) == (None, None)  # no git
    monkeypatch.undo()
    elsewhere = checkout.parent / "elsewhere" / "a" / "b" / "c" / "module.py"
    monkeypatch.setattr(module, "__file__", str(elsewhere))
    assert (provenance()["commit"], provenance()["dirty"]) == (None, None)


def test_this_repository_is_found():
    root = module.Path(module.__file__).resolve().parents[3]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    assert provenance()["commit"] == git(root, "rev-parse", "HEAD")


def test_versions_and_hardware_are_named():
    facts = provenance()
    assert facts["packages"]["torch"] == torch.__version__ and facts["packages"]["numpy"]
    assert "no-such-package" not in facts["packages"] and module._version("no-such-package") is None
    assert facts["hardware"]["threads"] == torch.get_num_threads()
    assert facts["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert facts["hardware"]["memory_bytes"] > 1 << 28 and facts["hardware"]["cpu"]
