"""The task of rows."""

from __future__ import annotations

import random

import pytest

from areal_trainer.reward.gsm8k import gsm8k_reward_fn
from benchmarks.rows import DIGITS, ROWS, make_tokenizer, problem, prompt_of


def test_the_answer_is_the_third_row_and_begins_with_no_zero() -> None:
    draw = random.Random(1)
    for question, answer in (problem(draw) for _ in range(100)):
        assert question.split("/")[2] == answer
        assert answer[0] != "0"


def test_a_prompt_is_one_token_per_character_and_an_answer_survives_decoding() -> None:
    tokenizer = make_tokenizer()
    question, answer = problem(random.Random(3))
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == tokenizer(prompt_of(question))["input_ids"]
    assert len(ids) == ROWS * (DIGITS + 1) - 1 + 2
    text = f"#### {answer}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("last", "reward"), [("", 1.0), ("7", 0.0)])
def test_the_reward_compares_whole_answers(last: str, reward: float) -> None:
    _, answer = problem(random.Random(3))
    given = f"#### {answer}{last}"
    assert gsm8k_reward_fn("", given, [], [], answer=f"#### {answer}") == reward
