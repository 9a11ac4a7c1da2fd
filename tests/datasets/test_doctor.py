"""The doctor says what is wrong with a data set, how to mend it, and nothing of what is right."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sample_images import encoded

import randlora_core
from randlora_core.datasets import CATALOG, load_data
from randlora_core.datasets.__main__ import main
from randlora_core.datasets.doctor import examine

NAMES = list(CATALOG["cifar10"].class_names)
TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


@pytest.fixture
def root(tmp_path, monkeypatch, write_parquet, write_class_folders):
    """`cifar10`, complete for this test's table 7, as Parquet; `toys`, another set, in class folders."""
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    sizes = {"num_train": 30, "num_validation": 10, "num_test": 20}
    monkeypatch.setitem(CATALOG, "cifar10", dataclasses.replace(CATALOG["cifar10"], **sizes))
    write_parquet(tmp_path / "data" / "cifar10" / TRAIN, list(range(10)) * 4, NAMES)
    write_parquet(tmp_path / "data" / "cifar10" / TEST, list(range(10)) * 2, NAMES, first=100)
    write_class_folders(tmp_path / "data" / "toys" / "train", {"ball": 4, "kite": 4})
    write_class_folders(tmp_path / "data" / "toys" / "test", {"ball": 2, "kite": 2}, first=50)
    return tmp_path / "data"


def problems(name, root):
    """What the doctor finds, one string for each problem; every one has a remedy."""
    found = list(examine(name, root))
    assert all(finding.dataset == name and finding.remedy and "\n" not in finding.problem for finding in found)
    return [finding.problem for finding in found]


