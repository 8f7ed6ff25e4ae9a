"""A stand-in for the interpreter on the nodes: fast servers and trainers for tests of the launcher on Slurm.

``slurm.python`` names a script that runs this file with the interpreter's arguments. Servers answer ``/ready``. The
trainer takes a step every 0.1 s, writes a recovery checkpoint every fifth step and on SIGTERM, resumes from the last
one, and ends after STEPS steps. Files in the run directory steer it: ``hold`` makes it wait, ``fail`` makes it exit
once with status 9.
"""

from __future__ import annotations

import http.server
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> None:
    """Act as ``python argv``."""
    if "areal_server.launch" in argv:
        serve(argv[argv.index("--host") + 1], int(argv[argv.index("--port") + 1]))
    elif "torch.distributed.run" in argv:
        train(int(argv[argv.index("--node-rank") + 1]))
    else:
        sys.argv = argv = [word for word in argv if word not in ("-I", "-S")]
        sys.path.insert(0, os.path.dirname(argv[0]))
        runpy.run_path(argv[0], run_name="__main__")


class Handler(http.server.BaseHTTPRequestHandler):
    """Ready, and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


def serve(host: str, port: int) -> None:
    """Listen until killed."""
    print("serving", port, os.environ["SLURMD_NODENAME"], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    http.server.HTTPServer((host, port), Handler).serve_forever()


def train(node: int) -> None:
    """Write steps; other nodes than the first wait for the end."""
    run, total = Path(os.environ["AREAL_RUN_DIR"]), int(os.environ["STEPS"])
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    print("training on", os.environ["SLURMD_NODENAME"], os.environ["AREAL_LLM_SERVER_ADDRS"], flush=True)
    print("gpus", os.environ["SLURMD_NODENAME"], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    if node:
        while not asked and not (run / "summary.json").exists():
            time.sleep(0.05)
        sys.exit(143 if asked else 0)
    recover = run / "recover"
    step = max((int(path.name[4:]) for path in recover.glob("step*")), default=0)
    keep_statistics(run, step)
    print("starting after step", step, flush=True)
    while step < total:
        time.sleep(0.1)
        if not (run / "hold").exists():
            step += 1
            with (run / "stats.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "time": 0.1 * step, "task_reward/avg": step / total}) + "\n")
        if step % 5 == 0 or asked:
            (recover / f"step{step}").mkdir(parents=True, exist_ok=True)
        if asked:
            print(f"received {len(asked)} signals", flush=True)
            sys.exit(143)
        if (run / "fail").exists():
            (run / "fail").unlink()
            sys.exit(9)
    (run / "summary.json").write_text(json.dumps({"outcome": "succeeded", "steps": step}))


def keep_statistics(run: Path, last: int) -> None:
    """Drop the steps after ``last``."""
    file = run / "stats.jsonl"
    if file.exists():
        lines = [line for line in file.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= last]
        partial = file.with_suffix(".partial")
        partial.write_text("".join(lines))
        partial.replace(file)


if __name__ == "__main__":
    main(sys.argv[1:])
