import numpy as np
import torch

from randlora_core.splitmix import as_signed, mix, outputs, shift_right, tensor_outputs

# Published outputs of SplitMix64 for the state 1234567 (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_outputs_are_the_published_ones_in_both_forms():
    assert outputs(np.uint64(1234567), np.arange(5, dtype=np.uint64)).tolist() == PUBLISHED
    signed = tensor_outputs(torch.tensor(1234567), torch.arange(5))
    assert signed.tolist() == [as_signed(word) for word in PUBLISHED]


def test_both_forms_agree_on_many_states_and_positions():
    states = np.random.default_rng(0).integers(0, 2**64, (3, 200), dtype=np.uint64)
    positions = np.array([0, 1, 2, 1000, 2**63 - 2, 2**64 - 1], dtype=np.uint64)
    expected = outputs(states, positions)
    found = tensor_outputs(torch.from_numpy(states.view(np.int64)), torch.from_numpy(positions.view(np.int64)))
    assert expected.shape == (3, 200, 6)
    assert torch.equal(found, torch.from_numpy(expected.view(np.int64)))


def test_an_output_does_not_depend_on_what_is_computed_beside_it():
    states, positions = np.array([5, 2**64 - 1], dtype=np.uint64), np.arange(40, dtype=np.uint64)
    whole = outputs(states, positions)
    assert np.array_equal(whole[1:, 17:20], outputs(states[1:], positions[17:20]))
    assert np.array_equal(states, [5, 2**64 - 1])


def test_plain_integers_and_arrays_are_mixed_alike():
    words = [0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF]
    mixed = mix(np.array(words, dtype=np.uint64))
    assert [mix(word) for word in words] == mixed.tolist() and mixed.dtype == np.uint64


def test_the_shift_fills_with_zeros():
    words = [2**64 - 1, 2**63, 12345]
    signed = torch.tensor([as_signed(word) for word in words])
    for places in (1, 27, 40):
        assert shift_right(signed, places).tolist() == [word >> places for word in words]
