import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import picture

from randlora_core.datasets import (
    EvaluationSplit,
    TrainingSplit,
    eval_transform,
    load_data,
    training_transform,
)
from randlora_core.streams import Stream

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 0 * down], axis=-1).astype(np.uint8))


def random_crops(size=16, mean=MEAN, std=STD, *, interpolation="bicubic", scale=(0.5, 1.0), flip=True):
    """The transform of a run with random crops, for any smallest and largest area."""
    transform = training_transform(
        eval_transform(size, mean, std), size, mean, std, interpolation, crop=scale[0] / 2, flip=flip
    )
    return dataclasses.replace(transform, scale=scale)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", shots=3).train


SIZES = [(72, 107), (500, 64), (31, 90), (56, 56), (57, 56)]
"""Sizes that are shrunk and enlarged, wide and high, and one that stays."""


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_evaluation_is_open_clips_to_the_bit(size, interpolation):
    import open_clip

    image = picture(1, size)
    theirs = open_clip.image_transform(56, is_train=False, mean=MEAN, std=STD, interpolation=interpolation)
    result = eval_transform(56, MEAN, STD, interpolation=interpolation)(image)
    assert torch.equal(result, theirs(image))
    assert result.is_contiguous() and result.dtype == torch.float32 and result.shape == (3, 56, 56)


def test_evaluation_resizes_the_short_side_crops_the_centre_and_normalises():
    image = gradient(64, 32)
    result = eval_transform(16, MEAN, STD, interpolation="bilinear")(image)
    resized = np.asarray(image.resize((32, 16), Image.Resampling.BILINEAR), dtype=np.float32)[:, 8:24] / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (torch.from_numpy(resized).permute(2, 0, 1) - mean) / std
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_every_interpolation_is_the_one_of_its_name():
    image = picture(2, (40, 40))
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        resized = np.asarray(image.resize((24, 24), Image.Resampling[name.upper()]), dtype=np.float32) / 255
        expected = torch.from_numpy(resized).permute(2, 0, 1)
        settings = (24, (0, 0, 0), (1, 1, 1))
        torch.testing.assert_close(eval_transform(*settings, interpolation=name)(image), expected, atol=1e-6, rtol=0)
        whole = random_crops(*settings, interpolation=name, scale=(1.0, 1.0), flip=False)
        # A square image leaves room for a crop of all its area only where the crop is square; else ten draws fail and
        # the middle is taken, which is all of it.
        torch.testing.assert_close(whole(image, Stream("whole")), expected, atol=1e-6, rtol=0)


def test_crops_stay_inside_and_cover_the_wanted_area():
    transform = random_crops(50, (0, 0, 0), (1, 1, 1), scale=(0.3, 0.4), flip=False, interpolation="nearest")
    results = torch.stack([transform(gradient(400, 300), Stream("crop", i)) for i in range(200)])
    # The outer columns show the crop half a result pixel from its edges: their distance is 49/50 of its width.
    widths = (results[:, 0, :, -1] - results[:, 0, :, 0]).mean(dim=1) * 50 / 49
    heights = (results[:, 1, -1] - results[:, 1, 0]).mean(dim=1) * 50 / 49
    areas = widths * heights
    # Whole source pixels and 8-bit values: about 1 % of each side.
    assert areas.min() > 0.29 and areas.max() < 0.41 and areas.std() > 0.02
    ratios = 4 / 3 * widths / heights
    assert ratios.min() > 0.73 and ratios.max() < 1.36 and ratios.std() > 0.1
    # The place of the crop within it varies.
    assert results[:, 0, :, 0].mean(dim=1).std() > 0.03


def test_extreme_shapes_fall_back_to_the_middle():
    image = gradient(1000, 20)
    transform = random_crops(8, (0, 0, 0), (1, 1, 1), scale=(0.9, 1.0), flip=False)
    result = transform(image, Stream("narrow"))
    middle = image.crop((486, 0, 513, 20)).resize((8, 8), Image.Resampling.BICUBIC)  # 20 * 4 / 3 pixels wide
    expected = torch.from_numpy(np.array(middle, dtype=np.float32) / 255).permute(2, 0, 1)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_a_random_crop_is_torchvisions_resized_crop():
    """The same box, found by trying all of them: both sides are resized by the same rule."""
    from torchvision.transforms import InterpolationMode, functional

    image = picture(3, (9, 7))
    result = random_crops(6, (0, 0, 0), (1, 1, 1), scale=(0.5, 0.6), flip=False)(image, Stream("box", 1))
    boxes = [
        (top, left, height, width)
        for height in range(4, 8)
        for width in range(4, 10)
        for top in range(8 - height)
        for left in range(10 - width)
    ]
    mode = InterpolationMode.BICUBIC
    crops = [functional.to_tensor(functional.resized_crop(image, *box, [6, 6], mode)) for box in boxes]
    found = [box for box, crop in zip(boxes, crops, strict=True) if torch.equal(crop, result)]
    assert len(found) == 1
    assert 0.4 < found[0][2] * found[0][3] / 63 < 0.7  # half to 0.6 of the area, and sides in whole pixels


