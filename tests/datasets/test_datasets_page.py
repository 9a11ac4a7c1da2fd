"""docs/datasets.md tells of every data set of the paper what the catalog has, and its recipes work."""

import json
import re
from pathlib import Path

import pytest
from sample_images import encoded

from randlora_core.datasets import CATALOG, load_data

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
ROWS = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if line.startswith("| ")}


def test_every_data_set_of_the_paper_has_a_row():
    assert list(ROWS)[1:] == [entry.key for entry in CATALOG.values() if entry.paper_name]


@pytest.mark.parametrize(
    "entry", [entry for entry in CATALOG.values() if entry.paper_name], ids=lambda entry: entry.key
)
def test_a_row_says_what_the_catalog_has(entry):
    _, _, hub, torchvision, _, _ = (cell.strip() for cell in ROWS[entry.key].split("|"))
    assert (hub == "-") == (entry.hub is None) and (torchvision == "-") == (entry.torchvision is None)
    if entry.hub:
        assert f"[{entry.hub.repository}]({entry.hub.address})" in hub and (entry.hub.config or "") in hub
        assert not entry.hub.is_verified  # the page says so of all of them
    if entry.torchvision:
        assert f"`{entry.torchvision.name}`" in torchvision


def recipe(name):
    return re.search(rf"\*\*{name}\.\*\*.*?```python\n(.*?)```", PAGE, re.DOTALL)[1]


def write(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))


def test_the_recipe_for_cub200(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "CUB_200_2011"
    names = [f"{label}/{number}.jpg" for label in ("001.Auk", "002.Tern") for number in range(4)]
    for number, name in enumerate(names):
        write(folder / "images" / name, number)
    (folder / "images.txt").write_text("".join(f"{at} {name}\n" for at, name in enumerate(names, 1)))
    (folder / "train_test_split.txt").write_text("".join(f"{at} {int(at % 4 != 0)}\n" for at in range(1, 9)))
    exec(recipe("cub200"), {})
    data = load_data("cub200", root=tmp_path)
    assert data.class_names == ("Auk", "Tern") and data.sizes == {"train": 4, "validation": 2, "test": 2}


def test_the_recipe_for_ucf101(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = {}
    for split in ("train", "val", "test"):
        listed[split] = [[f"{name}/v_{split}.jpg", at, name] for at, name in enumerate(("Apply_Lipstick", "Yo_Yo"))]
        for at, (name, *_) in enumerate(listed[split]):
            write(tmp_path / "UCF-101-midframes" / name, 10 * len(split) + at)
    (tmp_path / "split_zhou_UCF101.json").write_text(json.dumps(listed))
    exec(recipe("ucf101"), {})
    data = load_data("ucf101", root=tmp_path)
    assert data.class_names == ("Apply Lipstick", "Yo Yo")
    assert data.sizes == {"train": 2, "validation": 2, "test": 2}
