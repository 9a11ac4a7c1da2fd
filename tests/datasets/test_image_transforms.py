import numpy as np
import pytest
import torch
from PIL import Image

from randlora_core.datasets import EvaluationSplit, eval_transform, load_data, train_transform
from randlora_core.datasets.streams import Stream

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 0 * down], axis=-1).astype(np.uint8))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", shots=3).train


def test_evaluation_crops_the_centre_and_normalises():
    image = gradient(64, 32)
    result = eval_transform(32, MEAN, STD)(image)
    pixels = np.asarray(image.crop((16, 0, 48, 32)), dtype=np.float32) / 255
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    assert result.is_contiguous() and result.dtype == torch.float32


def test_crops_stay_inside_and_cover_the_wanted_area():
    transform = train_transform(50, (0, 0, 0), (1, 1, 1), crop_scale=(0.3, 0.4), flip=False, interpolation="nearest")
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
    transform = train_transform(8, (0, 0, 0), (1, 1, 1), crop_scale=(0.9, 1.0), flip=False)
    result = transform(gradient(1000, 20), Stream("narrow"))
    assert 0.47 < result[0].mean() < 0.53


def test_only_flips_that_are_allowed():
    image = gradient(32, 32)
    for flip, expected in ((True, {True, False}), (False, {True})):
        transform = train_transform(8, (0, 0, 0), (1, 1, 1), flip=flip)
        results = [transform(image, Stream("flip", i)) for i in range(40)]
        assert {bool(result[0, 0, -1] > result[0, 0, 0]) for result in results} == expected


def test_augmentation_leaves_the_global_generators_alone(digits):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    train_transform(16, MEAN, STD)(digits.image(0), Stream("augmentation", 0))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_evaluation_split_has_the_images_in_order(digits):
    transform = eval_transform(16, MEAN, STD)
    split = EvaluationSplit(digits, transform)
    assert len(split) == len(digits) == 30
    images, labels = zip(*[split[index] for index in range(len(split))], strict=True)
    assert list(labels) == digits.labels.tolist()
    assert torch.equal(images[7], transform(digits.image(7)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "cubic"}, "'cubic'.*nearest, bilinear, bicubic, lanczos"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
    ],
)
def test_bad_settings_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        train_transform(16, MEAN, STD, **options)
    with pytest.raises(ValueError, match="image_size=0"):
        eval_transform(0, MEAN, STD)
