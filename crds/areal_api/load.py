"""Files and overrides → validated models. Errors are ``ConfigError``: file, key, value and fix, ready to print."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from areal_api import names
from areal_api.areal_config.convert import convert
from areal_api.areal_config.keys import is_areal_key
from areal_api.bounds import problem_of_size
from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError, config_error, problems_of
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_api.interpolation import Mode, resolve_references
from areal_api.keys import known, nearest_key
from areal_api.overrides import Override, parse_override, put
from areal_api.paths import expand_home
from areal_api.section import Section

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=GRPOConfig)

_PATHS = (
    ("actor", "path"),
    ("ref", "path"),
    ("sglang", "model_path"),
    ("train_dataset", "path"),
    ("valid_dataset", "path"),
    ("cluster", "fileroot"),
)
_SPEC_SECTIONS = ("servers", "trainer", "storage", "runPolicy")


def load_experiment(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), script: str | None = None
) -> GRPOExperiment:
    """The experiment of an experiment.yaml, or of AReaL's own file.

    Overrides of an experiment file start at ``spec``; those of AReaL's file at its configuration, where ``servers.``,
    ``trainer.``, ``storage.`` and ``runPolicy.`` reach the experiment. ``script`` takes the place of
    ``spec.trainer.script``. What AReaL's file says and has no meaning here is logged as a warning.
    """
    read = _read(path, overrides, GRPOConfig)
    if script is not None:
        put(read.data, "spec.trainer.script", script, source=str(path))
    return _validated(GRPOExperiment, read.data, source=str(path), unwritten=read.unwritten)


def parse_experiment(data: Mapping[str, Any], *, source: str, interpolation: Mode = "keys") -> GRPOExperiment:
    """The experiment in an object from the API server.

    ``${…}`` in ``spec.config`` may refer to keys of ``spec.config`` only: the object is somebody else's, and must not
    read this process's environment.
    """
    spec = data.get("spec")
    config = spec.get("config") if isinstance(spec, dict) else None
    if isinstance(spec, dict) and isinstance(config, dict):
        data = {**data, "spec": {**spec, "config": resolve(config, source=source, mode=interpolation)}}
    return _validated(GRPOExperiment, dict(data), source=source)


def load_expr_config(argv: Sequence[str], config_cls: type[Config]) -> tuple[Config, str]:
    """The configuration of a training script, and the path of its file.

    ``argv`` is ``["--config", "gsm8k_grpo.yaml", "actor.path=x", …]``; a leading script name is left out. Without
    ``--config`` the file is the one in ``AREAL_CONFIG``, where the launcher puts the resolved configuration. An
    experiment file gives its ``spec.config``. Overrides are as in ``load_experiment``.

    >>> config, path = load_expr_config(["--config", "gsm8k_grpo.yaml", "seed=2"], GRPOConfig)  # doctest: +SKIP
    """
    path, overrides = _arguments(argv)
    if path is None:
        path = os.environ.get(names.CONFIG)
        if not path:
            raise ConfigError(f"no configuration: give --config FILE (or set {names.CONFIG})")
        return read_resolved_config(path, config_cls, overrides), path
    data = _read(path, overrides, config_cls).data
    config = {"experiment_name": data["metadata"].get("name"), **data["spec"]["config"]}
    return expand_home_in(_validated(config_cls, config, source=path)), path


def read_resolved_config(
    path: str | os.PathLike[str], config_cls: type[Config], overrides: Sequence[str] = ()
) -> Config:
    """The configuration in ``config.yaml`` of a run directory, which launcher and operator write for their processes.

    It is complete and has our keys only: nothing is converted. ``~`` in paths becomes this machine's home directory.
    """
    data, source = read_yaml(path), str(path)
    if is_experiment(data):
        raise ConfigError(
            f"{source}: is an experiment, not the configuration that a run resolved; give --config {source}"
        )
    for override in map(parse_override, overrides):
        if not known(config_cls, override.key):
            raise _unknown(override, config_cls)
        put(data, override.key, override.value, source=override.source)
    return expand_home_in(_validated(config_cls, resolve(data, source=source), source=source))


def with_home_expanded(experiment: GRPOExperiment) -> GRPOExperiment:
    """``experiment`` for a run on this machine: ``~`` in its paths is this machine's home directory."""
    spec = experiment.spec
    script = expand_home(spec.trainer.script) if spec.trainer.script else spec.trainer.script
    trainer = spec.trainer.model_copy(update={"script": script})
    changed = spec.model_copy(update={"config": expand_home_in(spec.config), "trainer": trainer})
    return experiment.model_copy(update={"spec": changed})


def expand_home_in(config: Config) -> Config:
    """``config`` with ``~`` in its paths replaced by this machine's home directory."""
    changes: dict[str, Any] = {}
    for key, name in _PATHS:
        section = changes.get(key, getattr(config, key))
        if section is not None and getattr(section, name):
            changes[key] = section.model_copy(update={name: expand_home(getattr(section, name))})
    if config.tokenizer_path:
        changes["tokenizer_path"] = expand_home(config.tokenizer_path)
    return config.model_copy(update=changes)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file, ``${…}`` unresolved."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the path of an experiment or configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a YAML file") from error
    try:
        data = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}: {line}not valid YAML: {reason}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{path}: holds no keys; give an experiment or configuration file")
    return {str(key): value for key, value in data.items()}


