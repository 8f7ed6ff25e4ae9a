"""Completion of grpo's arguments in real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from areal_launcher import completion
from areal_launcher.cli import COMMANDS, parsers


def completed(*words: str) -> set[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    script = completion.bash(parsers())
    call = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _grpo; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    shell = ["bash", "--noprofile", "--norc", "-c", f"{script}\n{call}"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=30, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_options_and_choices() -> None:
    assert completed("grpo", "s") == {"status", "stop", "suspend", "scale"}
    assert {"--on", "--namespace", "--follow"} <= completed("grpo", "logs", "--")
    assert completed("grpo", "logs", "--comp") == {"--component"}
    assert completed("grpo", "status", "--on", "k") == {"kubernetes"}
    assert completed("grpo", "completion", "") == {"bash", "fish", "zsh"}


def test_bash_completes_files(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    subprocess.run(["touch", "experiment.yaml"], check=True)
    assert completed("grpo", "run", "exp") == {"experiment.yaml"}


def test_every_command_has_its_options_in_fish() -> None:
    script = completion.fish(parsers())
    assert all(f"__fish_seen_subcommand_from {name}' -l help" in script for name in COMMANDS)
    assert "-l on -x -a 'local kubernetes ray slurm'" in script


@pytest.mark.parametrize(("shell", "syntax_check"), [("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_other_shells_can_read_their_script(shell: str, syntax_check: list[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = completion.SCRIPTS[shell](parsers())
    subprocess.run([shell, *syntax_check, "/dev/stdin"], input=script, text=True, timeout=30, check=True)
