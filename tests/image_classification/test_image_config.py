"""What the configuration and the identity of a run on images hold beside what every run has."""

import dataclasses

import pytest

from randlora_core.datasets.load import load_data
from randlora_core.experiment.identity import identify_settings
from randlora_core.experiment.interface import MissingInputError
from randlora_core.experiment.planning import plan_runs
from randlora_core.experiment.rates import build_config
from randlora_core.image_classification.data import IMAGE_AXES, data_section, identify_images, load_images
from vision.experiment import EXPERIMENT as VISION
from vision_language.experiment import EXPERIMENT


def build(*overrides):
    return build_config(EXPERIMENT, ["training.learning_rate=0.001", *overrides])


def settings(*overrides):
    config = build(*overrides)
    rate = config.training.learning_rate if config.is_fitted else None
    return identify_settings(config.identity(rate), "vision_language")["settings"]


def test_a_folder_name_is_a_data_set():
    config = build("dataset=caltech101_part", "paths.data=/some/folder")
    assert (config.dataset, config.paths.data) == ("caltech101_part", "/some/folder")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shots=4", "fraction=0.5"], "shots=4 and fraction=0.5; accepted: one of them, the other null"),
        (["shots=0"], "shots=0; accepted: greater than 0"),
        (["shots=many"], "shots='many'; accepted: a valid integer"),
        (["fraction=1.5"], "fraction=1.5; accepted: less than or equal to 1"),
        (["fraction=0"], "fraction=0; accepted: greater than 0"),
        (["training.crop=0"], "training.crop=0; accepted: greater than 0"),
        (["adapter=linear_probe", "adapter.targets=[attn.in_proj]"], "adapter.targets has no effect on method"),
    ],
)
def test_bad_values_are_one_line(overrides, message):
    with pytest.raises(ValueError) as caught:
        build(*overrides)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["training.crop=0.5", "training.flip=true", "shots=4", "fraction=0.5"])
def test_augmentation_and_subsets_are_part_of_the_identity(override):
    assert settings(override) != settings()


def test_settings_at_their_neutral_value_are_no_part_of_the_identity():
    values = build().identity(0.001)
    assert not {"prompts", "leave_out_unreadable", "download"} & set(values)
    for override in ("prompts=ensemble", "leave_out_unreadable=false", "download=true"):
        assert settings(override) == settings(), override
    for override in ("prompts=single", "leave_out_unreadable=true"):
        assert settings(override) != settings(), override
    assert build("prompts=single").identity(0.001)["prompts"] == "single"


def test_prompts_count_where_there_are_class_texts():
    assert settings("adapter=linear_probe", "prompts=single") == settings("adapter=linear_probe")
    assert settings("adapter=zero_shot", "prompts=single") != settings("adapter=zero_shot")
    for backbone, counts in (("vit_s14_focus", False), ("mini_clip", True)):
        identities = [
            build_config(VISION, [f"backbone={backbone}", f"prompts={name}"]).identity(None)
            for name in ("single", "ensemble")
        ]
        assert (identities[0] != identities[1]) is counts


def test_images_that_cannot_be_read_are_left_out_where_the_run_says_so(pets, tmp_path):
    import shutil

    shutil.copytree(pets, tmp_path, dirs_exist_ok=True)
    broken = sorted((tmp_path / "pets" / "train").rglob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:40])
    given = ["dataset=pets", f"paths.data={tmp_path}"]
    with pytest.raises(ValueError, match="1 of 27 images cannot be read, the first "):
        load_images(build(*given))
    section = data_section(load_images(build(*given, "leave_out_unreadable=true")), None)
    assert len(section["left_out"]) == 1 and broken.name in section["left_out"][0]
    assert "pets: 1 images that cannot be read were left out." in section["remarks"]


def test_what_is_not_here_is_asked_for_where_the_run_says_so(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "randlora_core.image_classification.data.fingerprint_data",
        lambda name, root, *, download: asked.append(download) or "0",
    )
    for override in ("download=false", "download=true"):
        identify_images(build("dataset=gtsrb", override))
    assert asked == [False, True]


def test_zero_shot_depends_on_no_training_data():
    original = settings("adapter=zero_shot")
    for override in ("shots=4", "fraction=0.5", "seed=3", "training.steps=5", "training.crop=0.5"):
        assert settings("adapter=zero_shot", override) == original, override
    assert settings("adapter=zero_shot", "dataset=characters") != original
    assert settings("adapter=zero_shot", "backbone=clip_vit_b32") != original


def test_a_probe_of_all_images_depends_on_neither_seed_nor_training():
    original = settings("adapter=linear_probe")
    for override in ("seed=3", "training.steps=5", "training.objective=class_wise", "training.flip=true"):
        assert settings("adapter=linear_probe", override) == original, override
    assert settings("adapter=linear_probe", "dataset=characters") != original
    for subset in ("shots=4", "fraction=0.5"):
        chosen = settings("adapter=linear_probe", subset)
        assert chosen != original and settings("adapter=linear_probe", subset, "seed=3") != chosen
        assert settings("adapter=linear_probe", subset, "training.steps=5") == chosen


