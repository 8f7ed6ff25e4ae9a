"""Agents speak in messages; what is trained are the very tokens that the model has seen and made."""

from __future__ import annotations

import asyncio

import pytest

from areal_api.generation import GenerationHyperparameters
from areal_trainer.rollout.conversation import Conversation, ConversationFullError
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.trajectory import Trajectory
from support.chat_tokenizer import END, ChatTokenizer

TOKENIZER = ChatTokenizer()
SYSTEM = {"role": "system", "content": "Solve."}
ASKED = {"role": "user", "content": "1+1?"}


class Speaker:
    """An engine that gives the next of its answers, made by version 1, 2, …; a stop token ends all that are stopped."""

    def __init__(self, *answers: str, reason: str = "stop") -> None:
        self.answers = list(answers)
        self.requests: list[ModelRequest] = []
        self.reason = reason

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        self.requests.append(request)
        version = len(self.requests)
        await asyncio.sleep(0)
        tokens = TOKENIZER.encode(self.answers[version - 1]) + [END] * (self.reason == "stop")
        made = [-float(version)] * len(tokens)
        return ModelResponse(request.input_ids, tokens, made, [version] * len(tokens), self.reason, 0.1)  # type: ignore[arg-type]

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        raise NotImplementedError


def conversation(engine: Speaker, **settings: int) -> Conversation:
    return Conversation(engine, GenerationHyperparameters(**settings), TOKENIZER)


def text_of(trajectory: Trajectory) -> str:
    return TOKENIZER.decode(trajectory.input_ids.tolist(), skip_special_tokens=False)


def trained_text(trajectory: Trajectory) -> str:
    return TOKENIZER.decode(trajectory.input_ids[trajectory.loss_mask].tolist(), skip_special_tokens=False)


async def test_turns_of_a_conversation_are_one_sequence_whose_answers_are_trained() -> None:
    engine = Speaker("3", "2")
    talk = conversation(engine)
    first = await talk.reply([SYSTEM, ASKED])
    again = {"role": "user", "content": "Wrong."}
    second = await talk.reply([SYSTEM, ASKED, {"role": "assistant", "content": first.text}, again])
    assert (first.text, second.text) == ("3", "2")
    [made] = talk.trajectories(reward=1.0, task_id="a")
    assert text_of(made) == (
        "<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
        "<|im_start|>user\nWrong.<|im_end|>\n<|im_start|>assistant\n2<|im_end|>"
    )
    assert trained_text(made) == "3<|im_end|>2<|im_end|>"
    assert made.versions[made.loss_mask].tolist() == [1, 1, 2, 2]
    assert made.logprobs[made.loss_mask].tolist() == [-1, -1, -2, -2]
    assert (made.reward, made.task_id, made.completion, made.finish_reason) == (1.0, "a", "2", "stop")
    assert engine.requests[1].input_ids == made.input_ids[:-2].tolist()


async def test_an_answer_stays_as_it_was_made_whatever_the_agent_makes_of_it() -> None:
    answer = 'Let me see. <tool_call>{"name":  "add"}</tool_call> '
    talk = conversation(Speaker(answer, "2"))
    await talk.reply([ASKED])
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    shortened = {"role": "assistant", "content": [{"type": "text", "text": "Let me see. "}], "tool_calls": [call]}
    await talk.reply(
        [ASKED, shortened, {"role": "tool", "content": [{"type": "text", "text": "2"}], "tool_call_id": "1"}]
    )
    [made] = talk.trajectories(reward=1.0)
    assert trained_text(made) == answer + "<|im_end|>2<|im_end|>"
    assert "<|im_start|>tool\n2<|im_end|>" in text_of(made)


async def test_an_answer_that_was_cut_off_is_closed_by_the_template() -> None:
    talk = conversation(Speaker("abc", "d", reason="length"))
    first = await talk.reply([ASKED])
    await talk.reply([ASKED, {"role": "assistant", "content": first.text}, ASKED])
    [made] = talk.trajectories(reward=0.0)
    assert trained_text(made) == "abcd"
    assert "assistant\nabc<|im_end|>\n<|im_start|>user" in text_of(made)


async def test_a_history_that_was_changed_begins_a_sequence_of_its_own() -> None:
    talk = conversation(Speaker("3", "2", "1"))
    await talk.reply([SYSTEM, ASKED])
    await talk.reply([ASKED])  # another agent
    await talk.reply([SYSTEM, ASKED, {"role": "assistant", "content": "a summary"}, ASKED])
    made = talk.trajectories(reward=0.5)
    assert [trained_text(part) for part in made] == ["3<|im_end|>", "2<|im_end|>", "1<|im_end|>"]
    assert [part.reward for part in made] == [0.5] * 3


async def test_parallel_calls_from_one_answer_train_it_once() -> None:
    talk = conversation(Speaker("3", "2", "1", "0"))
    first = await talk.reply([ASKED])
    history = [ASKED, {"role": "assistant", "content": first.text}]
    asked = [[*history, {"role": "user", "content": name}] for name in ("left", "right")]
    left, right = await asyncio.gather(*(talk.reply(messages) for messages in asked))
    made = talk.trajectories(reward=1.0)
    assert [trained_text(part) for part in made] == ["3<|im_end|>2<|im_end|>", "1<|im_end|>"]
    await talk.reply([*asked[1], {"role": "assistant", "content": right.text}, ASKED])
    assert trained_text(talk.trajectories(reward=1.0)[1]) == "1<|im_end|>0<|im_end|>"
    assert left.text == "2"


async def test_the_model_is_told_of_tools_by_the_template() -> None:
    engine = Speaker("2")
    await conversation(engine).reply([ASKED], tools=[{"name": "add"}])
    assert TOKENIZER.decode(engine.requests[0].input_ids, False).startswith('<|im_start|>tools\n[{"name": "add"}]')


async def test_a_conversation_without_room_for_an_answer_says_so() -> None:
    engine = Speaker("2")
    with pytest.raises(ConversationFullError, match=r"has 29 tokens, gconfig.max_tokens is 29"):
        await conversation(engine, max_tokens=29).reply([{"role": "user", "content": "0123456789"}])
    assert not engine.requests
