import numpy as np
import pytest

from areal_api.generation import GenerationHyperparameters
from areal_trainer.rollout.trajectory_builder import TrajectoryBuilder, build_trajectories
from areal_trainer.rollout.workflow import RLVRWorkflow, RolloutWorkflow, load_workflow
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from support.rollout_fakes import CharTokenizer


class Echo:
    """An engine whose n-th sample is the prompt's first n + 1 tokens, made by version 3."""

    def __init__(self):
        self.requests: list[ModelRequest] = []

    async def agenerate(self, request):
        return (await self.agenerate_n(request, 1))[0]

    async def agenerate_n(self, request, n):
        self.requests.append(request)
        return [answer(request.input_ids, request.input_ids[: i + 1]) for i in range(n)]


def answer(prompt, tokens, *, version=3, reason="stop"):
    logprobs = [-0.5 * (i + 1) for i in range(len(tokens))]
    return ModelResponse(list(prompt), list(tokens), logprobs, [version] * len(tokens), reason, 0.1)


def length_reward(prompt, completions, prompt_ids, completion_ids, answer, **columns):
    assert columns["topic"] == "letters"
    return len(completion_ids) + (10 if completions == answer else 0)


async def slow_reward(prompt, completions, prompt_ids, completion_ids, **columns):
    return length_reward(prompt, completions, prompt_ids, completion_ids, **columns)


ROW = {"prompt": "abc", "answer": "ab", "topic": "letters", "id": 7}


@pytest.mark.parametrize("reward_fn", [length_reward, slow_reward])
async def test_each_sample_gets_its_reward_and_the_prompt_is_tokenised_once(reward_fn):
    tokenizer, engine = CharTokenizer(), Echo()
    workflow = RLVRWorkflow(reward_fn, GenerationHyperparameters(n_samples=3), tokenizer)
    samples = await workflow.arun_episode(engine, ROW)
    assert tokenizer.encoded == 1
    assert len(engine.requests) == 1
    assert [s.reward for s in samples] == [1, 12, 3]
    second = samples[1]
    a, b, c = (2 + ord(letter) - 32 for letter in "abc")
    assert second.input_ids.tolist() == [a, b, c, a, b]
    assert second.loss_mask.tolist() == [False, False, False, True, True]
    assert second.logprobs.tolist() == [0, 0, 0, -0.5, -1.0]
    assert second.versions.tolist() == [-1, -1, -1, 3, 3]
    assert (second.prompt, second.completion, second.prompt_len, second.task_id) == ("abc", "ab", 3, "7")


async def test_messages_go_through_the_chat_template():
    engine = Echo()
    workflow = RLVRWorkflow(lambda *a, **k: 0.0, GenerationHyperparameters(), CharTokenizer())
    [made] = await workflow.arun_episode(engine, {"messages": [{"role": "user", "content": "hi"}]})
    assert made.prompt == "<user>hi<assistant>"


async def test_a_row_without_a_prompt_is_refused_with_its_columns():
    workflow = RLVRWorkflow(length_reward, GenerationHyperparameters(), CharTokenizer())
    with pytest.raises(ValueError, match=r"neither 'messages' nor 'prompt', only \['question'\]"):
        await workflow.arun_episode(Echo(), {"question": "?"})


def test_generation_stops_at_the_tokenizers_ids_unless_told_to_ignore_them():
    stop = GenerationHyperparameters(stop_token_ids=[9])
    assert RLVRWorkflow(length_reward, stop, CharTokenizer()).gconfig.stop_token_ids == [0, 1, 9]
    ignoring = GenerationHyperparameters(stop_token_ids=[9], ignore_eos=True)
    assert RLVRWorkflow(length_reward, ignoring, CharTokenizer()).gconfig.stop_token_ids == [9]


class GuessAgain(RolloutWorkflow):
    """Two turns: a wrong answer gets feedback and a second attempt."""

    def __init__(self, reward_fn, gconfig, tokenizer, *, hint="no"):
        self.reward_fn, self.gconfig, self.tokenizer, self.hint = reward_fn, gconfig, tokenizer, hint

    async def arun_episode(self, engine, data):
        builder = TrajectoryBuilder(self.tokenizer.encode(data["prompt"]))
        for turn in range(2):
            response = await engine.agenerate(ModelRequest(builder.input_ids, self.gconfig))
            builder.add_response(response)
            if self.tokenizer.decode(response.output_tokens) == data["answer"]:
                return [builder.build(reward=1.0 - 0.5 * turn)]
            builder.add_context(self.tokenizer.encode(self.hint))
        return None


