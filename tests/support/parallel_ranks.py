"""Policies on ranks that divide weights and tokens, for tests that compare them with one rank.

``python parallel_ranks.py MODEL OUT LAYOUT…``, where a layout is like ``d1t2c2``. Imports once and forks the ranks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from areal_api.actor import ParallelConfig
from areal_trainer.batch import pack
from areal_trainer.checkpoint import LoopState, RunState, load_state
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks, joined
from areal_trainer.recovery_writer import RecoveryWriter
from areal_trainer.trajectory import Trajectory
from support.policy_ranks import NORM, train, weights
from support.tiny_policy import actor_config, random_trajectories, with_experts

ADAM = {"lr": 1e-2, "eps": 1e-2}
CASES: dict[str, dict[str, Any]] = {
    # name → configuration changes, and how many of the 12 sequences the first share has; the others share the rest
    "adam": {"first": 7, "optimizer": ADAM},
    # Microbatches of a few tokens; further shares are empty.
    "short": {
        "first": 12,
        "optimizer": ADAM,
        "mb_spec": {"max_tokens_per_mb": 22, "n_mbs": 4},
        "importance_sampling_level": "sequence",
        "gradient_checkpointing": True,
    },
}
REPLAYED = "short"  # the case in which models with experts replay given ones


def layout(text: str) -> tuple[int, ParallelConfig]:
    """Number of ranks and their layout."""
    sizes = dict.fromkeys("dtce", 1) | {letter: int(count) for letter, count in re.findall(r"([dtce])(\d+)", text)}
    return sizes["d"] * sizes["t"] * sizes["c"], ParallelConfig(
        tensor=sizes["t"], context=sizes["c"], expert=sizes["e"]
    )


def make_policy(model: Path, name: str, parallel: ParallelConfig, **changes: Any) -> Policy:
    """The policy of a case."""
    settings = {key: value for key, value in CASES[name].items() if key != "first"}
    norms = {"reward_norm": NORM, "adv_norm": {"mean_level": "batch", "std_level": "batch"}}
    values = norms | settings | changes | {"parallel": parallel.model_dump()}
    return Policy(actor_config(model, use_decoupled_loss=True, **values), device="cpu", total_steps=10, seed=1)


def has_experts(model: Path) -> bool:
    """Whether the model is a mixture of experts."""
    return json.loads((model / "config.json").read_text())["model_type"] in ("qwen3_moe", "mixtral")


def share(trajectories: list[Trajectory], ranks: Ranks, first: int) -> list[Trajectory]:
    """The sequences of this rank: the first ones in the first share, the rest spread over the others."""
    if ranks.data_size == 1:
        return trajectories
    others = ranks.data_size - 1
    return trajectories[:first] if ranks.data_rank == 0 else trajectories[first:][ranks.data_rank - 1 :: others]


def run_layout(model: Path, out: Path, parallel: ParallelConfig, **changes: Any) -> None:
    """A step of every case; for Adam a checkpoint after it, another step, and a resume from one rank's checkpoint."""
    with joined("cpu", parallel) as ranks:
        found: dict[str, Any] = {}
        for name, case in CASES.items():
            samples, replays = random_trajectories(), name == REPLAYED and has_experts(model)
            if replays:
                samples = with_experts(samples)
            policy = make_policy(model, name, parallel, **changes, router_replay=replays)
            if name == "adam":
                policy.check_exactness()
            mine = share(samples, ranks, case["first"])
            logprobs = policy.logprobs(pack(mine))
            numbers = train(policy, mine)
            full = weights(policy)
            shares = ranks.objects_to_first(logprobs)
            found[name] = {"numbers": numbers, "weights": full, "logprobs": shares}
            if name == "adam":
                writer = RecoveryWriter(out, keep=1)
                writer.start(1, policy, LoopState(RunState(step=1), {}, {}) if ranks.is_first else None)
                train(policy, mine)
                writer.wait()
                found["continued"] = weights(policy)
        checkpoint = model.parent / "one/recover/step1"
        if checkpoint.exists():
            policy = make_policy(model, "adam", parallel, **changes)
            load_state(checkpoint, policy)
            train(policy, share(random_trajectories(), ranks, CASES["adam"]["first"]))
            found["resumed"] = weights(policy)
        if ranks.is_first:
            torch.save(found, out / "found.pt")


def fork_ranks(count: int, work: Callable[[], None]) -> list[str]:
    """Run ``work`` on ``count`` forked ranks of torchrun's environment; returns the tracebacks of those that failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as errors:

        def rank(number: int) -> None:
            os.environ.update(
                RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count)
            )
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            try:
                work()
            except BaseException:  # noqa: BLE001  reported by the test
                (Path(errors) / str(number)).write_text(traceback.format_exc())
                os._exit(1)  # the others would wait for it in a collective

        processes = [context.Process(target=rank, args=(number,)) for number in range(count)]
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            if any(process.exitcode for process in processes):
                for process in processes:
                    process.terminate()
            for process in processes:
                process.join(0.1)
        return [path.read_text() for path in sorted(Path(errors).iterdir())] + [
            f"rank {number} exited with {process.exitcode}"
            for number, process in enumerate(processes)
            if process.exitcode
        ]


def main(model: Path, out: Path, layouts: list[str]) -> None:
    for text in layouts:
        name, _, replicas = text.partition("/")
        count, parallel = layout(name)
        changes: dict[str, Any] = {"fsdp": {"replicas": int(replicas)}} if replicas else {}
        folder = out / text.replace("/", "r")
        folder.mkdir()
        problems = fork_ranks(count, lambda f=folder, p=parallel, c=changes: run_layout(model, f, p, **c))
        if problems:
            print(text, *problems, sep="\n", file=sys.stderr)
            sys.exit(1)
        print(json.dumps({"layout": text}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
