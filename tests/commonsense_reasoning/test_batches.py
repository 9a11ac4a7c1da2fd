import itertools
import pickle

import pytest
import torch

from commonsense_reasoning.batches import GROUP_BATCHES, ExampleBatches, collate, validation_batches
from commonsense_reasoning.prompts import EncodedExample

END = 9
SHORT, LONG = EncodedExample((5, 6, END), 1, False), EncodedExample((5, 9, 7, 8, END), 3, False)
CUT = EncodedExample((5, 6), 2, True)


def make_batches(count=30, num_batches=120, size=4, seed=3, group_by_length=False):
    """Batches of examples that are told apart by their first token; lengths from 2 to 11."""
    examples = [EncodedExample((100 + n, *range(1 + 7 * n % 10)), 1, False) for n in range(count)]
    settings = {"batch_size": size, "num_batches": num_batches, "seed": seed, "group_by_length": group_by_length}
    return ExampleBatches(examples, filler=END, loss_on="answer", **settings)


def chosen(batches, indices):
    return [(batches[index][0][:, 0] - 100).tolist() for index in indices]


def test_padding_and_the_loss_on_prompt_and_answer():
    tokens, is_target = collate([SHORT, LONG], END, "full")
    assert tokens.tolist() == [[5, 6, 9, 9, 9], [5, 9, 7, 8, 9]]
    assert is_target.tolist() == [[False, True, True, False, False], [False, True, True, True, True]]


def test_the_loss_on_the_answer_and_its_end():
    """The end token is learnt although padding consists of it; an answer that is cut off has no loss."""
    tokens, is_target = collate([SHORT, LONG, CUT], END, "answer")
    assert tokens[is_target].tolist() == [6, END, 8, END]
    assert is_target.tolist() == [[False, True, True, False, False], [False, False, False, True, True], [False] * 5]


@pytest.mark.parametrize("group_by_length", [False, True])
def test_a_batch_is_a_function_of_its_number(group_by_length):
    batches, again = (make_batches(group_by_length=group_by_length) for _ in range(2))
    order = list(range(len(batches)))
    expected = chosen(batches, order)
    assert chosen(again, order[::-1]) == expected[::-1]
    assert chosen(pickle.loads(pickle.dumps(batches)), [77, 3]) == [expected[77], expected[3]]
    assert chosen(make_batches(seed=4, group_by_length=group_by_length), order) != expected
    with pytest.raises(IndexError):
        batches[120]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


@pytest.mark.parametrize("group_by_length", [False, True])
def test_every_epoch_has_every_example_once(group_by_length):
    """120 batches of 4 are 16 epochs of 30; those of one group are 20 epochs of 10."""
    seen = flat(chosen(make_batches(group_by_length=group_by_length), range(120)))
    assert torch.bincount(torch.tensor(seen)).tolist() == [16] * 30
    grouped = make_batches(count=10, num_batches=GROUP_BATCHES, group_by_length=group_by_length)
    assert torch.bincount(torch.tensor(flat(chosen(grouped, range(GROUP_BATCHES))))).tolist() == [20] * 10


def test_grouping_pads_less_and_shuffles():
    plain, grouped = make_batches(), make_batches(group_by_length=True)

    def sizes(batches):
        return [batches[index][0].shape[1] for index in range(GROUP_BATCHES)]

    assert sum(sizes(grouped)) < 0.75 * sum(sizes(plain))
    assert sizes(grouped) != sorted(sizes(grouped))
    assert sorted(flat(chosen(grouped, range(120)))) == sorted(flat(chosen(plain, range(120))))


def test_validation_takes_every_example_once():
    found = list(validation_batches([LONG, SHORT, LONG, SHORT, CUT], batch_size=2, filler=END, loss_on="full"))
    assert [tokens.shape for tokens, _ in found] == [(2, 5), (2, 3), (1, 2)]
    assert sum(int(is_target.sum()) for _, is_target in found) == 2 * 4 + 2 * 2 + 1


def test_what_is_given_behind_the_first_answer_carries_no_loss_on_the_answer():
    example = EncodedExample(tuple(range(1, 11)), 3, False, given=((5, 7), (9, 14)))
    other = EncodedExample(tuple(range(1, 13)), 2, False)
    tokens, is_target = collate([example, other], 0, "answer")
    assert tokens[0][is_target[0]].tolist() == [4, 5, 8, 9] and tokens[1][is_target[1]].tolist() == list(range(3, 13))
    assert collate([example], 0, "full")[1].sum() == 9


def test_tokens_are_counted_without_padding():
    examples = [EncodedExample(tuple(range(size)), 1, False) for size in (3, 5, 9, 4)]
    settings = {"seed": 1, "filler": 0, "loss_on": "full", "group_by_length": False}
    batches = ExampleBatches(examples, batch_size=2, num_batches=4, **settings)
    assert sum(batches.num_tokens(index) for index in range(2)) == 21
    for index in range(4):
        assert batches.num_tokens(index) == int(batches[index][1].sum()) + 2
