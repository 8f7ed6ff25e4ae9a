"""Reads files and overrides into validated models. Errors are ``ConfigError`` with file, key, value and fix."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from areal_api import names
from areal_api.areal_config.convert import convert, refuse_other_algorithms
from areal_api.areal_config.files import has_areal_keys, with_base_files, without_unused_variables
from areal_api.areal_config.keys import AREAL_DEFAULTS, is_areal_key
from areal_api.areal_config.scripts import is_skypilot_task
from areal_api.bounds import problem_of_size
from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError, config_error, problems_of
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_api.interpolation import Mode, resolve_references
from areal_api.keys import known, nearest_key, type_of
from areal_api.overrides import Override, parse_override, put
from areal_api.paths import expand_home
from areal_api.section import Section
from areal_api.yaml_text import load_yaml

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
_SPEC_SECTIONS = ("servers", "trainer", "code", "storage", "runPolicy", "slurm")


def load_experiment(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), script: str | None = None
) -> GRPOExperiment:
    """Load an experiment.yaml, or a configuration file of AReaL.

    Overrides of an experiment file start at ``spec``. Those of an AReaL file start at its configuration, where
    ``servers.``, ``trainer.``, ``code.``, ``storage.``, ``runPolicy.`` and ``slurm.`` reach the experiment. ``script``
    replaces ``spec.trainer.script``. A warning is logged for each key of AReaL's file that has no meaning here.
    """
    read = _read(path, overrides, GRPOConfig)
    if script is not None:
        put(read.data, "spec.trainer.script", script, source=str(path))
    return validated(GRPOExperiment, read.data, source=str(path), unwritten=read.unwritten)


def parse_experiment(data: Mapping[str, Any], *, source: str, interpolation: Mode = "keys") -> GRPOExperiment:
    """Validate an object of the custom resource.

    By default ``${…}`` in ``spec.config`` may only refer to keys of ``spec.config``: the author of the object must not
    be able to read this process's environment.
    """
    spec = data.get("spec")
    config = spec.get("config") if isinstance(spec, dict) else None
    if isinstance(spec, dict) and isinstance(config, dict):
        data = {**data, "spec": {**spec, "config": resolve(config, source=source, mode=interpolation)}}
    return validated(GRPOExperiment, dict(data), source=source)


def load_expr_config(argv: Sequence[str], config_cls: type[Config]) -> tuple[Config, str]:
    """Load the configuration of a training script. Returns it with the path of its file.

    ``argv`` is ``["--config", "gsm8k_grpo.yaml", "actor.path=x", …]``, optionally after the script's name. Without
    ``--config`` the file is the run's resolved configuration, whose path the launcher passes in ``AREAL_CONFIG``. Of an
    experiment file, ``spec.config`` is loaded. Overrides are those of ``load_experiment``.

    >>> config, path = load_expr_config(["--config", "gsm8k_grpo.yaml", "seed=2"], GRPOConfig)  # doctest: +SKIP
    """
    path, overrides = _arguments(argv)
    if path is None:
        path = os.environ.get(names.CONFIG)
        if not path:
            raise ConfigError(f"no configuration: pass --config FILE (or set {names.CONFIG})")
        return read_resolved_config(path, config_cls, overrides), path
    data = _read(path, overrides, config_cls).data
    config = {"experiment_name": data["metadata"].get("name"), **data["spec"]["config"]}
    return expand_home_in(validated(config_cls, config, source=path)), path


def read_resolved_config(
    path: str | os.PathLike[str], config_cls: type[Config], overrides: Sequence[str] = ()
) -> Config:
    """Load ``config.yaml`` of a run directory, which launcher and operator write for servers and trainer.

    The file is complete and has only our keys, so nothing is converted. ``~`` in paths becomes this machine's home
    directory.
    """
    data, source = read_yaml(path), str(path)
    if is_experiment(data):
        raise ConfigError(
            f"{source}: is an experiment, not the resolved configuration of a run; pass it with --config {source}"
        )
    for override in map(parse_override, overrides):
        if not known(config_cls, override.key):
            raise _unknown(override, config_cls)
        _apply(data, override, config_cls)
    return expand_home_in(validated(config_cls, resolve(data, source=source), source=source))


def with_home_expanded(experiment: GRPOExperiment) -> GRPOExperiment:
    """``experiment`` for a run on this machine: ``~`` in its paths becomes this machine's home directory."""
    spec = experiment.spec
    script = expand_home(spec.trainer.script) if spec.trainer.script else spec.trainer.script
    trainer = spec.trainer.model_copy(update={"script": script})
    directory = os.path.abspath(expand_home(spec.code.directory)) if spec.code.directory else None
    code = spec.code.model_copy(update={"directory": directory})
    changed = spec.model_copy(update={"config": expand_home_in(spec.config), "trainer": trainer, "code": code})
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
    changes["train_mix"] = [one.model_copy(update={"path": expand_home(one.path)}) for one in config.train_mix]
    sets = [one.with_path(expand_home(one.dataset.path)) for one in config.evaluator.sets]
    changes["evaluator"] = config.evaluator.model_copy(update={"sets": sets})
    return config.model_copy(update=changes)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file, with ``${…}`` unresolved."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; pass the path of an experiment or configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); pass a YAML file") from error
    try:
        data = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}: {line}not valid YAML: {reason}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; shorten the file") from error
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{path}: has no keys; pass an experiment or configuration file")
    return {str(key): value for key, value in data.items()}


