import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Neither reads what an earlier version drew nor leaves anything behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANDLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """A folder with one data set, `pets`: three classes of coloured noise, 6 training and 3 test images of each."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("ant", "bee", "cow")):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 120, (20, 24, 3), np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root