def test_a_clean_set_is_passed_over_in_silence(root, capsys):
    assert not load_data("cifar10", root=root).is_subset
    assert main(["doctor", f"paths.data={root}"]) == 0
    assert main(["doctor", "cifar10", "toys", "digits", f"paths.data={root}"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_truncated_image_is_named(root, write_parquet):
    (root / "toys" / "test" / "kite" / "001.png").write_bytes(encoded(1)[:60])
    (problem,) = problems("toys", root)
    assert re.search(r"has 1 image that cannot be decoded: .*/toys/test/kite/001\.png \(.*truncated\)", problem)
    write_parquet(root / "cifar10" / TRAIN, list(range(10)) * 4, NAMES, broken=17)
    (problem,) = problems("cifar10", root)
    assert f"{root}/cifar10/{TRAIN}, row 17 (" in problem


def test_a_duplicate_across_splits_is_named_even_if_encoded_otherwise(root):
    from PIL import Image

    with Image.open(root / "toys" / "train" / "kite" / "002.png") as image:
        image.save(root / "toys" / "test" / "ball" / "000.bmp")
    (problem,) = problems("toys", root)
    twins = f"{root}/toys/test/ball/000.bmp is {root}/toys/train/kite/002.png"
    assert problem == f"has 1 image of the test split among training or validation images: {twins}"


def test_validation_and_test_share_no_image_either(root, write_class_folders):
    write_class_folders(root / "toys" / "validation", {"ball": 1}, first=50)
    (problem,) = problems("toys", root)
    assert "has 1 image of the test split" in problem and "/toys/validation/ball/000.png" in problem


def test_duplicates_within_a_split_are_no_finding(root):
    shutil.copy(root / "toys" / "train" / "ball" / "000.png", root / "toys" / "train" / "ball" / "copy.png")
    assert problems("toys", root) == []


def test_permuted_names_are_told_by_the_first_difference(root, write_parquet):
    permuted = [*NAMES[:4], NAMES[5], NAMES[4], *NAMES[6:]]
    for path, count in ((TRAIN, 4), (TEST, 2)):
        write_parquet(root / "cifar10" / path, list(range(10)) * count, permuted, first=100 * count)
    (problem,) = problems("cifar10", root)
    assert "class 4 is called 'dog', where the official order has 'deer'" in problem


def test_a_missing_class_is_named(root, write_parquet):
    for path, count in ((TRAIN, 4), (TEST, 2)):
        labels = list(range(9)) * count + [0] * count  # as many images, none of the last class
        write_parquet(root / "cifar10" / path, labels, NAMES[:9], first=100 * count)
    lacks, holds = problems("cifar10", root)
    assert lacks == "lacks 1 of the 10 classes: truck"
    assert "holds 40 train, 20 test images of 9 classes" in holds and "of 10 classes" in holds


def test_a_misspelt_class_is_named(root, write_parquet):
    for path, count in ((TRAIN, 4), (TEST, 2)):
        write_parquet(root / "cifar10" / path, list(range(10)) * count, [*NAMES[:9], "zebra"], first=100 * count)
    (problem,) = problems("cifar10", root)
    assert problem == "lacks 1 of the 10 classes: truck, and has zebra instead"


def test_a_class_without_images_is_named(root, write_parquet):
    labels = [label for label in range(10) if label != 3] * 2 + [0, 0]
    write_parquet(root / "cifar10" / TEST, labels, NAMES, first=100)
    (problem,) = problems("cifar10", root)
    assert problem == "split 'test' has no image of 1 of the 10 classes: cat"


def test_a_wrong_count_is_told_with_both_numbers(root, write_parquet):
    write_parquet(root / "cifar10" / TEST, list(range(10)) * 2 + [0], NAMES, first=100)
    (problem,) = problems("cifar10", root)
    assert "holds 40 train, 21 test images of 10 classes" in problem
    assert "table 7 has 40 train with validation, 20 test images of 10 classes" in problem


def test_a_part_under_its_own_name_need_not_have_the_papers_sizes(root, write_parquet):
    (root / "cifar10").rename(root / "cifar10_part")
    write_parquet(root / "cifar10_part" / TEST, list(range(10)), NAMES, first=100)
    assert problems("cifar10_part", root) == []


def test_a_missing_split_and_unreadable_files_are_told(root):
    (root / "cifar10" / TEST).write_bytes(b"PAR1 but no more")
    (problem,) = problems("cifar10", root)
    assert "cannot be read as Parquet" in problem
    (root / "cifar10" / TEST).unlink()
    (problem,) = problems("cifar10", root)
    assert "no test split" in problem


def test_several_problems_are_told_at_once(root, write_parquet):
    write_parquet(root / "cifar10" / TEST, list(range(10)) * 2 + [0], NAMES, first=39, broken=5)
    holds, shares, broken = problems("cifar10", root)
    assert "21 test" in holds and f"{TEST}, row 0 is " in shares and "row 5" in broken


def test_long_lists_are_cut_short(root):
    for number, path in enumerate(sorted((root / "toys" / "train").rglob("*.png"))):
        path.write_bytes(encoded(number)[:50])
    (problem,) = problems("toys", root)
    assert problem.startswith("has 8 images that cannot be decoded: ") and problem.endswith(" and 5 more")


def test_the_command_prints_problem_and_remedy_and_fails(root, capsys):
    (root / "toys" / "test" / "kite" / "001.png").write_bytes(b"")
    assert main(["doctor", f"paths.data={root}"]) == 1
    printed, errors = capsys.readouterr()
    first, second = printed.splitlines()
    assert first.startswith("toys: has 1 image that cannot be decoded") and errors == ""
    assert second == "    To mend it, get these files again; a run leaves them out only if it is told to."


def test_absent_sets_are_told_where_they_are_asked_for(root, capsys):
    assert main(["doctor", "dtd", f"paths.data={root}"]) == 1
    assert "dtd: the files of data set 'dtd' are not here" in capsys.readouterr().out
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.count("To mend it, get it as docs/datasets.md describes.") == 22


def test_the_list_shows_what_is_here(root, capsys):
    (root / "flowers102_part").mkdir()
    shutil.copytree(root / "toys", root / "flowers102_part", dirs_exist_ok=True)
    assert main(["list", f"paths.data={root}"]) == 0
    lines = {line.split()[0]: line.split(maxsplit=7) for line in capsys.readouterr().out.splitlines()}
    assert len(lines) == 1 + 24 + 2
    assert lines["dtd"] == ["dtd", "DTD", "47", "3384", "376", "1880", "76", "no"]
    assert lines["cifar10"][-1].strip() == "Parquet files" and lines["characters"][-1].strip() == "built in"
    assert lines["toys"][-1].strip() == "class folders"
    assert lines["flowers102_part"][-1].strip() == "class folders, part of flowers102"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fetch"], "accepted are stanford_cars, dtd"),
        (["fetch", "toys"], "fetch toys: accepted are"),
        (["list", "paths.data=/nowhere"], "'/nowhere' does not exist"),
        (["doctor", "paths.data=/nowhere"], "'/nowhere' does not exist"),
        (["doctor", "digits", "paths.data=/nowhere"], "'/nowhere' does not exist"),
        (["doctor", "dtd", "nope"], "unknown data set 'nope'; accepted without a folder of data sets"),
        (["list", "nope"], "and the paper's: stanford_cars, dtd, "),
        (["list", "paths.dta=/x"], "unknown setting 'paths.dta=/x'; accepted: paths.data=FOLDER"),
        (["doctro"], "invalid choice: 'doctro' (choose from "),
        (["list", "--nope"], "unrecognized arguments: --nope (did you mean --help?); accepted: --help, --traceback"),
    ],
)
def test_wrong_command_lines_are_one_line_before_anything_else(words, message, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_a_damaged_set_is_no_wrong_command_line(root, capsys):
    (root / "cifar10" / TEST).write_bytes(b"PAR1 but no more")
    assert main(["doctor", "cifar10", f"paths.data={root}"]) == 1
    (root / "toys" / "images.txt").write_text("no folders of classes")
    shutil.rmtree(root / "toys" / "train")
    assert main(["doctor", "toys", f"paths.data={root}"]) == 1
    assert main(["doctor", "toyz", f"paths.data={root}"]) == 2


def test_a_failed_download_is_told(capsys):
    assert main(["fetch", "ucf101"]) == 1
    assert "'ucf101' could not be downloaded" in capsys.readouterr().err


def test_the_module_is_a_command(root):
    command = [sys.executable, "-m", "randlora_core.datasets", "doctor", "toys", f"paths.data={root}"]
    (root / "toys" / "test" / "kite" / "001.png").unlink()
    (root / "toys" / "test" / "kite" / "000.png").unlink()
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(randlora_core.__file__).parents[1])
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.startswith("toys: split 'test' has no image of 1 of the 2 classes: kite\n")
