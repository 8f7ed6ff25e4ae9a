"""The experiment named by the arguments of a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment
from areal_api.paths import expand_home

YAML_SUFFIXES = (".yaml", ".yml")


def utf8(item: str) -> str:
    """``item`` if the configuration, a UTF-8 file, can hold it; else ``ValueError``."""
    try:
        item.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{item!r} is not valid UTF-8; use other names, or a terminal with UTF-8") from error
    return item


@dataclass(frozen=True)
class Request:
    """Experiment file, training script and overrides from the command line."""

    path: Path | None
    script: str | None
    overrides: list[str]

    @classmethod
    def parse(cls, items: Sequence[str], config: str | None) -> Self:
        """Sort arguments by form: ``key=value`` overrides, ``.py`` scripts, ``.yaml`` files.

        Raises ``ValueError`` for any other argument, a second file or script, or a missing script.
        """
        files = [config] if config is not None else []
        scripts: list[str] = []
        overrides: list[str] = []
        for item in items:
            if "=" in item:
                overrides.append(utf8(item))
            elif item.endswith(".py"):
                scripts.append(item)
            elif item.endswith(YAML_SUFFIXES):
                files.append(item)
            else:
                raise ValueError(f"{item}: not a script (.py), an experiment (.yaml) or an override (key=value)")
        if len(files) > 1:
            raise ValueError(f"two experiments were given, {' and '.join(files)}; give one")
        if len(scripts) > 1:
            raise ValueError(f"two scripts were given, {' and '.join(scripts)}; give one")
        script = expand_home(scripts[0]) if scripts else None
        if script is not None and not Path(script).is_file():
            raise ValueError(f"{script}: no such file; give the path of a training script")
        return cls(Path(expand_home(files[0])) if files else None, script, overrides)

    def load(self) -> GRPOExperiment:
        """Load and validate the experiment."""
        if self.path is None:
            raise ValueError("no experiment: give an experiment.yaml, or AReaL's configuration file with --config")
        return load_experiment(self.path, self.overrides, self.script)
