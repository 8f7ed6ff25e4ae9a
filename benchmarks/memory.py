"""Memory of a training step: what ``grpo check`` computes, against a simulation of the real step without a GPU.

The simulation runs the trainer's own model in FakeTensorMode (shapes and types, no data) on a process group whose
collectives do nothing, under FSDP2's memory tracker. It goes through two microbatches, the second of which adds to
gradients that exist. The optimizer's step is left out: its peak is below that of the passes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from areal_api.actor import ParallelConfig, PPOActorConfig
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.trainer_memory import trainer_memory
from benchmarks.measure import Comparison

GB = 1e9
# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
QWEN25 = {
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "Qwen2.5-7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "Qwen2.5-32B": (5120, 27_648, 64, 40, 8, 152_064, False),
}
RANKS = (1, 2, 4, 8, 16)
TOKENS = 16_384
SEQUENCES = 8


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """One simulation per model and number of ranks; a small run has three layers and one number of ranks."""
    del rounds  # nothing here varies between rounds
    found = []
    for name in QWEN25:
        for ranks in (8,) if small else RANKS:
            config = qwen25(name, layers=3 if small else None)
            simulated = simulate(config, ranks=ranks, tokens=TOKENS, checkpointing=True)
            computed = computed_bytes(config, ranks=ranks, tokens=TOKENS, checkpointing=True)
            found.append(
                Comparison(
                    name="memory",
                    work=f"{name}, {ranks} ranks, {TOKENS} tokens per microbatch, gradient checkpointing",
                    unit="GB",
                    ours=[computed / GB],
                    baseline_name="simulated peak",
                    baseline=[simulated / GB],
                )
            )
    return found


def qwen25(name: str, *, layers: int | None = None) -> dict[str, Any]:
    """The config.json of a Qwen2.5 model with ``layers`` layers."""
    hidden, intermediate, own_layers, heads, kv_heads, vocabulary, tied = QWEN25[name]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers or own_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "hidden_act": "silu",
    }


def computed_bytes(config: dict[str, Any], *, ranks: int, tokens: int, checkpointing: bool) -> int:
    """What ``grpo check`` computes."""
    actor = PPOActorConfig(path=".", gradient_checkpointing=checkpointing)
    return trainer_memory(ModelShape.of_config(config), actor, ranks=ranks, tokens=tokens).total


def simulate(config: dict[str, Any], *, ranks: int, tokens: int, checkpointing: bool, **keys: Any) -> int:
    """Peak bytes of a simulated step, in a separate process because a process group is global.

    ``keys``: ``sequences``, into which the tokens are divided, and further keys of the section actor, such as ``lora``.
    """
    arguments = json.dumps({"config": config, "ranks": ranks, "tokens": tokens, "checkpointing": checkpointing, **keys})
    command = [sys.executable, "-m", "benchmarks.memory", arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the simulation failed:\n{done.stderr[-4000:]}")
    return int(done.stdout.strip().splitlines()[-1])


def simulated_peak(
    config: dict[str, Any], *, ranks: int, tokens: int, checkpointing: bool, sequences: int = SEQUENCES, **keys: Any
) -> int:
    """Peak bytes of this process's rank."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    import areal_trainer.ranks
    from areal_trainer.model.language_model import SHARD, LanguageModel, disable_dropout
    from areal_trainer.model.optimizer import make_optimizer
    from areal_trainer.ranks import CONTEXT, DATA, TENSOR

    dist.init_process_group("fake", store=FakeStore(), rank=ranks - 1, world_size=ranks)
    cpu = torch.device("cpu")
    parallel = ParallelConfig.model_validate(keys.get("parallel", {}))
    # A mesh reads its ranks, so it needs real tensors.
    if parallel.ranks > 1:
        shape = (ranks // parallel.ranks, parallel.context, parallel.tensor)
        areal_trainer.ranks._mesh = init_device_mesh("cpu", shape, mesh_dim_names=(DATA, CONTEXT, TENSOR))
        mesh = areal_trainer.ranks._mesh[DATA, CONTEXT]._flatten(SHARD)
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        as_on_gpu(fake, mesh),
    ):
        Path(folder, "config.json").write_text(json.dumps(config))
        actor = PPOActorConfig.model_validate(
            {"path": folder, "attn_impl": "sdpa", "gradient_checkpointing": checkpointing, **keys}
        )
        model = LanguageModel(actor, section="actor", device=cpu, temperature=1.0, lora=actor.lora)
        if checkpointing:
            model.causal_lm.gradient_checkpointing_enable(
                {"use_reentrant": False}, every_n_layers=actor.checkpoint_every, offload=actor.offload_activations
            )
        disable_dropout(model)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(actor.optimizer, trained)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        layout = packed(tokens, sequences)
        tracker = FSDPMemTracker(model, optimizer)
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()
                logprobs, _ = model(layout)
                (-logprobs.sum()).backward()
                del logprobs
        return int(tracker.get_tracker_snapshot("peak")[cpu]["Total"])


