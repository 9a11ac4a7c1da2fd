"""Images that cannot be read: one clear line that names the value and the accepted ones."""

import shutil

import pyarrow
import pyarrow.parquet
import pytest
from sample_images import IMAGES, encoded, write_set

from randlora_core.datasets import available, load_data


def message_of(name, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load_data(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_names_list_the_known_ones(parquet_root):
    message = message_of("animal", root=parquet_root)
    assert "'animal'" in message and "near: animals" in message and "digits, characters, animals" in message
    assert "digits, characters" in message_of("mnist")
    assert "'../animals'" in message_of("../animals", root=parquet_root)


def test_a_missing_root_is_named(tmp_path):
    assert "nowhere" in message_of("mnist", root=tmp_path / "nowhere")
    assert "nowhere" in message_of("pets", root=tmp_path / "nowhere")
    assert available() == ("digits", "characters")


def test_missing_splits_and_shards_are_named(parquet_root):
    folder = parquet_root / "animals"
    shutil.move(folder / "train-00001-of-00002.parquet", parquet_root / "elsewhere.parquet")
    assert "1 of the 2 shards of 'train'" in message_of("animals", root=parquet_root)
    shutil.move(parquet_root / "elsewhere.parquet", folder / "train-00001-of-00002.parquet")
    (folder / "test-00000-of-00001.parquet").unlink()
    assert "no test split (found: train)" in message_of("animals", root=parquet_root)
    (parquet_root / "empty").mkdir()
    assert "no train and no test split (found: none)" in message_of("empty", root=parquet_root)


def test_an_empty_split_is_named(parquet_root, write_parquet):
    write_parquet(
        parquet_root / "animals" / "test-00000-of-00001.parquet", [], ["cat", "guinea_pig", "dog", "sea_horse"]
    )
    assert "split 'test' is empty" in message_of("animals", root=parquet_root)


def test_a_class_without_test_images_is_named(parquet_root, write_parquet):
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    write_parquet(path, [0, 2, 3], ["cat", "guinea_pig", "dog", "sea_horse"])
    assert "'test' has no image of 1 of the 4 classes: 'guinea pig'" in message_of("animals", root=parquet_root)


def test_labels_outside_the_classes_are_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "set").mkdir()
    for split, labels in (("train", [0, 1, 0]), ("test", [0, 1, -1])):
        rows = {"image": [encoded(row) for row in range(3)], "label": labels}
        pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    message = message_of("set", root=tmp_path)
    assert "split 'test'" in message and "label -1 of row 2" in message and "2 classes" in message


def test_test_classes_that_training_lacks_are_named(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "toys" / "train", {"ball": 2})
    write_class_folders(tmp_path / "toys" / "test", {"ball": 1, "kite": 1})
    assert "classes kite are not in the training split" in message_of("toys", root=tmp_path)


def test_files_with_other_class_names_are_rejected(parquet_root, write_parquet):
    path = write_parquet(parquet_root / "animals" / "test-00000-of-00001.parquet", [0, 1], ["cat", "dog"])
    assert str(path) in message_of("animals", root=parquet_root)


def test_unreadable_parquet_and_missing_columns_are_named(parquet_root):
    import pyarrow
    import pyarrow.parquet

    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    path.write_bytes(b"PAR1 but no more")
    assert str(path) in message_of("animals", root=parquet_root)
    pyarrow.parquet.write_table(pyarrow.table({"picture": [b""], "label": [0]}), path)
    message = message_of("animals", root=parquet_root)
    assert "picture, label" in message and "image, img" in message


def test_an_unreadable_row_is_named(parquet_root, write_parquet):
    names = ["cat", "guinea_pig", "dog", "sea_horse"]
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    write_parquet(path, [row % 4 for row in range(12)], names, broken=7)
    message = message_of("animals", root=parquet_root)
    assert "'animals': 1 of 52 images cannot be read" in message and f"test: {path}, row 7: cannot identify" in message


def test_a_row_of_the_second_shard_is_named_by_its_own_number(parquet_root, write_parquet):
    names = ["cat", "guinea_pig", "dog", "sea_horse"]
    path = parquet_root / "animals" / "train-00001-of-00002.parquet"
    write_parquet(path, [row % 4 for row in range(20)], names, first=20, broken=4)
    assert f"{path}, row 4: " in message_of("animals", root=parquet_root)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", encoded(1)[:60], encoded(1)[:-30]], ids=["empty", "head", "half", "tail"]
)
def test_a_broken_file_is_named(tmp_path, write_class_folders, content):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    path = tmp_path / "toys" / "test" / "ball" / "001.png"
    path.write_bytes(content)
    assert f"1 of 4 images cannot be read, the first test: {path}: " in message_of("toys", root=tmp_path)


