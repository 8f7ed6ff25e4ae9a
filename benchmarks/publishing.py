"""Publishing by one rank and by two, with deltas and without, and what a server downloads.

``torchrun … -m benchmarks.publishing MODEL RUN ROUNDS DELTAS`` is one rank of the former.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from areal_api.actor import PPOActorConfig
from areal_server.download_weights import DownloadedWeights
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import joined
from areal_trainer.weights.disk import MANIFEST, latest_published, publish_to_disk
from areal_trainer.weights.file_server import FileServer
from benchmarks.measure import Comparison, by_turns, rate
from benchmarks.models import save_qwen3
from benchmarks.published import DTYPE

STEP = 1e-6  # by which every weight changes between two versions, up or down
WAYS = (("one rank", 1, False), ("two ranks", 2, False), ("one rank, with deltas", 1, True))


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """GB/s of bfloat16 weights; the baseline copies the published files and makes the copy durable."""
    layers, hidden, vocabulary = (1, 64, 64) if small else (16, 1024, 32768)
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        size = 2 * save_qwen3(path / "model", layers=layers, hidden=hidden, vocabulary=vocabulary) / 1e9
        for what, ranks, deltas in WAYS:
            ours, baseline = _measured(path, ranks, deltas=deltas, rounds=rounds)
            work = f"publish {1000 * size:,.0f} MB of bfloat16 by {what}"
            rates = [[size / seconds for seconds in side] for side in (ours, baseline)]
            comparisons.append(Comparison("weights", work, "GB/s", rates[0], "copy with fsync", rates[1]))
        comparisons.append(_download(path / "run", path, size, rounds=rounds))
    return comparisons


def _measured(folder: Path, ranks: int, *, deltas: bool, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round: publishing, and the copy."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "benchmarks.publishing"]
    shutil.rmtree(folder / "run", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, folder / "model", folder / "run", str(rounds), str(int(deltas))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found["ours"], found["baseline"]


def _download(run: Path, folder: Path, size: float, *, rounds: int) -> Comparison:
    """Download a version over loopback by a server that holds the version before, and by one that does not."""
    published = latest_published(run)
    assert published is not None
    number, version = published
    base = version.with_name(f"v{number - 1}")
    manifest = json.loads((version / MANIFEST).read_text())

    with FileServer(run / "weights", port=0, api_key=None) as server:
        url = f"http://127.0.0.1:{server.port}"

        def fetch(name: str, of: Path, deltas: dict[str, Any]) -> None:
            files = json.loads((of / MANIFEST).read_text())["files"]
            request = {"url": url, "version": of.name, "files": files, "deltas": deltas}
            DownloadedWeights(folder / name, api_key=None).fetch(request)

        def ours() -> float:
            shutil.rmtree(folder / "holds", ignore_errors=True)
            fetch("holds", base, {})
            return rate(size, lambda: fetch("holds", version, manifest["deltas"]))

        def baseline() -> float:
            shutil.rmtree(folder / "empty", ignore_errors=True)
            return rate(size, lambda: fetch("empty", version, {}))

        rates = by_turns(ours, baseline, rounds=rounds)
    whole = sum(entry["size"] for entry in manifest["files"].values())
    rest = sum(entry["size"] for name, entry in manifest["files"].items() if name not in manifest["deltas"])
    sent = sum(entry["size"] for entry in manifest["deltas"].values()) + rest
    work = f"download {1000 * size:,.0f} MB over loopback as a delta, after a change of {STEP:g} per weight"
    notes = [f"at most {sent / 1e6:,.2f} MB were sent instead of {whole / 1e6:,.2f}: {sent / whole:.3f}"]
    return Comparison("weights", work, "GB/s", rates[0], "whole files", rates[1], notes=notes)


def _copy(run: Path) -> None:
    """Copy the tensors of the latest version, with fsync."""
    published = latest_published(run)
    assert published is not None
    for file in published[1].glob("*.safetensors"):
        copy = run / f"copy-{file.name}"
        shutil.copyfile(file, copy)
        with copy.open("rb") as stream:
            os.fsync(stream.fileno())


def main(model: Path, run: Path, rounds: int, *, deltas: bool) -> None:
    """Measure as one of the ranks; rank 0 prints the seconds as JSON."""
    with joined("cpu") as ranks:
        config = PPOActorConfig(path=str(model), dtype="bfloat16")
        policy = Policy(config, device="cpu", total_steps=1, seed=1)
        version = 0

        def change() -> None:
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    assert isinstance(parameter, DTensor)
                    mine = parameter.to_local()
                    mine.add_(torch.randn_like(mine).sign_(), alpha=STEP)

        def publish() -> None:
            publish_to_disk(policy, run=run, version=version, dtype=DTYPE, ranks=ranks, deltas=deltas)
            ranks.barrier()

        def copy() -> None:
            if ranks.is_first:
                _copy(run)
            ranks.barrier()

        found: dict[str, list[float]] = {"ours": [], "baseline": []}
        for _ in range(rounds + 1):
            version += 1
            change()
            ranks.barrier()
            for name, work in (("ours", publish), ("baseline", copy)):
                found[name].append(1 / rate(1.0, work))
        if ranks.is_first:
            print(json.dumps({name: seconds[1:] for name, seconds in found.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), deltas=sys.argv[4] == "1")