@contextlib.contextmanager
def as_on_gpu(fake: Any, mesh: Any) -> Iterator[None]:
    """Makes the CPU path do what the GPU path does: its size of logits chunks, its linear layers; no weights loaded."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import modeling_utils

    from areal_trainer.algo import logprobs
    from areal_trainer.model import language_model, loading, lora
    from areal_trainer.model.attention import Bucket, SegmentIndex
    from areal_trainer.model.context_parallel import SharedPass

    index_of = SegmentIndex.of

    def fake_index(segments: Any, device: torch.device) -> SegmentIndex:
        with unset_fake_temporarily():
            index = index_of(segments, device)
        buckets = [
            Bucket(
                *(fake.from_tensor(tensor) for tensor in (b.queries_RQ, b.keys_RK, b.prefix_R)), has_prefix=b.has_prefix
            )
            for b in index.buckets
        ]
        return SegmentIndex(buckets, fake.from_tensor(index.result_P))

    join_meshes = DeviceMesh._concatenate

    def real_mesh(meshes: list[DeviceMesh]) -> DeviceMesh:
        with unset_fake_temporarily():
            return join_meshes(meshes)

    with (
        patch.object(logprobs, "_CPU_CHUNK_BYTES", logprobs.DEFAULT_CHUNK_BYTES),
        patch.object(language_model, "use_faster_linear", lambda model: None),
        patch.object(language_model, "init_device_mesh", lambda *_, **__: mesh),
        patch.object(loading, "ModelFiles", NoFiles),
        patch.object(modeling_utils, "save_on_cpu", in_host_memory),
        patch.object(lora, "inject_adapter_in_model", inject_without_moves),
        patch.object(SegmentIndex, "of", staticmethod(fake_index)),
        patch.object(SharedPass, "predictions", even_share),
        patch.object(DeviceMesh, "_concatenate", staticmethod(real_mesh)),
    ):
        yield


def even_share(shared: Any, layout: Any) -> Any:
    """As many predictions for every rank; their places are data."""
    return layout.token_N[: len(layout.token_N) // (shared.context_size * shared.tensor_size)]


def inject_without_moves(config: Any, model: Any, *, adapter_name: str) -> None:
    """PEFT's injection without its moves to another device or type, which fake tensors refuse."""
    import torch
    from peft import inject_adapter_in_model

    with patch.object(torch.nn.Module, "to", lambda module, *_, **__: module):
        inject_adapter_in_model(config, model, adapter_name=adapter_name)


def in_host_memory(**_: Any) -> Any:
    """In place of ``save_on_cpu``: tensors leave the simulated device, and return as new ones."""
    import torch

    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (tensor.shape, tensor.dtype), lambda kept: torch.empty(kept[0], dtype=kept[1])
    )


class NoFiles:
    """In place of a model's files, which do not exist."""

    def __init__(self, path: str, model: Any) -> None:
        pass

    def read(self, model: Any, parameters: Any) -> None:
        """Leave the parameters undefined."""


def packed(tokens: int, sequences: int) -> Any:
    """A pass of ``sequences`` sequences of equal length, all trained but their first token."""
    import torch

    from areal_trainer.model.layout import Layout, Segment

    each = tokens // sequences
    trained = tokens - sequences
    ids_P = torch.zeros(tokens, dtype=torch.int64)
    index_N = torch.zeros(trained, dtype=torch.int64)
    segments = [Segment(number * each, each) for number in range(sequences)]
    return Layout(ids_P, ids_P.clone(), segments, token_N=index_N, source_N=index_N.clone(), target_N=index_N.clone())


if __name__ == "__main__":
    print(simulated_peak(**json.loads(sys.argv[1])))
