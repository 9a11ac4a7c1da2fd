import numpy as np

from randlora_core.streams import Stream

# Published outputs of SplitMix64 for the state 1234567 (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_numbers_are_those_of_splitmix64():
    stream = Stream()
    stream._state = 1234567
    assert [stream.bits() for _ in PUBLISHED] == PUBLISHED


def test_the_array_continues_the_single_draws():
    one, many = Stream("a", 7), Stream("a", 7)
    expected = [one.bits() for _ in range(10)]
    assert [many.bits(), *many.array(8).tolist(), many.bits()] == expected


def test_streams_with_other_keys_differ():
    keys = [("a", 0), ("a", 1), ("b", 0), (0, "a"), ("a", "0"), ("a0",), ("a", -1), ("a", 2**70)]
    firsts = [Stream(*key).bits() for key in keys]
    assert len(set(firsts)) == len(keys)
    # Golden value: a change would change every split and generated image.
    assert Stream("few-shot", 0).bits() == 13288507665664956865


def test_uniform_and_integer_cover_their_ranges():
    stream = Stream("range")
    values = np.array([stream.uniform(-2, 3) for _ in range(4000)])
    assert values.min() >= -2 and values.max() < 3
    # Standard error of the mean of 4,000 draws with standard deviation 5 / sqrt(12) is 0.023.
    assert abs(values.mean() - 0.5) < 0.1
    counts = np.bincount([stream.integer(5) for _ in range(5000)], minlength=5)
    # 1,000 expected, standard deviation 28.
    assert counts.min() > 850 and len(counts) == 5
    assert {stream.choice("xyz") for _ in range(100)} == set("xyz")
