"""Files as torchvision's classes unpack them.

Each function writes those of one data set and returns what should be read: split -> [(class name, number of the picture
or its pixels)] in order.
"""

import csv
import gzip
import json
import pickle
import struct

import numpy as np
from sample_images import encoded, picture

from randlora_core.datasets import CATALOG


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))  # PNG whatever the name says; Pillow looks at the content


def write_folders(folder, classes, first=0, name="{}.jpg"):
    for number, label in enumerate(classes):
        save(folder / label / name.format(number), first + number)


def eurosat(root):
    write_folders(root / "eurosat" / "2750", ["AnnualCrop", "Forest", "River"])
    return {"train": [("annual crop land", 0), ("forest", 1), ("river", 2)]}


def country211(root):
    for first, split in enumerate(("train", "valid", "test")):
        write_folders(root / "country211" / split, ["AD", "AE"], 10 * first)
    return {
        split: [("AD", 10 * first), ("AE", 10 * first + 1)]
        for first, split in enumerate(("train", "validation", "test"))
    }


def dtd(root):
    found = {}
    for first, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        lines = [f"{label}/{label}_{split}.jpg" for label in ("zigzagged", "banded")]
        for number, line in enumerate(lines):
            save(root / "dtd" / "dtd" / "images" / line, 10 * first + number)
        path = root / "dtd" / "dtd" / "labels" / f"{name}1.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
        found[split] = [("zigzagged", 10 * first), ("banded", 10 * first + 1)]
    return found


def food101(root):
    (root / "food-101" / "meta").mkdir(parents=True)
    for first, split in enumerate(("train", "test")):
        listed = {label: [f"{label}/{split}"] for label in ("apple_pie", "ramen")}
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for number, label in enumerate(listed):
            save(root / "food-101" / "images" / label / f"{split}.jpg", 10 * first + number)
    return {
        split: [("apple pie", 10 * first), ("ramen", 10 * first + 1)] for first, split in enumerate(("train", "test"))
    }


def gtsrb(root):
    for label in range(43):
        write_folders(root / "gtsrb" / "GTSRB" / "Training", [f"{label:05d}"], label, name="{}.ppm")
    with (root / "gtsrb" / "GT-final_test.csv").open("w") as file:
        writer = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        writer.writeheader()
        for label in range(42, -1, -1):
            save(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{label}.ppm", 100 + label)
            writer.writerow({"Filename": f"{label}.ppm", "ClassId": label})
    names = CATALOG["gtsrb"].class_names
    return {
        "train": [(names[label], label) for label in range(43)],
        "test": [(names[label], 100 + label) for label in range(42, -1, -1)],
    }


def fgvc_aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("707-320\n727-200\n")
    found = {}
    for first, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        (data / f"images_variant_{name}.txt").write_text(f"{name}1 727-200\n{name}2 707-320\n")
        for number in (1, 2):
            save(data / "images" / f"{name}{number}.jpg", 10 * first + number)
        found[split] = [("727-200", 10 * first + 1), ("707-320", 10 * first + 2)]
    return found


def oxford_iiit_pet(root):
    folder = root / "oxford-iiit-pet"
    for first, name in enumerate(("trainval", "test")):
        for number, label in enumerate(("Abyssinian", "american_bulldog")):
            save(folder / "images" / f"{label}_{name}.jpg", 10 * first + number)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{name}.txt").write_text(f"american_bulldog_{name} 2 2 1\nAbyssinian_{name} 1 1 1\n")
    return {
        split: [("american bulldog", 10 * first + 1), ("Abyssinian", 10 * first)]
        for first, split in enumerate(("train", "test"))
    }


def caltech101(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    for number, label in enumerate(("BACKGROUND_Google", "Faces", "accordion")):
        save(folder / label / "image_0001.jpg", number)
    (root / "caltech101" / "Annotations").mkdir()
    return {"train": [("off-center face", 1), ("accordion", 2)]}


def caltech256(root):
    folder = root / "caltech256" / "256_ObjectCategories"
    for number, label in enumerate(("001.ak47", "002.car-side-101")):
        save(folder / label / f"{number + 1:03d}_0001.jpg", number)
    return {"train": [("ak47", 0), ("car side", 1)]}


def pascal_voc(root):
    folder = root / "VOCdevkit" / "VOC2007"
    for place in ("ImageSets/Main", "Annotations"):
        (folder / place).mkdir(parents=True)
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    found = {}
    for number, (split, name) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(f"00000{number}\n")
        save(folder / "JPEGImages" / f"00000{number}.jpg", number)
        objects = (
            f"<object><name>person</name><difficult>1</difficult>{box.format(2, 3, 7, 8)}"
            f"<part><name>head</name>{box.format(2, 3, 4, 4)}</part></object>"
            f"<object><name>dog</name>{box.format(1, 1, 10, 8)}</object>"
        )
        (folder / "Annotations" / f"00000{number}.xml").write_text(f"<annotation>{objects}</annotation>")
        found[split] = [("person", picture(number).crop((1, 2, 7, 8))), ("dog", number)]
    return found


def mnist(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    found = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (10, 28, 28), dtype=np.uint8)
        labels = np.arange(10, dtype=np.uint8)[::-1]
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, 10, 28, 28) + pixels.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 10) + labels.tobytes())
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"not read"))
        found[split] = [(str(label), pixels[row]) for row, label in enumerate(labels)]
    return found


def cifar10(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = list(CATALOG["cifar10"].class_names)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    found = {"train": [], "test": []}
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
        content = pickle.dumps({"data": pixels.reshape(10, -1), "labels": list(range(10))})
        (folder / (f"data_batch_{number + 1}" if number < 5 else "test_batch")).write_bytes(content)
        found["train" if number < 5 else "test"] += zip(names, pixels.transpose(0, 2, 3, 1), strict=True)
    return found


def svhn(root):
    import scipy.io

    found = {}
    for number, split in enumerate(("train", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
        scipy.io.savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(1, 11).reshape(10, 1)})
        found[split] = [(str((at + 1) % 10), pixels[..., at]) for at in range(10)]
    return found


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    names = CATALOG["stl10"].class_names
    (folder / "class_names.txt").write_text("\n".join(names))
    found = {}
    for number, split in enumerate(("train", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (10, 3, 96, 96), dtype=np.uint8)
        (folder / f"{split}_X.bin").write_bytes(pixels.tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
        found[split] = list(zip(names, pixels.transpose(0, 3, 2, 1), strict=True))
    return found


def flowers102(root):
    import scipy.io

    folder = root / "flowers-102"
    for number in range(1, 307):
        save(folder / "jpg" / f"image_{number:05d}.jpg", number)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": [(number - 1) % 102 + 1 for number in range(1, 307)]})
    names, numbers = CATALOG["flowers102"].class_names, np.arange(1, 103)
    splits = {"trnid": numbers, "valid": numbers + 102, "tstid": numbers + 204}
    scipy.io.savemat(folder / "setid.mat", splits)
    return {
        split: [(names[at], int(number)) for at, number in enumerate(splits[name])]
        for split, name in (("train", "trnid"), ("validation", "valid"), ("test", "tstid"))
    }


LAYOUTS = (
    *(eurosat, country211, dtd, food101, gtsrb, fgvc_aircraft, oxford_iiit_pet, caltech101, caltech256, pascal_voc),
    *(mnist, cifar10, svhn, stl10, flowers102),
)
