"""Resized images in the cache folder: the same bits as without it, and never those of something else."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sample_images import picture

from randlora_core.datasets import EvaluationSplit, ImageSplit, TrainingSplit, eval_transform, pixels
from randlora_core.datasets.transforms import training_transform
from randlora_core.streams import Stream

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "arrays"


class Pictures:
    """Images of many shapes."""

    def __init__(self, count):
        self.labels = np.arange(count) % 3

    def image(self, index):
        return picture(index, (20 + 13 * index % 40, 30 + 7 * index % 50))

    def where(self, index):
        return f"picture {index}"


def made(count=9, fingerprint="f", indices=None, name="test"):
    indices = np.arange(count)[::-1] if indices is None else np.array(indices)
    return ImageSplit("made", name, Pictures(count), indices, fingerprint)


def own(size=24, interpolation="bicubic"):
    return eval_transform(size, MEAN, STD, interpolation=interpolation)


def open_clips(mode):
    import open_clip

    return open_clip.image_transform(24, is_train=False, mean=MEAN, std=STD, resize_mode=mode)


def timms(crop_mode):
    from timm.data import create_transform

    return create_transform(24, mean=MEAN, std=STD, interpolation="bicubic", crop_pct=0.9, crop_mode=crop_mode)


TRANSFORMS = {
    "own": own,
    "open_clip": lambda: open_clips("shortest"),
    "open_clip, longest side": lambda: open_clips("longest"),
    "timm": lambda: timms("center"),
    "timm, border": lambda: timms("border"),
}


def refuse(*arguments):
    raise AssertionError("decoded again")


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_tensors_are_those_without_a_cache_to_the_bit(cache, transform):
    split = made()
    expected = torch.stack([transform()(split.image(index)) for index in range(9)])
    for _ in range(2):  # the first makes the array, the second finds it
        tensors = EvaluationSplit(split, transform())
        tensors.split = tensors.transform = None
        results = [tensors[index] for index in range(9)]
        assert torch.equal(torch.stack([image for image, _ in results]), expected)
        assert [label for _, label in results] == split.labels.tolist()
        assert results[0][0].is_contiguous() and len(list(cache.iterdir())) == 1


def test_the_array_holds_bytes_and_is_mapped(cache):
    tensors = EvaluationSplit(made(), own())
    array = np.load(next(cache.iterdir()))
    assert array.shape == (9, 24, 24, 3) and array.dtype == np.uint8
    assert isinstance(tensors.pixels.array, np.memmap) and np.array_equal(tensors.pixels.array, array)


def test_images_are_decoded_once(cache, monkeypatch):
    EvaluationSplit(made(), own())
    decoded = []
    monkeypatch.setattr(Pictures, "image", lambda source, index: decoded.append(index) or picture(index, (30, 30)))
    again = EvaluationSplit(made(), own())
    first = [again[index][0] for index in range(9)]
    assert len(decoded) <= 1  # one tells the shape
    assert not torch.equal(first[1], own()(picture(7, (30, 30))))


def test_other_data_images_and_transforms_have_arrays_of_their_own(cache):
    splits = [made(), made(fingerprint="g"), made(indices=[0, 1, 2]), made(indices=[0, 2, 1]), made(name="train")]
    transforms = [own(), own(23), own(interpolation="bilinear"), *(make() for make in TRANSFORMS.values())]
    transforms.append(timms("squash"))
    for count, split in enumerate(splits, start=1):
        EvaluationSplit(split, own())
        assert len(list(cache.iterdir())) == count
    for transform in transforms:
        tensors = EvaluationSplit(splits[0], transform)
        assert all(torch.equal(tensors[index][0], transform(splits[0].image(index))) for index in range(9))
    # own() twice, the border's colour apart from the side's, and the open_clip names of the same steps
    assert len(list(cache.iterdir())) == len(splits) + len(transforms) - 2


def test_versions_of_the_libraries_are_part_of_the_name(cache, monkeypatch):
    import torchvision

    EvaluationSplit(made(), own())
    for module in (torchvision, pixels.PIL):
        monkeypatch.setattr(module, "__version__", "0.0")
        EvaluationSplit(made(), own())
    assert len(list(cache.iterdir())) == 3


def test_other_processes_find_the_array(cache):
    EvaluationSplit(made(), own())
    code = "\n".join(
        [
            "from randlora_core.datasets import eval_transform, pixels",
            f"steps = eval_transform(24, {MEAN}, {STD}, interpolation=''.join(['bicu', 'bic'])).transforms[:-2]",
            "print(pixels._recipe(steps).hex())",
        ]
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == pixels._recipe(own().transforms[:-2]).hex()


def not_uint8(image):
    return image.convert("F")


@pytest.mark.parametrize("case", ["function", "no normalisation", "lambda", "no RGB", "no fingerprint", "unversioned"])
def test_what_cannot_be_cut_or_named_is_computed_every_time(cache, case):
    from torchvision.transforms import Compose, Lambda

    steps = own().transforms
    transform = {
        "function": lambda image: own()(image),
        "no normalisation": Compose(steps[:-1]),
        "lambda": Compose([Lambda(lambda image: image), *steps]),
        "no RGB": Compose([*steps[:-2], not_uint8, steps[-2]]),
        "unversioned": Compose([lambda image: image, *steps]),
        "no fingerprint": own(),
    }[case]
    split = made(fingerprint=None if case == "no fingerprint" else "f")
    tensors = EvaluationSplit(split, transform)
    assert tensors.pixels is None and not cache.exists()
    assert all(torch.equal(tensors[index][0], transform(split.image(index))) for index in range(9))


def test_large_arrays_are_not_kept(cache, monkeypatch):
    monkeypatch.setattr(pixels, "MAX_ARRAY_BYTES", 9 * 24 * 24 * 3 - 1)
    tensors = EvaluationSplit(made(), own())
    assert tensors.pixels is None and not cache.exists()
    assert torch.equal(tensors[3][0], own()(made().image(3)))
    monkeypatch.setattr(pixels, "MAX_ARRAY_BYTES", 9 * 24 * 24 * 3)
    assert EvaluationSplit(made(), own()).pixels is not None


def test_a_cache_that_cannot_be_written_is_done_without(cache, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        tensors = EvaluationSplit(made(), own())
        assert tensors.pixels is None and list(cache.iterdir()) == []
    cache.rmdir()
    cache.write_text("a file in the folder's place")
    tensors = EvaluationSplit(made(), own())
    assert tensors.pixels is None and torch.equal(tensors[3][0], own()(made().image(3)))


@pytest.mark.parametrize("harm", ["truncated", "emptied", "another shape", "another type"])
def test_a_harmed_array_is_made_again(cache, harm):
    expected = torch.stack([EvaluationSplit(made(), own())[index][0] for index in range(9)])
    (file,) = cache.iterdir()
    content = file.read_bytes()
    if harm.startswith("another"):
        shape, kind = ((8, 24, 24, 3), np.uint8) if harm == "another shape" else ((9, 24, 24, 3), np.int8)
        np.save(file, np.zeros(shape, kind))
    else:
        file.write_bytes(content[: len(content) // 2] if harm == "truncated" else b"")
    tensors = EvaluationSplit(made(), own())
    assert torch.equal(torch.stack([tensors[index][0] for index in range(9)]), expected)
    assert [path.read_bytes() for path in cache.iterdir()] == [content]


def test_an_unreadable_image_is_named_and_nothing_is_left(cache):
    class Broken(Pictures):
        def image(self, index):
            if index == 4:
                raise OSError("image file is truncated")
            return super().image(index)

    split = dataclasses.replace(made(), source=Broken(9), indices=np.arange(9))
    with pytest.raises(ValueError, match=r"'made', split 'test', index 4 \(picture 4\): image file is truncated"):
        EvaluationSplit(split, own())
    assert list(cache.iterdir()) == []


def test_images_of_several_sizes_are_named(cache):
    from torchvision.transforms import Compose

    uneven = Compose([own().transforms[0], *own().transforms[2:]])
    with pytest.raises(ValueError, match=r"image 1 has shape \(\d+, \d+, 3\), image 0 \(\d+, \d+, 3\)"):
        EvaluationSplit(made(), uneven)


def test_the_array_is_not_sent_to_other_processes(cache):
    tensors = EvaluationSplit(made(), own())
    expected = tensors[4][0]
    slim = dataclasses.replace(tensors.split, source=None)
    tensors.split, tensors.transform = slim, None
    content = pickle.dumps(tensors)
    assert len(content) < 4000 < tensors.pixels.array.nbytes
    assert torch.equal(pickle.loads(content)[4][0], expected)


def test_workers_give_the_same_batches(cache):
    loader = torch.utils.data.DataLoader(EvaluationSplit(made(), own()), batch_size=4, num_workers=1)
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, torch.stack([own()(made().image(index)) for index in range(9)]))


def test_training_without_crops_takes_the_array_of_evaluation(cache, monkeypatch):
    evaluation = EvaluationSplit(made(), own())
    monkeypatch.setattr(Pictures, "image", lambda source, index: picture(index, (30, 30)) if index == 8 else refuse())
    settings = (own(), 24, MEAN, STD, "bicubic")
    training = TrainingSplit(made(), training_transform(*settings, crop=1.0, flip=True))
    for index in range(9):
        plain, result = evaluation[index][0], training.image(index, Stream("flip", index))
        assert torch.equal(result, plain.flip(-1) if Stream("flip", index).integer(2) else plain)
    with pytest.raises(AssertionError, match="decoded again"):
        TrainingSplit(made(), training_transform(*settings, crop=0.5, flip=True)).image(3, Stream("crop"))