def test_all_images_are_all_images():
    for method in ("lora", "linear_probe"):
        assert settings(f"adapter={method}", "fraction=1") == settings(f"adapter={method}")
    assert settings("adapter=linear_probe", "fraction=1", "seed=3") == settings("adapter=linear_probe")


def test_random_weights_are_those_of_the_runs_seed():
    """Zero-shot does not depend on the seed, but on random weights it does."""
    lists = [["adapter=zero_shot", f"backbone.pretrained={p}", f"seed={s}"] for p in ("true", "false") for s in (1, 2)]
    pretrained_1, pretrained_2, random_1, random_2 = plan_runs(EXPERIMENT, lists)
    assert pretrained_1.run_id == pretrained_2.run_id
    assert len({pretrained_1.run_id, random_1.run_id, random_2.run_id}) == 3
    assert random_1.identity.weights != random_2.identity.weights


def test_a_missing_data_set_is_told_from_a_misspelt_one(tmp_path):
    for name, folder in (("gtsrb", tmp_path), ("gtsrb", tmp_path / "nowhere"), ("gtsrb", None)):
        root = [] if folder is None else [f"paths.data={folder}"]
        with pytest.raises(MissingInputError, match="gtsrb"):
            identify_images(build(f"dataset={name}", *root))
    with pytest.raises(ValueError, match="unknown data set 'gtsbr'") as caught:
        identify_images(build("dataset=gtsbr", f"paths.data={tmp_path}"))
    assert not isinstance(caught.value, MissingInputError)


def test_missing_weights_are_a_missing_input_too(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("randlora_core.models.weights.HubWeights.find", lambda self: None)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *arguments, **options: 1 / 0)
    (planned,) = plan_runs(EXPERIMENT, [["backbone=clip_vit_b32"]])
    assert planned.status == "missing" and "weights not here" in planned.missing
    with pytest.raises(ValueError, match="unknown backbone 'resnet'"):
        plan_runs(EXPERIMENT, [["backbone.name=resnet"]])
    with pytest.raises(ValueError, match="has no option 'colour'"):
        plan_runs(EXPERIMENT, [["+backbone.colour=red"]])


def test_planning_reads_no_image_and_builds_no_model(pets, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("an image was read or a model built")

    overrides = ["dataset=pets", f"paths.data={pets}"]
    (first,) = plan_runs(EXPERIMENT, [overrides])
    fingerprint = load_data("pets", root=pets).fingerprint
    monkeypatch.setattr("PIL.Image.open", refuse)
    monkeypatch.setattr("torch.nn.Module.__init__", refuse)
    (again,) = plan_runs(EXPERIMENT, [overrides])
    assert again.run_id == first.run_id and again.status == "planned"
    assert first.identity.data == fingerprint


def test_points_are_described_by_what_was_chosen():
    config = build("dataset=digits", "shots=1").recorded(None)
    assert EXPERIMENT.point(config) == ("digits", 1, None, "mini_clip")
    described = [axis.describe(value) for axis, value in zip(IMAGE_AXES, ("digits", 1, 0.5, "mini_clip"), strict=True)]
    assert described == ["digits", "1 shot", "50 %", "mini_clip"]
    assert IMAGE_AXES[1].describe(16) == "16 shots" and IMAGE_AXES[1].describe(None) == ""


def test_the_seed_chooses_the_few_images(pets):
    def chosen(seed):
        images = load_images(build("dataset=pets", f"paths.data={pets}", "shots=2", f"seed={seed}"))
        return images.train.indices.tolist()

    assert chosen(1) == chosen(1) and len(chosen(1)) == 6
    assert len({tuple(chosen(seed)) for seed in range(8)}) > 1


def test_the_record_says_what_a_reader_must_know_about_the_data(pets):
    whole = load_images(build("dataset=pets", f"paths.data={pets}"))
    section = data_section(whole, None)
    assert section["sizes"] == {"train": 15, "validation": 3, "test": 9} and section["paper_name"] == "OxfordIIITPet"
    assert section["remarks"] == [
        "pets is a subset of the published data set; its numbers do not compare to published ones."
    ]
    few = dataclasses.replace(whole, short_classes={"bee": 10, "cow": 9})
    assert "pets: 2 classes have fewer than 16 training images (fewest 9)." in data_section(few, 16)["remarks"]
    digits = data_section(load_images(build("dataset=digits")), None)
    assert digits["remarks"] == [] and digits["is_subset"] is False


def test_a_folder_called_like_a_built_in_set_is_pointed_out(pets, tmp_path, capsys):
    import shutil

    shutil.copytree(pets / "pets", tmp_path / "digits")
    for name, said in (("digits", True), ("folder:digits", False)):
        images = load_images(build(f"dataset='{name}'", f"paths.data={tmp_path}"))
        assert ("dataset=folder:digits" in capsys.readouterr().out) == said
        assert (len(images.class_names) == 10) == said
