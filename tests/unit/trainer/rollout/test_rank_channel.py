"""Rollouts over two ranks on gloo: what rank 0 generates is shared out by tokens."""

import multiprocessing
import os
import socket
from datetime import timedelta

import pytest
import torch.distributed as dist

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.rollout.episode import RolloutError
from areal_trainer.rollout.rank_channel import split_by_tokens
from areal_trainer.rollout.workflow import RLVRWorkflow
from areal_trainer.weights.disk import WeightUpdate
from support.rollout_fakes import CharTokenizer, sample
from support.scripted_server import Script, ScriptedServer

STEPS, RANKS = 3, 2


def test_split_by_tokens_have_about_equal_tokens_and_lose_nothing():
    trajectories = [sample(0, length=length, reward=length) for length in (9, 1, 2, 8, 5, 5)]
    parts = split_by_tokens(trajectories, 2)
    assert [sum(map(len, part)) for part in parts] == [18, 18]  # each has a prompt token more
    assert sorted(t.reward for part in parts for t in part) == [1, 2, 5, 5, 8, 9]


def _rows(rank):
    """Rank r's loader: batches of two rows, of eight global ones in order 0 1 | 2 3, 4 5 | 6 7, …"""
    numbers = [[4 * i + 2 * rank, 4 * i + 2 * rank + 1] for i in range(STEPS + 1)]
    return [[{"prompt": f"{number:02d}", "answer": ""} for number in batch] for batch in numbers]


def _reward(prompt, completions, prompt_ids, completion_ids, **columns):
    return float(prompt)


def _fail(prompt, completions, prompt_ids, completion_ids, **columns):
    raise KeyError("judge")


def _rank(rank, port, address, tmp_path, results):
    """Three steps of training, then a step whose reward function fails."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=4, max_failed_episodes=0, setup_timeout=20))
    engine.initialize([address])
    gconfig = GenerationHyperparameters(n_samples=4, max_new_tokens=30)
    workflow, loader = RLVRWorkflow(_reward, gconfig, CharTokenizer()), _rows(rank)
    taken, lags = [], []
    for step in range(STEPS):
        batch = engine.prepare_batch(loader, workflow)
        taken.append([(t.prompt, len(t)) for t in batch])
        lags.append(engine.statistics["staleness/max"])
        engine.update_weights(WeightUpdate(step + 1, tmp_path))
    try:
        engine.prepare_batch(loader, RLVRWorkflow(_fail, gconfig, CharTokenizer()))
        message = "nothing"
    except RolloutError as error:
        message = str(error)
    results.put((rank, {"taken": taken, "lags": lags, "version": engine.get_version(), "error": message}))
    engine.destroy()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What each rank reports."""
    context = multiprocessing.get_context("fork")  # a spawned process would import torch again
    results = context.Queue()
    with socket.socket() as probe, ScriptedServer(Script(token_s=0.0005, tail_sigma=1.0)) as server:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        arguments = (port, server.address, tmp_path_factory.mktemp("weights"), results)
        processes = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(RANKS)]
        for process in processes:
            process.start()
        try:
            yield dict(results.get(timeout=90) for _ in range(RANKS))
        finally:
            for process in processes:
                process.join(10)
                process.kill()


def test_two_ranks_train_on_the_rows_of_both_in_order(outcome):
    for step in range(STEPS):
        both = [prompt for rank in range(RANKS) for prompt, _ in outcome[rank]["taken"][step]]
        assert sorted(both) == sorted(4 * [f"{4 * step + i:02d}" for i in range(4)])


def test_each_rank_gets_about_the_same_tokens(outcome):
    for step in range(STEPS):
        tokens = [sum(length for _, length in outcome[rank]["taken"][step]) for rank in range(RANKS)]
        assert abs(tokens[0] - tokens[1]) <= 32  # the longest sequence


def test_every_rank_knows_the_version_and_the_statistics(outcome):
    assert all(outcome[rank]["version"] == STEPS and outcome[rank]["lags"] == [0] * STEPS for rank in range(RANKS))


def test_an_error_of_rank_0_is_raised_on_every_rank(outcome):
    assert "1 episodes in a row failed" in outcome[0]["error"]
    assert "KeyError: 'judge'" in outcome[0]["error"]
    assert outcome[1]["error"] == f"on rank 0: RolloutError: {outcome[0]['error']}"
