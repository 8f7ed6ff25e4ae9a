"""AReaL's ``scheduling_spec`` (1.0) and ``launcher`` (0.3) as variables of servers and trainer and options of Slurm.

AReaL gives CPUs and memory per GPU, and uses them only on Slurm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from areal_api.areal_config.tree import Notes, Tree, get, pop, set_in
from areal_api.errors import ConfigError, shown

GPUS_PER_NODE = 8  # AReaL's default of cluster.n_gpus_per_node
MIB_PER_GIB = 1024
MAX_MIB_PER_GPU = 4096 * MIB_PER_GIB  # larger values are mistaken units
MAX_CPUS = 4096
SECRET = re.compile(r"API_?KEY|TOKEN$|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SPECS = {
    "rollout.scheduling_spec": "servers",
    "rollout.scheduling_specs": "servers",
    "actor.scheduling_spec": "trainer",
    "actor.scheduling_specs": "trainer",
}
LAUNCHER = {"inference_server": "servers", "trainer": "trainer"}

_CONTAINERS = (
    "the container must hold this project: set slurm.containerImage, slurm.containerRuntime and slurm.containerArgs"
)
_UNUSED = {
    "task_type": "servers and trainer have fixed roles",
    "cmd": "servers and trainer have fixed commands",
    "gpu": "the allocation determines the GPUs",
    "port_count": "ports are chosen on the node",
    "image": _CONTAINERS,
    "container_type": _CONTAINERS,
    "mount": _CONTAINERS,
    "trainer_image": _CONTAINERS,
    "inference_server_image": _CONTAINERS,
    "srun_additional_args": "grpo sets the options of srun; slurm.args are those of sbatch",
    "additional_bash_cmds": "run them in the shell before grpo run: processes get its environment",
    "ray_placement_strategy": "servers and trainer nodes are placed together or not at all",
    "trainer_port": "ports are chosen on the node",
}


@dataclass
class _Needs:
    """What the file asks for, of both servers and trainer."""

    cpus: dict[str, int] = field(default_factory=dict)  # per GPU, by key
    mib: dict[str, int] = field(default_factory=dict)  # per GPU, by key
    placement: dict[str, str] = field(default_factory=dict)  # --nodelist and --exclude


def convert_scheduling(config: Tree, spec: Tree, notes: Notes) -> None:
    """Move what has a meaning here. Raises ``ConfigError`` for a value that is not what its key needs."""
    needs = _Needs()
    for key, component in SPECS.items():
        for entry in _entries(key, pop(config, key)):
            _convert_entry(key, entry, component, spec, needs, notes)
    launcher = pop(config, "launcher")
    if isinstance(launcher, dict):
        _convert_launcher(launcher, spec, needs, notes)
    elif launcher is not None:
        raise ConfigError(f"launcher is {shown(launcher)}, not a section; leave it out")
    per_node = get(config, "cluster.n_gpus_per_node", GPUS_PER_NODE)
    if isinstance(per_node, int) and per_node > 0:
        _apply(needs, per_node, spec, notes)


def is_dropped(key: str) -> bool:
    """Whether conversion drops the dotted ``key`` of one of these sections, whatever its value."""
    section, _, name = key.rpartition(".")
    return (section in SPECS or section in ("launcher", "launcher.slurm")) and name in _UNUSED


def _entries(key: str, value: Any) -> Iterable[Mapping[str, Any]]:
    entries = value if isinstance(value, list) else [] if value is None else [value]
    for entry in entries:
        if not isinstance(entry, dict):
            raise ConfigError(f"{key}: {shown(entry)} is not a mapping such as {{gpu: 1, cpu: 4, mem: 32}}")
    return entries


def _convert_entry(key: str, entry: Mapping[str, Any], component: str, spec: Tree, needs: _Needs, notes: Notes) -> None:
    for name, value in entry.items():
        full = f"{key}.{name}"
        if name == "env_vars":
            _add_variables(full, value, component, spec, notes)
        elif name == "cpu":
            needs.cpus[full] = _count(full, value)
        elif name == "mem":
            needs.mib[full] = _memory(full, _count(full, value) * MIB_PER_GIB, notes)
        elif name in ("nodelist", "exclude"):
            _place(full, f"--{name}", value, needs, notes)
        else:
            _drop(full, name, notes)


def _convert_launcher(launcher: Tree, spec: Tree, needs: _Needs, notes: Notes) -> None:
    slurm = launcher.pop("slurm", None)
    for name, value in {**launcher, **(slurm if isinstance(slurm, dict) else {})}.items():
        full = f"launcher.{name}" if name in launcher else f"launcher.slurm.{name}"
        prefix = next((prefix for prefix in LAUNCHER if name.startswith(f"{prefix}_")), "")
        what = name.removeprefix(f"{prefix}_") if prefix else name
        if prefix and what == "env_vars":
            _add_variables(full, _pairs(full, value), LAUNCHER[prefix], spec, notes)
        elif prefix and what == "cpus_per_gpu":
            needs.cpus[full] = _count(full, value)
        elif prefix and what == "mem_per_gpu":
            needs.mib[full] = _memory(full, _count(full, value), notes)
        else:
            _drop(full, name, notes)


def _drop(full: str, name: str, notes: Notes) -> None:
    notes.add(full, _UNUSED.get(name, "set resources and placement in servers, trainer and slurm of the experiment"))


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{key} is {shown(value)}; write a whole number, or leave it out")
    return value


def _memory(key: str, mib: int, notes: Notes) -> int:
    """``mib`` per GPU; 0 for more than any GPU's share of a node."""
    if mib <= MAX_MIB_PER_GPU:
        return mib
    notes.add(key, "more memory per GPU than a node has; set slurm.args=[--mem=…]")
    return 0


