"""The user's code outside of Kubernetes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from areal_api.load import with_home_expanded
from areal_launcher.core.code import prepared_code
from areal_launcher.core.plan import plan_run
from support.local_runs import load


def test_the_trainer_runs_a_copy_that_later_edits_do_not_change(experiment_path: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text("import reward; print(reward.x)")
    (code / "reward.py").write_text("x = 1")
    loaded = load(experiment_path, f"code.directory={code}", "trainer.script=train.py")
    experiment, run = with_home_expanded(loaded), tmp_path / "run"
    paths = prepared_code(experiment.spec, run)
    (code / "reward.py").write_text("x = 2")
    (node,) = plan_run(experiment, run=run, key_file=run / "key", threads=1, code=paths).trainer
    script = node.argv[-1]
    assert script == str(paths.source / "train.py")  # type: ignore[union-attr, operator]
    start = node.argv[: node.argv.index(sys.executable)]
    done = subprocess.run([*start, sys.executable, script], env=dict(os.environ), capture_output=True, text=True)
    assert done.stdout == "1\n"
    prepared_code(experiment.spec, run)
    assert len(list((run / "code").iterdir())) == 1  # the earlier copy is gone


def test_code_that_cannot_be_used_is_an_error_before_anything_starts(experiment_path: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("")
    spec = load(experiment_path, f"code.directory={code}", "code.requirementsFile=r.txt").spec
    with pytest.raises(ValueError, match=r"^code\.requirementsFile: r\.txt of the code cannot be read"):
        prepared_code(spec, tmp_path / "run")
