"""Run every check, write a report, and exit with 1 if one failed or 2 if there is no GPU."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from areal_launcher.gpu_machine import visible_gpus
from hack.gpu_smoke import checks

REPORT = checks.ROOT / "build" / "gpu-smoke.md"
PASSED, FAILED, NO_GPU = 0, 1, 2
ARCHITECTURE = "sm_90a"  # compiled for where there is no GPU to ask
HUB = "huggingface.co"
Check = tuple[str, Callable[[], str]]


@dataclass(frozen=True)
class Result:
    """What a check saw, or why it failed or was not run."""

    name: str
    outcome: str
    text: str
    seconds: float = 0.0


def software(device: str) -> Iterator[Check]:
    """What needs no GPU. On cpu the compiler is checked only where there is one."""
    yield "environment", checks.environment
    if device == "cuda" or checks.has_compiler():
        yield "compiler", lambda: checks.compiler(architecture())


def on_device(device: str, gpus: Sequence[str], folder: Path) -> Iterator[Check]:
    """The rest, cheapest first. On cpu the same steps run with gloo, SGLang on the CPU and no GPU kernels."""
    enough = device == "cpu" or len(gpus) >= 2
    implementations = ["packed sdpa", *(["varlen"] if device == "cuda" else [])]
    modes = ["disk", *(["broadcast"] if enough else [])]
    yield "attention", lambda: checks.attention(torch.device(device), implementations)
    if enough:
        yield "collectives", lambda: checks.collectives(device, 2)
    yield "server", lambda: checks.server_start(device, folder, gpus[:1])
    yield f"weight updates by {' and '.join(modes)}", lambda: checks.weight_updates(device, modes, folder, gpus[:2])
    if enough:
        yield "examples/tiny, updates by disk", lambda: checks.training(device, "disk", steps=6, folder=folder)
        yield (
            "examples/tiny, updates by broadcast",
            lambda: checks.training(device, "distributed", steps=6, folder=folder),
        )
        if hub_is_reachable():
            yield "GSM8K", lambda: checks.gsm8k(gpus=len(gpus), steps=5, folder=folder)


def left_out(device: str, gpus: Sequence[str]) -> Iterator[Result]:
    """What this machine cannot check, with the reason."""
    if device == "cpu":
        compiler = "" if checks.has_compiler() else "compiler, "
        yield Result(f"{compiler}GPU kernels, NCCL", "not run", "--device cpu")
    if device == "cuda" and len(gpus) < 2:
        yield Result("collectives, broadcast, training", "not run", f"{len(gpus)} GPUs; two are needed")
    elif not hub_is_reachable():
        yield Result("GSM8K", "not run", f"{HUB} cannot be reached")


def run(found: Iterable[Check]) -> Iterator[Result]:
    """Run checks one by one."""
    for name, check in found:
        started = time.monotonic()
        try:
            outcome, text = "passed", check()
        except Exception as error:  # noqa: BLE001  # whatever a GPU raises belongs in the report
            outcome, text = "failed", f"{type(error).__name__}: {error}"
        result = Result(name, outcome, text, time.monotonic() - started)
        print(f"{result.name}: {result.outcome} ({result.seconds:.0f} s)\n{result.text}\n", flush=True)
        yield result


def report(results: list[Result]) -> str:
    """The results as Markdown."""
    parts = [f"## {r.name}: {r.outcome} ({r.seconds:.0f} s)\n\n```\n{r.text}\n```\n" for r in results]
    return "# GPU smoke test\n\n" + "\n".join(parts)


def architecture() -> str:
    """The architecture of this machine's first GPU, as nvcc names it."""
    if not torch.cuda.is_available():
        return ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(0)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def hub_is_reachable() -> bool:
    """Whether models can be downloaded."""
    try:
        with socket.create_connection((HUB, 443), timeout=10):
            return True
    except OSError:
        return False


def main() -> int:
    """Check, print, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m hack.gpu_smoke", description=__doc__)
    parser.add_argument("--report", type=Path, default=REPORT, help="file to write (default: build/gpu-smoke.md)")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same steps without a GPU (default: cuda)"
    )
    options = parser.parse_args()
    results = list(run(software(options.device)))
    lacks_gpu = options.device == "cuda" and not torch.cuda.is_available()
    if lacks_gpu:
        results.append(Result("GPU", "not run", "torch sees no GPU here: the other checks need one"))
    else:
        gpus = visible_gpus(os.environ) if options.device == "cuda" else []
        with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as folder:
            results += run(on_device(options.device, gpus, Path(folder)))
        results += left_out(options.device, gpus)
    path: Path = options.report
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(results))
    print(f"report: {path}")
    if lacks_gpu:
        print(
            "gpu-smoke: torch sees no GPU here, so only what needs none was checked; see the driver (nvidia-smi), or "
            "use --device cpu",
            file=sys.stderr,
        )
        return NO_GPU
    return FAILED if any(result.outcome == "failed" for result in results) else PASSED


if __name__ == "__main__":
    sys.exit(main())