def _place(key: str, option: str, value: Any, needs: _Needs, notes: Notes) -> None:
    if value is None or value == "":
        return
    if not isinstance(value, str):
        raise ConfigError(f"{key} is {shown(value)}; write a list of nodes as Slurm does, such as n[1-4]")
    if needs.placement.setdefault(option, value) != value:
        notes.add(key, "one allocation holds servers and trainer; separate them with slurm.servers")


def _pairs(key: str, value: Any) -> dict[str, str]:
    """``A=1,B=2`` as a mapping."""
    if value is None or value == "":
        return {}
    pairs = [pair.partition("=") for pair in str(value).split(",")]
    if any(not name.strip() or not equals for name, equals, _ in pairs):
        raise ConfigError(f"{key} is {shown(value)}; write variables as NAME=VALUE,NAME=VALUE")
    return {name.strip(): text for name, _, text in pairs}


def _add_variables(key: str, value: Any, component: str, spec: Tree, notes: Notes) -> None:
    if value is None or value == {}:
        return
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is {shown(value)}; write a mapping of names to values")
    variables = {str(entry["name"]): entry for entry in get(spec, f"{component}.env", [])}
    for name, text in value.items():
        if SECRET.search(str(name)):
            notes.add(f"{key}.{name}", "secrets are not stored: set it in the environment of grpo, or in a Secret")
        else:
            variables[str(name)] = {"name": str(name), "value": str(text)}
            notes.add(f"{key}.{name}", f"becomes a variable of {component}.env")
    if variables:
        set_in(spec, f"{component}.env", list(variables.values()))


def _apply(needs: _Needs, per_node: int, spec: Tree, notes: Notes) -> None:
    """CPUs, memory and nodes of the allocation."""
    cpus, mib = (max(values.values(), default=0) * per_node for values in (needs.cpus, needs.mib))
    for key in needs.cpus:
        notes.add(key, f"CPUs per GPU, on Slurm: slurm.cpusPerNode = {min(cpus, MAX_CPUS)}")
    for key in needs.mib:
        notes.add(key, f"memory per GPU, on Slurm: slurm.args=[--mem={mib}M]")
    if cpus:
        set_in(spec, "slurm.cpusPerNode", min(cpus, MAX_CPUS))
    arguments = [f"--mem={mib}M"] if mib else []
    arguments += [f"{option}={value}" for option, value in needs.placement.items()]
    if arguments:
        set_in(spec, "slurm.args", [*get(spec, "slurm.args", []), *arguments])
