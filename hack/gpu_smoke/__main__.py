"""Run every check, write a report, and exit with 1 if one failed or 2 if there is no GPU."""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

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


def without_gpu() -> list[Check]:
    """What any machine can check."""
    return [("environment", checks.environment), ("compiler", lambda: checks.compiler(architecture()))]


def with_gpu(folder: Path) -> list[Check]:
    """The rest, cheapest first."""
    cuda = torch.device("cuda")
    found: list[Check] = [("attention", lambda: checks.attention(cuda))]
    if torch.cuda.device_count() >= 2:
        found += [
            ("collectives", lambda: checks.collectives("cuda", 2)),
            ("updates by disk", lambda: checks.training("cuda", "disk", steps=6, folder=folder)),
            ("updates by broadcast", lambda: checks.training("cuda", "distributed", steps=6, folder=folder)),
        ]
        if hub_is_reachable():
            gpus = torch.cuda.device_count()
            found.append(("GSM8K", lambda: checks.gsm8k(gpus=gpus, steps=5, folder=folder)))
    return found


def left_out() -> Iterator[Result]:
    """What this machine cannot check, with the reason."""
    count = torch.cuda.device_count()
    if count < 2:
        yield Result("collectives, weight updates, GSM8K", "not run", f"{count} GPUs; two are needed")
    elif not hub_is_reachable():
        yield Result("GSM8K", "not run", f"{HUB} cannot be reached")


def run(found: list[Check]) -> Iterator[Result]:
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
    path: Path = parser.parse_args().report
    results = list(run(without_gpu()))
    available = torch.cuda.is_available()
    if available:
        with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as folder:
            results += run(with_gpu(Path(folder)))
        results += left_out()
    else:
        results.append(Result("GPU", "not run", "torch sees no GPU here: the other checks need one"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(results))
    print(f"report: {path}")
    if not available:
        print("gpu-smoke: torch sees no GPU here, so only what needs none was checked", file=sys.stderr)
        return NO_GPU
    return FAILED if any(result.outcome == "failed" for result in results) else PASSED


if __name__ == "__main__":
    sys.exit(main())
