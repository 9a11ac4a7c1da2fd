"""Anybody's data: which files and columns are recognised, and how rows become tokens."""

import csv
import json
from pathlib import Path

import datasets
import pytest
from sample_records import write_parquet
from tiny_tuning import instruction, write_json
from tokenizers_at_hand import FOLDER, REAL, make_tokenizer, needs_real_tokenizers

from commonsense_reasoning.batches import collate
from commonsense_reasoning.finetuning.encoding import encode_prompt, encode_row, prepare_data
from commonsense_reasoning.finetuning.rows import Rows, read_rows
from commonsense_reasoning.prompts import Example, encode_example, paper_prompt

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FORGETFUL = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and not loop.last %}[left out]"
    "{% else %}{{ message['content'] }}{% endif %}<end>{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "How heavy is the stone?"},
    {"role": "assistant", "content": "Very heavy."},
    {"role": "user", "content": "And the feather?"},
    {"role": "assistant", "content": "Not heavy at all."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([json.dumps(CHAT), *(json.dumps(instruction(number)) for number in range(50))], size=400)


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = CHATML
    yield tokenizer
    tokenizer.chat_template = None


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.json", write_json), ("a.jsonl", write_lines), ("a.csv", write_csv), ("a.parquet", write_parquet)],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, write):
    rows = [{**instruction(number), "extra": "x"} for number in range(6)]
    rows[1] |= {"output": "true", "instruction": "007"}
    rows[2] |= {"output": "NA", "input": 'one, "two"\nthree'}
    expected = [{key: row[key] for key in ("instruction", "input", "output")} for row in rows]
    assert read_rows(str(write(tmp_path / name, rows))) == Rows("instruction", expected)


def test_a_folder_and_the_hub_give_their_training_split(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    write_lines(tmp_path / "set" / "train.jsonl", [{"text": "one"}, {"text": "two"}])
    write_lines(tmp_path / "set" / "test.jsonl", [{"text": "three"}])
    rows = read_rows(str(tmp_path / "set"))
    assert (rows.kind, list(rows.values)) == ("text", ["one", "two"])
    table = datasets.Dataset.from_list([{"text": "from the hub"}])
    monkeypatch.setattr(
        "datasets.load_dataset", lambda place, split: table if (place, split) == ("o/d", "train") else 0
    )
    assert list(read_rows("o/d").values) == ["from the hub"]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_chats_are_recognised_by_either_name(tmp_path, column):
    theirs = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in CHAT]
    for messages in (CHAT, theirs):
        path = write_lines(tmp_path / "chat.jsonl", [{column: messages, "id": 3}])
        assert read_rows(str(path)) == Rows("chat", [CHAT])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "has the columns prompt, completion; accepted: instruction and output"),
        ({"instruction": "a", "output": 7}, "row 1: output is 7; accepted: a text"),
        ({"instruction": "a", "output": " "}, "row 1: output is ' '; accepted: a text"),
        ({"instruction": None, "output": "a"}, "row 1: instruction is None; accepted: a text"),
        ({"messages": CHAT[:1]}, "row 1: no message is the assistant's"),
        ({"messages": [{"speaker": "x", "content": "y"}]}, "accepted: one with role and content or from and value"),
        ({"messages": "hello"}, "row 1: 'hello' is no list of messages"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(ValueError) as raised:
        read_rows(str(write_lines(tmp_path / "bad.jsonl", [row])))
    assert message in str(raised.value) and "bad.jsonl" in str(raised.value)


def test_bad_places_are_named_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.json").write_text("{not json")
    (tmp_path / "empty.json").write_text("[]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, message in (
        (tmp_path / "a.txt", "the file's ending is '.txt'; accepted: .json, .jsonl, .csv, .parquet"),
        (tmp_path / "b.json", "there is no such file"),
        (tmp_path / "a.json", "cannot be read"),
        (tmp_path / "empty.json", ""),
        ("nobody/nothing", "nobody/nothing cannot be read"),
    ):
        with pytest.raises(ValueError) as raised:
            read_rows(str(name))
        assert message in str(raised.value) and "\n" not in str(raised.value) and str(name) in str(raised.value)


def targets(example, loss_on):
    """The tokens that carry loss."""
    tokens, is_target = collate([example], 0, loss_on)
    return tokens[is_target].tolist()


def test_instructions_have_the_prompt_of_the_experiment(tokenizer):
    row = {"instruction": "Name it.", "input": "A stone.", "output": "the stone"}
    expected = encode_example(tokenizer, Example((paper_prompt("Name it.", "A stone."),), "the stone"), 512)
    assert encode_row("instruction", row, tokenizer, 512, "full") == expected
    prompt = encode_prompt("instruction", "Name it.", "A stone.", tokenizer)
    assert list(expected.tokens[: expected.answer_start]) == prompt


def test_a_conversation_is_written_by_the_template_and_its_answers_carry_the_loss(chat_tokenizer):
    example = encode_row("chat", CHAT, chat_tokenizer, 512, "answer")
    whole = chat_tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert chat_tokenizer.decode(example.tokens) == whole and not example.is_cut
    assert chat_tokenizer.decode(targets(example, "answer")) == "Very heavy.<end>\nNot heavy at all.<end>\n"
    assert len(targets(example, "full")) == len(example.tokens) - 1
    prompt = encode_prompt("chat", CHAT[0]["content"], "", chat_tokenizer)
    assert list(example.tokens[: example.answer_start]) == prompt
    open_end = encode_row("chat", CHAT[:3], chat_tokenizer, 512, "answer")
    assert chat_tokenizer.decode(targets(open_end, "answer")) == "Very heavy.<end>\n"
    short = encode_row("chat", CHAT, chat_tokenizer, example.answer_start + 2, "answer")
    assert short.is_cut and targets(short, "answer") == list(example.tokens[example.answer_start :][:2])


def test_a_tokenizer_without_template_gets_a_plain_one(tokenizer):
    example = encode_row("chat", CHAT[:2], tokenizer, 512, "answer")
    assert tokenizer.decode(example.tokens).startswith("### User:\nHow heavy is the stone?\n\n### Assistant:\nVery")
    assert tokenizer.decode(targets(example, "answer")).rstrip() == "Very heavy.<end>"


def test_an_answer_that_the_template_does_not_end_gets_an_end(tokenizer):
    tokenizer.chat_template = CHATML.replace("<end>", "")
    example = encode_row("chat", CHAT[:2], tokenizer, 512, "answer")
    tokenizer.chat_template = None
    assert (
        example.tokens[-1] == tokenizer.eos_token_id
        and tokenizer.decode(targets(example, "answer")).count("<end>") == 1
    )


def test_a_template_that_rewrites_earlier_turns_is_learned_whole_or_refused(tokenizer):
    tokenizer.chat_template = FORGETFUL
    try:
        whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
        assert tokenizer.decode(encode_row("chat", CHAT, tokenizer, 512, "full").tokens) == whole
        with pytest.raises(ValueError, match="writes an answer otherwise where turns follow"):
            encode_row("chat", CHAT, tokenizer, 512, "answer")
        tokenizer.chat_template = "{{ raise_exception('no such role') }}"
        with pytest.raises(ValueError, match="refuses the roles user, assistant, user, assistant: no such role"):
            encode_row("chat", CHAT, tokenizer, 512, "full")
    finally:
        tokenizer.chat_template = None


def test_texts_end_with_the_end_token(tokenizer):
    example = encode_row("text", "the stone and the river", tokenizer, 512, "full")
    assert tokenizer.decode(example.tokens) == "the stone and the river<end>"
    assert encode_prompt("text", "the stone", "", tokenizer) == tokenizer("the stone").input_ids
    assert len(encode_row("text", 50 * "stone ", tokenizer, 20, "full").tokens) == 20


def test_rows_are_held_out_cut_off_and_left_out(tokenizer):
    rows = [instruction(number) for number in range(20)]
    cutoff = max(len(encode_row("instruction", row, tokenizer, 512, "full").tokens) for row in rows)
    rows[3]["output"], rows[4]["instruction"] = 200 * "stone ", 200 * "river "
    data = prepare_data(Rows("instruction", rows), tokenizer, cutoff=cutoff, loss_on="answer", validation=500)
    assert (len(data.train), len(data.validation), data.kind) == (16, 3, "instruction")
    assert data.remarks == (
        f"2 of 20 answers are cut off at {cutoff} tokens.",
        "1 rows have no token with loss and are left out.",
        "3 rows are held out for validation instead of 500: a fifth of all is the most.",
    )
    assert not {*data.train} & {*data.validation} and len({*data.train, *data.validation}) == 19
    again = prepare_data(Rows("instruction", rows), tokenizer, cutoff=cutoff, loss_on="answer", validation=2)
    assert {*again.validation} < {*data.validation}
    assert not prepare_data(
        Rows("instruction", rows), tokenizer, cutoff=cutoff, loss_on="answer", validation=0
    ).validation
    whole = prepare_data(Rows("instruction", rows), tokenizer, cutoff=cutoff, loss_on="full", validation=0)
    assert len(whole.train) == 20


def test_it_is_an_error_if_no_answer_is_whole(tokenizer):
    rows = Rows("instruction", [instruction(number) for number in range(10)])
    longest = max(len(encode_row("instruction", row, tokenizer, 512, "full").tokens) for row in rows.values)
    assert prepare_data(rows, tokenizer, cutoff=longest, loss_on="full", validation=0).remarks == ()
    with pytest.raises(ValueError, match="--cutoff_len 60 cuts off the answers of all 10 rows"):
        prepare_data(rows, tokenizer, cutoff=60, loss_on="full", validation=0)
    texts = Rows("text", [50 * "stone "] * 3)
    assert prepare_data(texts, tokenizer, cutoff=20, loss_on="full", validation=0).remarks[0].startswith("3 of 3 texts")
    with pytest.raises(ValueError, match="leaves no token to predict in any of 3 rows"):
        prepare_data(texts, tokenizer, cutoff=1, loss_on="full", validation=0)
    with pytest.raises(ValueError, match="--answer_only has no effect on rows of plain text"):
        prepare_data(texts, tokenizer, cutoff=20, loss_on="answer", validation=0)


@needs_real_tokenizers
@pytest.mark.parametrize("name", REAL)
def test_chats_with_real_tokenizers(name):
    tokenizer = REAL[name](Path(FOLDER))
    example = encode_row("chat", CHAT, tokenizer, 512, "answer")
    answers = tokenizer.decode(targets(example, "answer"), skip_special_tokens=True)
    assert "Very heavy." in answers and "Not heavy at all." in answers and "stone" not in answers
    prompt = encode_prompt("chat", CHAT[0]["content"], "", tokenizer)
    assert list(example.tokens[: example.answer_start]) == prompt