def test_shots_and_fraction_exclude_each_other():
    assert "shots=2 and fraction=0.5" in message_of("digits", shots=2, fraction=0.5)
    assert "largest class" in message_of("digits", shots=1000)


def rewritten(parquet_root, change):
    """The test shard of `animals` after `change` on its table."""
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)
    return path


def test_a_struct_without_bytes_is_named(parquet_root):
    def without_bytes(table):
        paths = pyarrow.StructArray.from_arrays([pyarrow.array(["a.png"] * len(table))], ["path"])
        return table.set_column(0, "image", paths)

    path = rewritten(parquet_root, without_bytes)
    with pytest.raises(ValueError, match=rf"{path.name}: column 'image' holds struct<path.*accepted is a struct"):
        load_data("animals", root=parquet_root)


@pytest.mark.parametrize(
    ("column", "values", "shown"), [("label", [0.5, 1, 2, 3], "double"), ("image", ["a", "b", "c", "d"], "string")]
)
def test_columns_of_other_types_are_named(tmp_path, column, values, shown):
    write_set(tmp_path, **{"image": IMAGES, "label": [0, 1, 0, 1], column: values})
    message = message_of("set", root=tmp_path)
    assert "train.parquet" in message and f"column {column!r} holds {shown}; accepted are" in message


def test_missing_labels_and_images_are_named(tmp_path):
    write_set(tmp_path, image=[*IMAGES[:3], None], label=[0, 1, 0, 1])
    assert "train.parquet, row 3: the row holds no image bytes" in message_of("set", root=tmp_path)
    shutil.rmtree(tmp_path / "set")
    write_set(tmp_path, image=IMAGES, label=[0, 1, None, 1])
    assert "label None of row 2 is outside the 2 classes" in message_of("set", root=tmp_path)


def test_files_with_other_columns_are_rejected(parquet_root):
    path = rewritten(parquet_root, lambda table: table.rename_columns(["img", "label"]))
    assert f"{path} has columns img and label (integers)" in message_of("animals", root=parquet_root)


def test_a_file_with_a_broken_body_is_one_line(parquet_root):
    path = parquet_root / "animals" / "test-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    message = message_of("animals", root=parquet_root)
    assert str(path.parent) in message and "cannot be copied" in message


def test_images_anywhere_else_than_in_class_folders_are_named(tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    nested = tmp_path / "toys" / "train" / "ball" / "red"
    write_class_folders(nested.parent, {"red": 1})
    assert f"{nested} is a folder in a class folder" in message_of("toys", root=tmp_path)
    shutil.rmtree(nested)
    (tmp_path / "toys" / "test" / "stray.PNG").write_bytes(encoded(0))
    assert "stray.PNG is in no class folder" in message_of("toys", root=tmp_path)


def test_an_empty_split_of_class_folders_is_named(tmp_path, write_class_folders):
    for split in ("train", "test"):
        write_class_folders(tmp_path / "toys" / split, {"ball": 2})
    (tmp_path / "toys" / "val" / "ball").mkdir(parents=True)
    assert "split 'validation' is empty" in message_of("toys", root=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(parquet_root, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in the folder's place")
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    assert str(tmp_path / "cache") in message_of("animals", root=parquet_root)
