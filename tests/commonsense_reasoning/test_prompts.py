from pathlib import Path

import pytest
from sample_records import make_record
from tokenizers_at_hand import FOLDER, REAL, make_tokenizer, needs_real_tokenizers

from commonsense_reasoning.prompts import (
    Choice,
    Example,
    cloze_choice,
    cloze_example,
    encode_choice,
    encode_continuation,
    encode_example,
    label_choice,
    paper_example,
    paper_prompt,
)
from commonsense_reasoning.tasks import CHOICES, ENDINGS, GAP, LAYOUTS, TRUE_FALSE, check_record, parse_question

SPACES = " " * 16


def sample(layout, number=4, **changed):
    record = check_record({**make_record(layout, number), **changed})
    return record, parse_question(record)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([make_record(layout, number)["instruction"] for layout in LAYOUTS for number in range(9)])


@pytest.fixture(scope="module", params=REAL)
def real_tokenizer(request):
    return REAL[request.param](Path(FOLDER))


def test_the_prompt_letter_for_letter():
    expected = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
        "\n"
        f"{SPACES}### Instruction:\n"
        f"{SPACES}Is it so?\n"
        "\n"
        "Answer format: true/false\n"
        f"{SPACES}\n"
        f"{SPACES}### Response:\n"
        f"{SPACES}"
    )
    assert paper_prompt("Is it so?\n\nAnswer format: true/false") == expected
    with_input = paper_prompt("Is it so?", "It is.")
    assert "paired with an input that provides further context. Write a response" in with_input
    assert f"{SPACES}Is it so?\n{SPACES}\n{SPACES}### Input:\n{SPACES}It is.\n{SPACES}\n{SPACES}### Resp" in with_input


def test_the_papers_example_and_its_labels():
    record, question = sample(CHOICES)
    assert paper_example(record) == Example((paper_prompt(record.instruction),), record.output)
    choice = label_choice(record, question)
    assert choice.options == (("", " answer1"), ("", " answer2"), ("", " answer3")) and choice.correct == 1
    assert "".join(choice.context) + choice.options[1][1] == paper_prompt(record.instruction) + record.output


def test_the_cloze_of_every_layout():
    _, question = sample(TRUE_FALSE)
    context = "Question: is a ladder number 4 heavy?\nAnswer:"
    assert cloze_choice(question) == Choice((context,), (("", " yes"), ("", " no")), 0)
    _, question = sample(TRUE_FALSE, input="A ladder is light.")
    assert cloze_choice(question).context == ("A ladder is light.\n" + context,)
    _, question = sample(CHOICES)
    assert cloze_choice(question).context == ("Question: What lies beside the ladder 4?\nAnswer:",)
    assert cloze_choice(question).options[0] == ("", " the needle")
    _, question = sample(ENDINGS)
    assert cloze_choice(question).context == ("At home: A man sees a ladder 4. he",)
    assert cloze_choice(question).options[3] == ("", " takes the mirror.")
    assert cloze_example(question) == Example(cloze_choice(question).context, cloze_choice(question).options[0][1])
    _, question = sample(GAP)
    choice = Choice(("The needle hit the stone and the",), ((" needle", " broke 4."), (" stone", " broke 4.")), 0)
    assert cloze_choice(question) == choice
    assert cloze_example(question) == Example(("The needle hit the stone and the", " needle"), " broke 4.")


def test_a_gap_at_the_beginning_and_one_inside_a_word(tokenizer):
    text = GAP.opening + "_'s bag.\n\nOption1: Ann Option2: Bea Answer format: option1/option2"
    _, question = sample(GAP, instruction=text)
    assert cloze_choice(question) == Choice(("",), (("Ann", "'s bag."), ("Bea", "'s bag.")), 0)
    encoded = encode_choice(tokenizer, cloze_choice(question))
    assert encoded.context == (tokenizer.eos_token_id,)
    assert tokenizer.decode(encoded.options[1][: encoded.num_given[1]]) == "Bea"
    assert tokenizer.decode(encoded.options[1][encoded.num_given[1] :]) == "'s bag."


def check_consistency(tokenizer, layout):
    """Training puts the same tokens before the answer as each protocol, and the answer's own are the right option's."""
    record, question = sample(layout)
    for example, choice in (
        (paper_example(record), label_choice(record, question)),
        (cloze_example(question), cloze_choice(question)),
    ):
        learnt, chosen = encode_example(tokenizer, example, 10_000), encode_choice(tokenizer, choice)
        right = chosen.options[chosen.correct]
        assert learnt.tokens == (*chosen.context, *right, tokenizer.eos_token_id)
        assert not learnt.is_cut and len(right) > chosen.num_given[chosen.correct]
        expected = "".join((*example.context, example.answer))
        assert tokenizer.decode(learnt.tokens, skip_special_tokens=True).strip() == expected.strip()
    prompt = tokenizer(paper_prompt(record.instruction)).input_ids
    learnt = encode_example(tokenizer, paper_example(record), 10_000)
    assert list(learnt.tokens[: learnt.answer_start]) == prompt
    assert tokenizer.decode(learnt.tokens[learnt.answer_start :], skip_special_tokens=True) == record.output


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.labels[0])
def test_training_and_evaluation_use_the_same_tokens(tokenizer, layout):
    check_consistency(tokenizer, layout)


@needs_real_tokenizers
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.labels[0])
def test_real_tokenizers_in_training_and_evaluation(real_tokenizer, layout):
    check_consistency(real_tokenizer, layout)


@needs_real_tokenizers
def test_a_continuation_has_the_tokens_that_it_has_within_a_text(real_tokenizer):
    for text in (" yes", " the floor", " answer12", "'s bag", "."):
        whole = real_tokenizer("Answer" + text, add_special_tokens=False).input_ids
        head = real_tokenizer("Answer", add_special_tokens=False).input_ids
        assert head + encode_continuation(real_tokenizer, text) == whole


def test_the_cutoff_counts_answers_that_lose_their_end(tokenizer):
    example = paper_example(sample(CHOICES)[0])
    whole = encode_example(tokenizer, example, 10_000)
    size = len(whole.tokens)
    assert whole.tokens[-1] == tokenizer.eos_token_id and not encode_example(tokenizer, example, size).is_cut
    short = encode_example(tokenizer, example, size - 1)
    assert short.tokens == whole.tokens[:-1] and short.is_cut and short.answer_start == whole.answer_start
    gone = encode_example(tokenizer, example, 20)
    assert gone.tokens == whole.tokens[:20] and gone.is_cut and gone.answer_start == 20


def test_a_tokenizer_that_ends_every_text(tokenizer):
    import copy

    from tokenizers.processors import TemplateProcessing

    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", tokenizer.eos_token_id)]
    )
    assert ending("a").input_ids[-1] == tokenizer.eos_token_id
    example = paper_example(sample(CHOICES)[0])
    assert encode_example(ending, example, 10_000) == encode_example(tokenizer, example, 10_000)


def test_a_tokenizer_without_an_end_is_refused(tokenizer):
    import copy

    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        encode_example(endless, paper_example(sample(CHOICES)[0]), 256)