def test_only_flips_that_are_allowed():
    image = gradient(32, 32)
    for flip, expected in ((True, {True, False}), (False, {True})):
        transform = random_crops(8, (0, 0, 0), (1, 1, 1), flip=flip)
        results = [transform(image, Stream("flip", i)) for i in range(40)]
        assert {bool(result[0, 0, -1] > result[0, 0, 0]) for result in results} == expected


def test_augmentation_leaves_the_global_generators_alone(digits):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    random_crops()(digits.image(0), Stream("augmentation", 0))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_augmentation_depends_on_the_stream_alone(digits):
    transform = random_crops()
    first = [transform(digits.image(index), Stream("augmentation", 0, index)) for index in range(8)]
    again = [transform(digits.image(index), Stream("augmentation", 0, index)) for index in reversed(range(8))]
    assert torch.equal(torch.stack(first), torch.stack(again[::-1]))
    other = [transform(digits.image(index), Stream("augmentation", 1, index)) for index in range(8)]
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_evaluation_split_has_the_images_in_order(digits):
    transform = eval_transform(16, MEAN, STD)
    split = EvaluationSplit(digits, transform)
    assert len(split) == len(digits) == 30 and torch.equal(split.labels, digits.labels)
    images, labels = zip(*[split[index] for index in range(len(split))], strict=True)
    assert list(labels) == digits.labels.tolist()
    assert torch.equal(torch.stack(images), torch.stack([transform(digits.image(index)) for index in range(30)]))


@pytest.mark.parametrize("flip", [True, False])
def test_training_without_crops_is_evaluation_and_mirror_images(digits, flip):
    evaluation = eval_transform(16, MEAN, STD)
    transform = training_transform(evaluation, 16, MEAN, STD, "bicubic", crop=1, flip=flip)
    split = TrainingSplit(digits, transform)
    mirrored = 0
    for index in range(len(digits)):
        plain = evaluation(digits.image(index))
        result = split.image(index, Stream("flip", index))
        assert torch.equal(result, transform(digits.image(index), Stream("flip", index)))
        assert torch.equal(result, plain) or torch.equal(result, plain.flip(-1))
        mirrored += torch.equal(result, plain.flip(-1))
    assert len(split) == len(digits) == 30 and torch.equal(split.labels, digits.labels)
    # Standard deviation of the number of mirrored ones among 30: 2.7.
    assert 7 <= mirrored <= 23 if flip else mirrored == 0


def test_training_with_crops_is_the_crop_transform(digits):
    expected = random_crops(16, MEAN, STD, interpolation="bilinear", scale=(0.3, 1.0), flip=True)
    transform = training_transform(eval_transform(16, MEAN, STD), 16, MEAN, STD, "bilinear", crop=0.3, flip=True)
    split = TrainingSplit(digits, transform)
    for index in range(10):
        result = split.image(index, Stream("crop", index))
        assert torch.equal(result, expected(digits.image(index), Stream("crop", index)))


def test_transforms_can_be_sent_to_another_process(digits):
    evaluation = eval_transform(16, MEAN, STD)
    for crop in (1, 0.5):
        transform = training_transform(evaluation, 16, MEAN, STD, "bicubic", crop=crop, flip=True)
        sent = pickle.loads(pickle.dumps(transform))
        assert torch.equal(sent(digits.image(0), Stream("a")), transform(digits.image(0), Stream("a")))


@pytest.mark.parametrize("crop", [0, -0.5, 1.5, float("nan")])
def test_areas_of_crops_out_of_range_are_named(crop):
    with pytest.raises(ValueError, match=rf"crop={crop}: accepted are numbers in \(0, 1\]"):
        training_transform(eval_transform(16, MEAN, STD), 16, MEAN, STD, "bicubic", crop=crop, flip=True)


def test_bad_sizes_and_interpolations_are_named():
    def crops(size, mean, std, interpolation="bicubic"):
        whole = eval_transform(16, mean, std)
        return training_transform(whole, size, mean, std, interpolation, crop=0.5, flip=True)

    for make in (eval_transform, crops):
        with pytest.raises(ValueError, match=r"'cubic'.*nearest, bilinear, bicubic, lanczos"):
            make(16, MEAN, STD, interpolation="cubic")
        with pytest.raises(ValueError, match="image_size=0"):
            make(0, MEAN, STD)
