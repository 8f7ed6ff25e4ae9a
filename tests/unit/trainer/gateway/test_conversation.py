"""Histories become tokens without tokenizing an answer again, and conversation trees become samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from areal_trainer.gateway.channel import Sample
from areal_trainer.gateway.conversation import ConversationTree, Export
from areal_trainer.routing import EncodedExperts
from support.chat_tokenizer import END, ChatTokenizer
from support.gateway_app import render

TOKENIZER = ChatTokenizer()
ASKED = {"role": "user", "content": "1+1?"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


class Talk:
    """A conversation whose answers the test gives; answer k has version and log-probs k."""

    def __init__(self, render: Any = render) -> None:
        self.tree = ConversationTree(render, TOKENIZER.encode)
        self.prompts: list[str] = []

    def ask(
        self,
        messages: list[dict[str, Any]],
        *answers: str,
        tools: list[dict[str, Any]] | None = None,
        stop: bool = True,
    ) -> str:
        prompt = self.tree.prompt(messages, tools or [])
        self.prompts.append(TOKENIZER.decode(prompt.input_ids, skip_special_tokens=False))
        version = len(self.prompts)
        samples = []
        for answer in answers:
            tokens = TOKENIZER.encode(answer) + [END] * stop
            values = [-float(version)] * len(tokens), [version] * len(tokens)
            experts = np.full((len(prompt.input_ids) + len(tokens) - 1, 1, 2), version, dtype=np.uint16)
            sample = Sample(tokens, *values, "stop" if stop else "length", experts=EncodedExperts.of(experts))
            samples.append((sample, answer, said(answer)))
        name = f"c{version}"
        self.tree.add(prompt, name, samples)
        return name

    def export(self, style: str = "individual", discount: float = 1.0) -> list[Export]:
        return self.tree.export(turn_discount=discount, style=style)


def trained(sample: Export) -> str:
    ids = [token for token, is_trained in zip(sample.input_ids, sample.loss_mask, strict=True) if is_trained]
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_a_continued_answer_keeps_its_tokens_although_the_template_would_write_it_differently() -> None:
    talk = Talk()
    talk.ask([ASKED], "  3 ")  # the template strips answers
    talk.ask([ASKED, said("  3 "), user("No.")], "2")
    assert talk.prompts[1].startswith("<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n  3 <|im_end|>\n")
    assert talk.prompts[1].endswith("<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n")
    [sample] = talk.export("concat")
    assert trained(sample) == "  3 <|im_end|>2<|im_end|>"
    assert [v for v in sample.versions if v >= 0] == [1] * 5 + [2] * 2


@pytest.mark.parametrize("copy", ["3", " 3\n"])
def test_an_answer_is_recognised_although_the_agent_trimmed_or_padded_it(copy: str) -> None:
    talk = Talk()
    talk.ask([ASKED], " 3")
    talk.ask([ASKED, said(copy), user("No.")], "2")
    assert len(talk.export("concat")) == 1


def test_a_tool_call_is_recognised_whatever_ids_and_spaces_its_copy_has() -> None:
    talk = Talk()
    prompt = talk.tree.prompt([ASKED], [])
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    raw = '<tool_call>{"name":"add",  "arguments": {"a": 1, "b": 2}}</tool_call>'
    tokens = [*TOKENIZER.encode(raw), END]
    talk.tree.add(prompt, "c", [(Sample(tokens, [0.0] * len(tokens), [0] * len(tokens), "stop"), raw, answer)])
    again = answer | {"tool_calls": [call | {"id": "y", "function": {"name": "add", "arguments": {"b": 2, "a": 1}}}]}
    continued = talk.tree.prompt([ASKED, again, {"role": "tool", "content": "3", "tool_call_id": "y"}], [])
    assert continued.parent is talk.tree.interactions[0]
    assert TOKENIZER.decode(continued.input_ids, False).endswith(
        f"{raw}<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tokens_keep_the_experts_of_the_call_that_processed_them_first() -> None:
    talk = Talk()
    talk.ask([ASKED], "3")
    talk.ask([ASKED, said("3"), user("No.")], "2")
    first, second = talk.export("individual")
    [whole] = talk.export("concat")
    assert first.experts is not None
    assert second.experts is not None
    assert whole.experts is not None
    known, length = len(first.input_ids) - 1, len(whole.input_ids) - 1
    assert whole.experts.decoded()[:, 0, 1].tolist() == [1] * known + [2] * (length - known)
    assert second.experts.decoded()[:, 0, 0].tolist() == [2] * length


def test_an_edited_answer_is_a_branch_from_the_last_answer_before_the_edit() -> None:
    talk = Talk()
    talk.ask([ASKED], "3")
    history = [ASKED, said("3"), user("No.")]
    talk.ask(history, "4")
    talk.ask([*history, said("five"), user("Again.")], "2")
    first, second, third = talk.tree.interactions
    assert (first.parent, second.parent, third.parent) == (None, first, first)
    assert "assistant\nfive<|im_end|>" in talk.prompts[2]
    assert [trained(sample) for sample in talk.export("concat")] == ["3<|im_end|>4<|im_end|>", "2<|im_end|>"]


def test_a_changed_beginning_and_other_tools_start_another_conversation() -> None:
    talk = Talk()
    talk.ask([ASKED], "3")
    talk.ask([user("1+2?"), said("3"), user("Sure?")], "yes")
    talk.ask([ASKED, said("3"), user("Sure?")], "no", tools=[{"type": "function", "function": {"name": "add"}}])
    assert [one.parent for one in talk.tree.interactions] == [None] * 3


def test_parallel_calls_share_the_answer_that_they_continue_and_train_it_once() -> None:
    talk = Talk()
    talk.ask([ASKED], "3")
    talk.ask([ASKED, said("3"), user("left")], "l")
    talk.ask([ASKED, said("3"), user("right")], "r")
    assert [trained(sample) for sample in talk.export("concat")] == ["3<|im_end|>l<|im_end|>", "r<|im_end|>"]
    assert [trained(sample) for sample in talk.export()] == ["3<|im_end|>", "l<|im_end|>", "r<|im_end|>"]


def test_an_answer_that_was_cut_off_is_closed_by_the_template() -> None:
    talk = Talk()
    talk.ask([ASKED], "abc", stop=False)
    talk.ask([ASKED, said("abc"), ASKED], "d")
    assert "assistant\nabc<|im_end|>\n<|im_start|>user" in talk.prompts[1]
    [sample] = talk.export("concat")
    assert trained(sample) == "abcd<|im_end|>"


def test_a_template_that_refuses_the_answer_alone_gets_the_history_as_text() -> None:
    def strict(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        if any(m["role"] == "tool" for m in messages) and not any(m.get("tool_calls") for m in messages):
            raise ValueError("a tool's result without a call")
        return render(messages, tools)

    talk = Talk(strict)
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": {}}}
    prompt = talk.tree.prompt([ASKED], [])
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    talk.tree.add(prompt, "c", [(Sample([5, END], [0.0] * 2, [0] * 2, "stop"), "\x02", answer)])
    continued = talk.tree.prompt([ASKED, answer, {"role": "tool", "content": "3"}], [])
    assert continued.parent is None
    assert "<call add>" in TOKENIZER.decode(continued.input_ids, False)


def test_rewards_are_discounted_backwards_through_the_calls() -> None:
    talk = Talk()
    talk.ask([ASKED], "a")
    talk.ask([ASKED, said("a"), user("x")], "b")
    talk.ask([user("other")], "c")
    talk.tree.set_reward("c1", 0.25)
    talk.tree.set_reward(None, 1.0)
    assert [sample.reward for sample in talk.export(discount=0.5)] == [0.5, 0.5, 1.0]
    # A branch: the value of its last completion (0.5) and the reward set on the earlier one (0.25).
    assert [sample.reward for sample in talk.export("concat", discount=0.5)] == [0.75, 1.0]


def test_choices_of_one_call_are_samples_of_their_own() -> None:
    talk = Talk()
    name = talk.ask([ASKED], "a", "b")
    talk.tree.set_reward(f"{name}-1", 1.0)
    assert [sample.reward for sample in talk.export()] == [0.0, 1.0]
    talk.tree.set_reward(name, 0.5)
    assert [sample.reward for sample in talk.export()] == [0.5, 0.5]
    talk.ask([ASKED, said("b"), user("x")], "c")
    talk.tree.set_reward(None, 2.0)
    assert [sample.reward for sample in talk.export(discount=0.5)] == [1.5, 1.5, 2.0]
    assert talk.tree.interactions[2].parent is talk.tree.interactions[1]


def test_a_reward_for_an_unknown_completion_is_an_error() -> None:
    talk = Talk()
    with pytest.raises(KeyError):
        talk.tree.set_reward(None, 1.0)
    talk.ask([ASKED], "a")
    with pytest.raises(KeyError):
        talk.tree.set_reward("c9", 1.0)