def resolve(
    config: Mapping[str, Any],
    *,
    source: str,
    mode: Mode = "environment",
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """``config`` with every ``${…}`` replaced. References count from its root, as in AReaL's files."""
    try:
        return resolve_references(config, mode=mode, defaults=defaults)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def is_experiment(data: Mapping[str, Any]) -> bool:
    """Whether a file is an experiment rather than a bare configuration."""
    return any(key in data for key in ("apiVersion", "kind", "spec"))


_Model = TypeVar("_Model", bound=Section)


def validated(model: type[_Model], data: dict[str, Any], *, source: str, unwritten: Sequence[str] = ()) -> _Model:
    """``data`` as ``model``; raises ``ConfigError`` with all problems. ``unwritten`` is as in ``problems_of``."""
    problem = problem_of_size(data)  # first: everything below recurses, the error messages too
    if problem is not None:
        raise ConfigError(f"{source}: {problem}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise config_error(source, problems_of(error, model, unwritten=unwritten)) from None


@dataclass(frozen=True)
class _Read:
    """An experiment as plain data. ``unwritten`` are the sections around what its file contains."""

    data: dict[str, Any]
    unwritten: tuple[str, ...]


def _read(path: str | os.PathLike[str], overrides: Sequence[str], config_cls: type[GRPOConfig]) -> _Read:
    """Read a file, apply the overrides, resolve ``${…}``, and log a warning for each key without a meaning here."""
    data, source = read_yaml(path), str(path)
    parsed = [parse_override(text) for text in overrides]
    if is_experiment(data):
        return _Read(_with_spec_overrides(data, parsed, source=source, config_cls=config_cls), ())
    data = with_base_files(data, Path(path), read_yaml)
    server_args: set[str] = set()
    of_spec: list[Override] = []
    for override in parsed:
        if override.key.split(".")[0] in _SPEC_SECTIONS:
            of_spec.append(override)
            continue
        if _is_sglang_argument(override, "sglang.", config_cls):
            server_args.add(override.key.removeprefix("sglang."))
        elif not known(config_cls, override.key) and not is_areal_key(override.key):
            raise _unknown(override, config_cls)
        _apply(data, override, config_cls)
    if is_skypilot_task(data):
        raise ConfigError(f"{source}: is a task of SkyPilot; convert the configuration that its run command names")
    if has_areal_keys(data):
        refuse_other_algorithms(data, source=source)
        data = resolve(without_unused_variables(data), source=source, defaults=AREAL_DEFAULTS)
    else:
        data = resolve(data, source=source)
    experiment, notes = convert(data, source=source, config_cls=config_cls, server_args=server_args)
    for override in of_spec:
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
    server_args: dict[str, Override] = {}
    for override in overrides:
        if _is_sglang_argument(override, "config.sglang.", config_cls):
            server_args[override.key] = override
            put(spec, override.key, override.value(Any), source=override.source)
        elif override.key.startswith("config.") and known(config_cls, override.key.removeprefix("config.")):
            annotation = type_of(config_cls, override.key.removeprefix("config."))
            put(spec, override.key, override.value(annotation), source=override.source)
        else:
            _put_in_spec(spec, override)
    if not isinstance(spec["config"], dict):
        raise ConfigError(f"{source}: config is {spec['config']!r}, not a section; set its keys")
    spec["config"] = resolve(spec["config"], source=source)
    for key, override in server_args.items():
        argument = key.removeprefix("config.sglang.")
        value = spec["config"]["sglang"].pop(argument)
        put(spec, f"servers.args.{argument}", value, source=override.source)
    return data


def _apply(data: dict[str, Any], override: Override, config_cls: type[GRPOConfig]) -> None:
    annotation = type_of(config_cls, override.key)
    value = override.value(Any if annotation is None else annotation)
    put(data, override.key, value, source=override.source)


def _put_in_spec(spec: dict[str, Any], override: Override) -> None:
    if not known(ExperimentSpec, override.key):
        raise _unknown(override, ExperimentSpec)
    put(spec, override.key, override.value(type_of(ExperimentSpec, override.key)), source=override.source)


def _is_sglang_argument(override: Override, prefix: str, config_cls: type[GRPOConfig]) -> bool:
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
        text += f" To pass SGLang an argument that has no key here, write +{override.text}"
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
