import json

import numpy as np
import pytest

from randlora_core.experiment.records.predictions import decode_predictions, encode_predictions


@pytest.mark.parametrize(("classes", "encoding"), [(256, "uint8-zlib-base64"), (257, "uint16-zlib-base64")])
def test_round_trip_through_json(classes, encoding):
    draw = np.random.default_rng(0)
    predicted, labels = draw.integers(0, classes, (2, 999))
    predicted[0], labels[0] = classes - 1, 0
    packed = json.loads(json.dumps(encode_predictions(predicted, labels)))
    assert packed["encoding"] == encoding and packed["shape"] == [999]
    decoded = decode_predictions(packed)
    assert np.array_equal(decoded[0], predicted) and np.array_equal(decoded[1], labels)


def test_equal_predictions_take_few_bytes():
    packed = encode_predictions(np.zeros(10_000), np.zeros(10_000))
    assert len(json.dumps(packed)) < 250


def test_what_cannot_be_packed_or_unpacked_is_refused():
    with pytest.raises(ValueError, match="shape"):
        encode_predictions([1, 2], [1])
    with pytest.raises(ValueError, match="from -1 to 2"):
        encode_predictions([-1, 2], [1, 1])
    with pytest.raises(ValueError, match="65536"):
        encode_predictions([65536], [1])
    packed = encode_predictions([1, 2], [1, 1])
    with pytest.raises(ValueError, match="unknown encoding 'raw'"):
        decode_predictions({**packed, "encoding": "raw"})
    with pytest.raises(ValueError, match="2 predictions"):
        decode_predictions({**packed, "shape": [3]})
