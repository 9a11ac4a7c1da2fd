import numpy as np
import pytest
import torch
from sample_records import make_record
from tiny_language_models import new_model
from tokenizers_at_hand import make_tokenizer
from transformers import GenerationConfig

from commonsense_reasoning.batches import collate
from commonsense_reasoning.generation import generate, read_answer, score_answers
from commonsense_reasoning.objective import LanguageModelLoss
from commonsense_reasoning.prompts import encode_context, encode_examples, paper_example, paper_prompt
from commonsense_reasoning.tasks import ANSWER_OPENING, CHOICES, LAYOUTS, TRUE_FALSE, check_record, parse_question

CPU = torch.device("cpu")
SETTINGS = {"device": CPU, "precision": "fp32"}
RECORDS = [check_record(make_record(layout, number)) for number in range(3) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([paper_prompt(record.instruction) + record.output for record in RECORDS], size=700)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def trained(request, tokenizer):
    """A tiny model that has learnt to answer, and some of the answers."""
    model = new_model(request.param, len(tokenizer))
    batch = collate(encode_examples(tokenizer, map(paper_example, RECORDS), 1024), tokenizer.eos_token_id, "answer")
    loss, optimizer = LanguageModelLoss(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(90):
        total, count = loss(*batch)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert (total / count).item() < 0.2
    return model.eval()


def prompts_of(tokenizer):
    return [encode_context(tokenizer, (paper_prompt(record.instruction),)) for record in RECORDS]


def test_a_trained_model_writes_the_same_text_in_batches_of_any_size(trained, tokenizer):
    prompts = prompts_of(tokenizer)
    assert len({len(prompt) for prompt in prompts}) > 3
    texts = [generate(trained, tokenizer, prompts, batch_size=size, **SETTINGS) for size in (1, 3, 8)]
    assert texts[0] == texts[1] == texts[2]
    assert all(text.startswith(ANSWER_OPENING) for text in texts[0]) and len(set(texts[0])) > 4


@torch.no_grad()
def test_it_is_the_beam_search_of_transformers_on_one_prompt_without_padding(trained, tokenizer):
    end = tokenizer.eos_token_id
    for prompt, text in zip(
        prompts_of(tokenizer),
        generate(trained, tokenizer, prompts_of(tokenizer), batch_size=8, **SETTINGS),
        strict=True,
    ):
        config = GenerationConfig(num_beams=4, max_new_tokens=32, eos_token_id=end, pad_token_id=end)
        written = trained.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == text


def test_the_models_own_decoding_settings_do_not_matter(trained, tokenizer):
    prompts = prompts_of(tokenizer)[:4]
    expected = generate(trained, tokenizer, prompts, batch_size=4, **SETTINGS)
    before = trained.generation_config
    trained.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, eos_token_id=[5, 6], pad_token_id=7, num_beams=1
    )
    try:
        assert generate(trained, tokenizer, prompts, batch_size=4, **SETTINGS) == expected
    finally:
        trained.generation_config = before


def test_the_score_of_generated_answers(trained, tokenizer):
    records = [record for record in RECORDS if record.instruction.startswith(CHOICES.opening)]
    questions = [parse_question(record) for record in records]
    score = score_answers(trained, tokenizer, records, questions, batch_size=2, **SETTINGS)
    texts = generate(
        trained,
        tokenizer,
        [encode_context(tokenizer, (paper_prompt(r.instruction),)) for r in records],
        batch_size=1,
        **SETTINGS,
    )
    found = [CHOICES.extract_answer(text) for text in texts]
    assert score.value == np.mean([answer == record.answer for answer, record in zip(found, records, strict=True)])
    assert score.labels.tolist() == [question.correct for question in questions] and score.size == len(records)
    assert score.details == {"unparseable": np.mean([answer is None for answer in found])}


def test_in_bf16_the_share_of_texts_that_depend_on_the_batch_is_counted(trained, tokenizer, monkeypatch):
    records = [record for record in RECORDS if record.instruction.startswith(CHOICES.opening)] * 3
    questions, bf16 = [parse_question(record) for record in records], {**SETTINGS, "precision": "bf16"}
    prompts = [encode_context(tokenizer, (paper_prompt(record.instruction),)) for record in records]
    together = generate(trained, tokenizer, prompts, batch_size=4, **bf16)
    written = []

    def every_third_differs(model, tokenizer, prompts, *, batch_size, **settings):
        texts = generate(model, tokenizer, prompts, batch_size=batch_size, **settings)
        written.append((batch_size, list(prompts)))
        return [text + "!" * (batch_size == 1 and place % 3 == 0) for place, text in enumerate(texts)]

    def details(**settings):
        return score_answers(trained, tokenizer, records, questions, **settings).details

    monkeypatch.setattr("commonsense_reasoning.generation.COMPARED", 6)
    plain = details(batch_size=4, **bf16)
    alone = generate(trained, tokenizer, [prompts[place] for place in (0, 1, 3, 4, 6, 7)], batch_size=1, **bf16)
    expected = np.mean([text != together[place] for text, place in zip(alone, (0, 1, 3, 4, 6, 7), strict=True)])
    assert (plain["batch_disagreement"], plain["batch_compared"]) == (expected, 6)
    monkeypatch.setattr("commonsense_reasoning.generation.generate", every_third_differs)
    found = details(batch_size=4, **bf16)
    assert found["batch_disagreement"] >= 2 / 6 and [size for size, _ in written] == [4, 1]
    assert written[1][1] == [prompts[place] for place in (0, 1, 3, 4, 6, 7)]
    for settings in ({"batch_size": 1, **bf16}, {"batch_size": 4, **SETTINGS}):
        assert set(details(**settings)) == {"unparseable"}


def test_answers_that_cannot_be_read_are_wrong_and_counted(trained, tokenizer, monkeypatch):
    records = [check_record(make_record(TRUE_FALSE, number)) for number in range(4)]
    written = iter([["true", "I do not know", "false or true", "TRUE"]])
    monkeypatch.setattr("commonsense_reasoning.generation.generate", lambda *args, **kwargs: next(written))
    score = score_answers(trained, tokenizer, records, [parse_question(r) for r in records], batch_size=2, **SETTINGS)
    assert score.predicted.tolist() == [0, 2, 1, 2] and score.labels.tolist() == [0, 1, 0, 1]
    assert score.value == 0.25 and score.details == {"unparseable": 0.5}


def test_what_follows_the_last_response_is_read():
    assert read_answer("answer1 ### Response: answer3", CHOICES) == 2
    assert read_answer("answer2", CHOICES) == 1 and read_answer("", CHOICES) == 5
