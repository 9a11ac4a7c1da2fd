import dataclasses

import numpy as np
import pytest
import torch

from randlora_core.experiment.rates import build_config
from randlora_core.image_classification import task as image_task
from randlora_core.image_classification.data import load_images
from vision_language.experiment import EXPERIMENT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task(pets):
    """Builds the task that overrides mean."""

    def build(*overrides):
        own = [f"paths.data={pets}", "dataset=pets", "backbone.pretrained=false", *overrides]
        return EXPERIMENT.build_task(build_config(EXPERIMENT, own))

    return build


def test_the_objective_decides_which_texts_an_image_is_contrasted_with(task):
    in_batch, class_wise = (task(f"training.objective={name}").batches(4, 2) for name in ("in_batch", "class_wise"))
    tokens = task().tokens[0]
    for index in range(4):
        images, every, labels = class_wise[index]
        same, texts, targets = in_batch[index]
        assert torch.equal(every, tokens) and torch.equal(same, images) and len(tokens) == 3
        assert torch.equal(texts[targets], tokens[labels]) and len(texts) == len(labels.unique())


def image_batches(task):
    return torch.cat([images for images, *_ in (task.batches(6, 5)[index] for index in range(6))])


def test_images_are_mirrored_where_the_data_set_allows_it_unless_said_otherwise(task):
    plain = image_batches(task("training.flip=false"))
    allowed = image_batches(task())
    changed = [not torch.equal(one, other) for one, other in zip(plain, allowed, strict=True)]
    assert 5 <= sum(changed) <= 25
    assert all(
        torch.equal(one.flip(-1), other)
        for one, other, mirrored in zip(plain, allowed, changed, strict=True)
        if mirrored
    )
    digits = [image_batches(task("dataset=digits", *more)) for more in ([], ["training.flip=false"])]
    assert torch.equal(*digits)
    assert not torch.equal(digits[0], image_batches(task("dataset=digits", "training.flip=true")))


def test_crops_are_taken_where_asked_for(task):
    whole, cropped = (
        image_batches(task("training.flip=false")),
        image_batches(task("training.flip=false", "training.crop=0.3")),
    )
    assert whole.shape == cropped.shape and not any(map(torch.equal, whole, cropped))


def test_a_task_says_what_it_is_made_of(task):
    made = task()
    assert made.test_sets == ("pets",) and made.num_examples == 15 and made.frozen == ("logit_scale",)
    assert made.default_targets == ("attn.in_proj", "mlp.c_fc", "mlp.c_proj")
    assert made.data["sizes"] == {"train": 15, "validation": 3, "test": 9}


def test_an_evaluation_leaves_the_mode_of_the_module_alone(task):
    made = task()
    for training in (True, False):
        made.module.train(training)
        scores = made.evaluate("validation", CPU, "fp32")
        assert made.module.training is training and list(scores) == ["pets"] and scores["pets"].size == 3


def test_evaluate_batch_size_changes_nothing(task):
    one, two = (task(f"evaluate.batch_size={size}").evaluate("test", CPU, "fp32")["pets"] for size in (2, 256))
    assert one.value == two.value and (one.predicted == two.predicted).all()


def test_a_class_is_one_text_or_the_average_over_all_templates(task, monkeypatch):
    templates = ("a photo of a {}.", "a drawing of a {} in a book.")
    two = lambda config: dataclasses.replace(load_images(config), templates=templates)  # noqa: E731
    monkeypatch.setattr("vision_language.experiment.load_images", two)
    single, ensemble = task("prompts=single"), task("prompts=ensemble")
    assert len(single.tokens) == 1 and len(ensemble.tokens) == 2
    size = single.backbone.image_size
    images = torch.rand(4, 3, size, size, generator=torch.manual_seed(0))
    with torch.no_grad():
        features = torch.nn.functional.normalize(ensemble.model.encode_image(images), dim=-1)
        texts = [
            ensemble.model.encode_text(
                ensemble.backbone.tokenize([template.format(name) for name in ensemble.images.class_names]), True
            )
            for template in templates
        ]
        for made, text in ((single, texts[0]), (ensemble, torch.nn.functional.normalize(sum(texts), dim=-1))):
            expected = made.model.logit_scale.exp() * features @ text.T
            assert torch.allclose(made.classifier(CPU, "fp32")(images), expected, atol=1e-4)
    assert not torch.allclose(texts[0], texts[1], atol=1e-2)


def test_a_split_is_loaded_by_one_loader_however_often_it_is_scored(task, monkeypatch):
    built, build = [], image_task.evaluation_loader

    def watched(split, *given, **more):
        built.append(split)
        return build(split, *given, **more)

    monkeypatch.setattr(image_task, "evaluation_loader", watched)
    once = task("adapter=zero_shot")
    scores = [once.evaluate(split, CPU, "fp32") for split in ("validation", "test", "validation")]
    assert built == [once.images.validation, once.images.test]
    first, _, again = ([score.predicted for score in found.values()] for found in scores)
    assert np.array_equal(first, again)
