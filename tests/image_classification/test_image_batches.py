import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from randlora_core.datasets.images import ImageSplit
from randlora_core.datasets.transforms import eval_transform
from randlora_core.experiment.loop.data_order import DataOrder
from randlora_core.image_classification.batches import ImageBatches, evaluation_loader, training_images


class Source:
    """Image i is uniformly grey i, with a bright left column; its label is i modulo 3."""

    def __init__(self, count):
        self.labels = np.arange(count) % 3

    def image(self, index):
        pixels = np.full((12, 12, 3), index, np.uint8)
        pixels[:, 0] = 255
        return Image.fromarray(pixels)

    def where(self, index):
        return f"image {index}"


class Sizes:
    image_size, mean, std, interpolation = 12, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), "bicubic"
    image_transform = staticmethod(eval_transform(12, mean, std))


def batches(count=10, seed=0, crop=1.0, flip=False, size=4, number=20):
    split = ImageSplit("made", "train", Source(count), np.arange(count))
    images = training_images(split, Sizes, crop=crop, flip=flip)
    return ImageBatches(images, batch_size=size, num_batches=number, seed=seed)


def shown(item):
    return [round(float(image[0, 6, 6])) for image in item[0]]


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own():
    order = DataOrder(10, seed=0)
    taken = list(order.take(0, 40))
    epochs = [[image for epoch, image in taken if epoch == number] for number in range(4)]
    assert all(sorted(images) == list(range(10)) for images in epochs)
    assert len({tuple(images) for images in epochs}) == 4
    assert list(order.take(7, 8)) == taken[7:15]


def test_batches_are_full_and_a_function_of_seed_and_number_alone():
    one, other = batches(), batches()
    backwards = {index: other[index] for index in reversed(range(20))}
    for index in range(20):
        images, labels = one[index]
        assert images.shape == (4, 3, 12, 12) and images.dtype == torch.float32
        assert labels.tolist() == [value % 3 for value in shown((images,))]
        assert torch.equal(images, backwards[index][0]) and torch.equal(labels, backwards[index][1])
    assert [shown(batches(seed=1)[index]) for index in range(5)] != [shown(one[index]) for index in range(5)]
    assert len(one) == 20
    with pytest.raises(IndexError):
        one[20]


def test_order_and_augmentation_are_separate_streams():
    plain, cropped = batches(), batches(crop=0.5)
    assert [plain[index][1].tolist() for index in range(5)] == [cropped[index][1].tolist() for index in range(5)]
    assert not torch.equal(plain[0][0], cropped[0][0])
    assert torch.equal(cropped[0][0], batches(crop=0.5)[0][0])
    assert not torch.equal(batches(count=1, crop=0.5)[0][0][0], batches(count=1, crop=0.5)[0][0][1])


def test_half_of_the_images_are_mirrored_where_asked_for():
    images = torch.cat([batches(flip=True, number=50)[index][0] for index in range(50)])
    mirrored = images[:, 0, 6, -1] > 250
    assert 60 <= int(mirrored.sum()) <= 140
    assert (images[~mirrored][:, 0, 6, 0] > 250).all()
    assert (torch.cat([batches(number=50)[index][0] for index in range(50)])[:, 0, 6, 0] > 250).all()


def test_shards_have_all_images_between_them_as_the_whole_has_them():
    whole = batches(size=5, crop=0.5, flip=True)
    shards = [whole.shard(part, 2) for part in range(2)]
    for index in range(20):
        images, labels = whole[index]
        for part, shard in enumerate(shards):
            assert torch.equal(shard[index][0], images[part::2]) and torch.equal(shard[index][1], labels[part::2])
            assert torch.equal(shard.whole_labels(index), labels) and len(shard) == len(whole)
    with pytest.raises(ValueError, match="micro-batches of 5 images for 6 processes; accepted: 6 or more"):
        whole.shard(0, 6)


def test_batches_travel_to_the_processes_that_prepare_them():
    sent = pickle.loads(pickle.dumps(batches(crop=0.5, flip=True)))
    assert torch.equal(sent[3][0], batches(crop=0.5, flip=True)[3][0])


def test_evaluation_keeps_the_order_of_the_split():
    split = ImageSplit("made", "test", Source(7), np.array([6, 2, 4]))
    (images, labels), rest = list(evaluation_loader(split, Sizes, batch_size=2, workers=0, pin_memory=False))
    assert shown((images,)) + shown(rest) == [6, 2, 4]
    assert labels.tolist() + rest[1].tolist() == [0, 2, 1]
