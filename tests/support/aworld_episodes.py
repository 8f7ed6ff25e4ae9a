"""Runs episodes of real AWorld agents against a scripted server and prints JSON: ``python aworld_episodes.py ADDRESS``.

It runs in the Python environment with AWorld. The scripted server, in the tests' environment, calls ``answer``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from typing import Any

from support.chat_tokenizer import END, ChatTokenizer

TOKENIZER = ChatTokenizer()
CALL = '<tool_call>{{"name": "calculator__calculate", "arguments": {{"expression": "{}"}}}}</tool_call>'
ANSWERS = {  # for each problem the model's replies; the last one repeats
    "tool": ["Let me see. " + CALL.format("(2+3)*4"), "So it is\n#### 20"],
    "plain": ["It is\n#### 20"],
    "wrong": ["It is\n#### 21"],
    "endless": [CALL.format("1+1")],
    "bad expression": [CALL.format("__import__('os')"), "#### 20"],
    "unknown tool": ['<tool_call>{"name": "search", "arguments": {}}</tool_call>', "#### 20"],
    "silent": [""],
    "failing": [],
}
BEFORE_ANSWER = "<|im_start|>assistant\n"


def answer(input_ids: list[int], params: dict[str, Any], index: int) -> list[int]:
    """The scripted server's completion of a prompt."""
    text = TOKENIZER.decode(input_ids, skip_special_tokens=False)
    problem = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    turns = ANSWERS[problem]
    if not turns:
        raise ValueError("a server that fails")
    return [*TOKENIZER.encode(turns[min(text.count(BEFORE_ANSWER), len(turns)) - 1]), END]


async def _run_episode(workflow: Any, engine: Any, problem: str) -> list[dict[str, Any]] | str:
    row = {"messages": [{"role": "user", "content": problem}], "answer": "2 + 3 = 5\n#### 20", "task_id": problem}
    try:
        trajectories = await workflow.arun_episode(engine, row)
    except Exception as error:  # noqa: BLE001  the test inspects it
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return [
        {
            "text": TOKENIZER.decode(part.input_ids.tolist(), skip_special_tokens=False),
            "trained": TOKENIZER.decode(part.input_ids[part.loss_mask].tolist(), skip_special_tokens=False),
            "versions": sorted(set(part.versions[part.loss_mask].tolist())),
            "logprobs": part.logprobs[part.loss_mask].tolist(),
            "reward": part.reward,
            "task_id": part.task_id,
        }
        for part in trajectories
    ]


async def _episodes(engine: Any) -> dict[str, Any]:
    from areal_api.generation import GenerationHyperparameters
    from examples.aworld import agent
    from examples.aworld.custom_workflow import Gsm8kWorkflow, gsm8k_reward_fn

    agent.CLEANUP_DELAY_S = 0.2
    gconfig = GenerationHyperparameters(n_samples=2, max_new_tokens=200)
    workflow = Gsm8kWorkflow(gsm8k_reward_fn, gconfig, TOKENIZER, max_turns=3)
    problems = list(ANSWERS)
    outcomes = await asyncio.gather(*(_run_episode(workflow, engine, problem) for problem in problems))
    short = Gsm8kWorkflow(gsm8k_reward_fn, gconfig.new(max_tokens=700), TOKENIZER, max_turns=9)
    full = await _run_episode(short, engine, "endless")
    await asyncio.sleep(2.0)
    memory = agent.MemoryFactory.instance().memory_store
    kept = len(memory.memory_items) + len(agent.InMemoryStateStorage.instance()._nodes)
    return {"episodes": dict(zip(problems, outcomes, strict=True)), "full": full, "kept": kept}


def main(address: str) -> None:
    from areal_api.config import RolloutConfig
    from areal_trainer.engine import RemoteSGLangEngine

    engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=2, setup_timeout=20.0, request_retries=1))
    engine.initialize([address])
    try:
        print("RESULT " + json.dumps(asyncio.run(_episodes(engine))))
    finally:
        engine.destroy()


if __name__ == "__main__":
    main(sys.argv[1])