def resolve(config: Mapping[str, Any], *, source: str, mode: Mode = "environment") -> dict[str, Any]:
    """``config`` with every ``${…}`` replaced; keys count from its root, as in AReaL's files."""
    try:
        return resolve_references(config, mode=mode)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def is_experiment(data: Mapping[str, Any]) -> bool:
    """Whether a file is an experiment rather than a bare configuration."""
    return any(key in data for key in ("apiVersion", "kind", "spec"))


@dataclass(frozen=True)
class _Read:
    """An experiment as plain data, and the sections around what its file holds."""

    data: dict[str, Any]
    unwritten: tuple[str, ...]


def _read(path: str | os.PathLike[str], overrides: Sequence[str], config_cls: type[GRPOConfig]) -> _Read:
    """The file with overrides applied and ``${…}`` resolved; what has no meaning here is logged."""
    data, source = read_yaml(path), str(path)
    parsed = [parse_override(text) for text in overrides]
    if is_experiment(data):
        return _Read(_with_spec_overrides(data, parsed, source=source, config_cls=config_cls), ())
    server_args: set[str] = set()
    later: list[Override] = []
    for override in parsed:
        if override.key.split(".")[0] in _SPEC_SECTIONS:
            later.append(override)
            continue
        if _sglang_argument(override, "sglang.", config_cls):
            server_args.add(override.key.removeprefix("sglang."))
        elif not known(config_cls, override.key) and not is_areal_key(override.key):
            raise _unknown(override, config_cls)
        put(data, override.key, override.value, source=override.source)
    experiment, notes = convert(
        resolve(data, source=source), source=source, config_cls=config_cls, server_args=server_args
    )
    for override in later:
        _put_in_spec(experiment["spec"], override)
    for note in notes:
        logger.warning("%s: %s", source, note)
    return _Read(experiment, ("spec", "config"))


def _with_spec_overrides(
    data: dict[str, Any], overrides: Sequence[Override], *, source: str, config_cls: type[GRPOConfig]
) -> dict[str, Any]:
    spec, metadata = data.get("spec"), data.get("metadata")
    if not isinstance(spec, dict) or not isinstance(spec.get("config"), dict):
        raise ConfigError(f"{source}: spec.config is missing; put the configuration there")
    if not isinstance(metadata, dict):
        raise ConfigError(f"{source}: metadata is missing; set metadata.name")
    server_args: dict[str, Any] = {}
    for override in overrides:
        if _sglang_argument(override, "config.sglang.", config_cls):
            server_args[override.key] = override
            put(spec, override.key, override.value, source=override.source)
        elif override.key.startswith("config.") and known(config_cls, override.key.removeprefix("config.")):
            put(spec, override.key, override.value, source=override.source)
        else:
            _put_in_spec(spec, override)
    spec["config"] = resolve(spec["config"], source=source)
    for key, override in server_args.items():
        argument = key.removeprefix("config.sglang.")
        value = spec["config"]["sglang"].pop(argument)
        put(spec, f"servers.args.{argument}", value, source=override.source)
    return data


def _put_in_spec(spec: dict[str, Any], override: Override) -> None:
    if not known(ExperimentSpec, override.key):
        raise _unknown(override, ExperimentSpec)
    put(spec, override.key, override.value, source=override.source)


def _sglang_argument(override: Override, prefix: str, config_cls: type[GRPOConfig]) -> bool:
    """Whether ``+sglang.x=…`` names an argument of SGLang that the configuration has no key for."""
    argument = override.key.removeprefix(prefix)
    return (
        override.added
        and override.key.startswith(prefix)
        and "." not in argument
        and not known(config_cls, f"sglang.{argument}")
    )


def _unknown(override: Override, model: type[Section]) -> ConfigError:
    near = nearest_key(model, override.key)
    text = f"{override.source}: unknown key {override.key}; "
    text += f"did you mean {near}?" if near else "grpo run --help lists the keys"
    if "sglang." in override.key and not override.added:
        text += f" To give SGLang an argument that has no key here, write +{override.text}"
    return ConfigError(text)


def _arguments(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The path after ``--config``, if any, and the overrides."""
    rest = list(argv[1:] if argv and argv[0].endswith(".py") else argv)
    path: str | None = None
    overrides: list[str] = []
    while rest:
        argument = rest.pop(0)
        if argument == "--config" and rest:
            path = rest.pop(0)
        elif argument.startswith("--config="):
            path = argument.removeprefix("--config=")
        else:
            overrides.append(argument)
    return path, overrides


_Model = TypeVar("_Model", bound=Section)


def _validated(model: type[_Model], data: dict[str, Any], *, source: str, unwritten: Sequence[str] = ()) -> _Model:
    problem = problem_of_size(data)  # first: everything below recurses, the error messages too
    if problem is not None:
        raise ConfigError(f"{source}: {problem}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise config_error(source, problems_of(error, model, unwritten=unwritten)) from None
