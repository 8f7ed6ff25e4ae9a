"""examples/self_correction on the real SGLang server: the agent learns through the session gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.rollout_files import read_samples

ROOT = Path(__file__).parents[2]


def test_the_agent_learns_from_its_conversations(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "areal_launcher.cli", "run", "examples/self_correction/experiment.yaml"]
    settings = [
        f"config.cluster.fileroot={tmp_path}",
        "config.total_train_steps=8",
        "config.rollout.dump_to_file=true",
    ]
    done = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "self-correction/trial0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["outcome"] == "succeeded"
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["eval-rollout/reward"] > lines[0]["eval-rollout/reward_initial"] + 0.2
    for line in lines:
        # For the same weights and tokens, servers and trainer differ only by rounding.
        assert line.get("grpo_actor/rollout_logprob_diff_current/max", 0.0) < 1e-3
    assert sum(line["rollout/failed"] for line in lines) == 0
    assert any(line["rollout/cache_hit_rate"] > 0 for line in lines)
    samples = [row for rows in read_samples(run, ["reward"]).values() for row in rows]
    assert len(samples) > 8 * 16 * 8  # a session has a sample for each of its one or two completions
    assert {sample["reward"] for sample in samples} == {0.0, 0.5, 1.0}
