from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from randlora_core import machine
from randlora_core.datasets import decoding
from randlora_core.errors import WIDTH, one_line


def test_a_message_is_put_on_one_line_and_cut_where_it_is_long():
    assert one_line(ValueError("two\n  lines,\tand more ")) == "two lines, and more"
    assert one_line(KeyError()) == "KeyError" and one_line(OSError("\n")) == "OSError"
    shown = one_line(ValueError("word " * 1000))
    assert shown.startswith("word word") and shown.endswith("[...]") and WIDTH - 10 < len(shown) <= WIDTH
    path = one_line(OSError("cannot read /" + "a" * 1000))
    assert path.startswith("cannot read /aaa") and path.endswith("a [...]") and len(path) == WIDTH


def test_cores_that_this_process_may_not_use_are_not_counted(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 6}, raising=False)
    assert machine.usable_cores() == 3


def test_images_are_decoded_on_the_cores_that_this_process_may_use(monkeypatch):
    class Source:
        labels = np.zeros(7)

        def image(self, index):
            return Image.new("RGB", (index + 1, 1))

    asked = []

    def pool(workers):
        asked.append(workers)
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(decoding, "usable_cores", lambda: 3)
    monkeypatch.setattr(decoding, "ThreadPoolExecutor", pool)
    assert list(decoding.decode_all(Source(), lambda image: image.width)) == list(range(1, 8)) and asked == [3]