async def test_a_workflow_of_several_turns_trains_only_what_the_model_made():
    tokenizer = CharTokenizer()

    class SecondTime(Echo):
        async def agenerate(self, request):
            text = "b" if len(self.requests) else "a"
            self.requests.append(request)
            return answer(request.input_ids, tokenizer.encode(text), version=len(self.requests))

    arguments = {"reward_fn": length_reward, "gconfig": GenerationHyperparameters(), "tokenizer": tokenizer}
    workflow = GuessAgain(**arguments)
    [made] = await workflow.arun_episode(SecondTime(), {"prompt": "?", "answer": "b"})
    assert tokenizer.decode(made.input_ids.tolist()) == "?anob"
    assert made.loss_mask.tolist() == [False, True, False, False, True]
    assert made.versions.tolist() == [-1, 1, -1, -1, 2]
    assert made.reward == 0.5
    assert (made.head_version, made.tail_version) == (1, 2)


def test_a_turn_made_from_other_tokens_is_refused():
    builder = TrajectoryBuilder([1, 2, 3])
    with pytest.raises(ValueError, match="generated from 2 tokens, but the sequence has 3"):
        builder.add_response(answer([1, 2], [4]))


def test_a_workflow_is_loaded_by_its_import_path():
    workflow = load_workflow(
        "areal_trainer.rollout.workflow:RLVRWorkflow",
        reward_fn=length_reward,
        gconfig=GenerationHyperparameters(),
        tokenizer=CharTokenizer(),
    )
    assert isinstance(workflow, RLVRWorkflow)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("areal_trainer.rollout.workflow:RVLRWorkflow", "did you mean 'RLVRWorkflow'"),
        ("areal_trainer.rollout.nowhere:Workflow", "no module 'areal_trainer.rollout.nowhere'"),
        ("areal_trainer.rollout.workflow:task_id_of", "must name a subclass of"),
    ],
)
def test_a_workflow_that_cannot_be_loaded_is_refused_with_the_reason(path, message):
    with pytest.raises(ValueError, match=message):
        load_workflow(path)


def test_arguments_that_a_workflow_does_not_take_are_named():
    with pytest.raises(ValueError, match=r"constructor does not take.*'turns'"):
        load_workflow(
            "areal_trainer.rollout.workflow:RLVRWorkflow",
            reward_fn=length_reward,
            gconfig=GenerationHyperparameters(),
            tokenizer=CharTokenizer(),
            turns=3,
        )


def test_answers_are_recorded_together_as_each_would_be_by_itself():
    prompt_ids = [3, 1, 4]
    answers = [
        ModelResponse(prompt_ids, [5, 6], [-0.5, -0.25], [2, 2], "stop", 0.1),
        ModelResponse(prompt_ids, [7, 8, 9], [-1.0, -2.0, -3.0], [2, 3, 3], "length", 0.1),
        ModelResponse(prompt_ids, [], [], [], "length", 0.1),
    ]
    together = build_trajectories(
        prompt_ids, answers, rewards=[1.0, 0.5, 0.0], completions=["a", "b", ""], prompt="p", task_id="t"
    )
    for answer, reward, completion, trajectory in zip(answers, [1.0, 0.5, 0.0], ["a", "b", ""], together, strict=True):
        builder = TrajectoryBuilder(prompt_ids)
        builder.add_response(answer)
        alone = builder.build(reward=reward, prompt="p", completion=completion, task_id="t")
        for name in alone.__struct_fields__:
            there, here = getattr(alone, name), getattr(trajectory, name)
            assert np.array_equal(there, here)
            assert getattr(there, "dtype", None) == getattr(here, "dtype", None)


def test_samples_have_the_experts_of_their_tokens():
    experts = np.arange(4, dtype=np.uint8).reshape(4, 1, 1)
    response = ModelResponse([1, 2, 3], [4, 5], [-0.5, -0.5], [0, 0], "stop", 0.1, experts=experts)
    texts = {"rewards": [0.0], "completions": [""], "prompt": "", "task_id": ""}
    [made] = build_trajectories([1, 2, 3], [response], **texts)
    assert made.experts is experts


def test_a_sequence_of_several_turns_has_the_experts_of_each():
    builder = TrajectoryBuilder([1, 2])
    for first, prompt in ((1, [1, 2]), (2, [1, 2, 3, 4])):
        experts = np.full((len(prompt), 1, 1), first, dtype=np.uint8)
        builder.add_response(ModelResponse(prompt, [3], [-0.5], [0], "stop", 0.1, experts=experts))
        builder.add_context([4])
    assert builder.build(reward=0.0).experts[:, 0, 0].tolist() == [1, 1, 2, 2]
