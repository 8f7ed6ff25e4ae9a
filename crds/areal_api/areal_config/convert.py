"""Converts AReaL's configuration files (``gsm8k_grpo.yaml``, of three generations) to experiments. Pure functions."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from areal_api.actor import PPOActorConfig, TrainEngineConfig
from areal_api.areal_config.actor import actor_steps
from areal_api.areal_config.allocation import Sizes, parse_allocation_mode, parse_part, spread
from areal_api.areal_config.files import has_areal_keys
from areal_api.areal_config.keys import AREAL_DEFAULTS, SGLANG_ARGUMENTS, foreign
from areal_api.areal_config.scheduling import GPUS_PER_NODE, convert_scheduling
from areal_api.areal_config.scripts import convert_workflow, drop_script_keys, import_path, other_algorithm
from areal_api.areal_config.tree import Notes, Tree, get, pop, set_in
from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError, config_error, shown, unknown_key
from areal_api.experiment import API_VERSION, KIND, MAX_NAME_LENGTH
from areal_api.keys import section_of
from areal_api.section import Section

LARGER_THAN_VOCABULARIES = 1_000_000  # tokens
MAX_DIGITS = 9  # of a number of nodes or GPUs
_ROLES = ("rollout", "actor", "ref")


def convert(
    raw: Mapping[str, Any],
    *,
    source: str = "configuration",
    config_cls: type[GRPOConfig] = GRPOConfig,
    server_args: Iterable[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Convert ``raw``, whose ``${…}`` are resolved. Returns an unvalidated experiment and notes on its changed keys.

    Raises ``ConfigError`` with all problems of the file. There is a note for every key that was dropped or translated.
    A configuration without keys of AReaL's own is kept. ``server_args`` are additional keys of the sglang section to
    move to ``servers.args``.
    """
    config: Tree = copy.deepcopy(dict(raw))
    notes = Notes()
    spec: Tree = {"config": config}
    problems: list[str] = []
    if has_areal_keys(config):
        refuse_other_algorithms(config, source=source)
        generation = _generation(config)
        for step in (
            lambda: _convert_old_agent(config, notes),
            lambda: convert_workflow(config, notes),
            lambda: _convert_allocation(config, spec, notes),
            *actor_steps(config, notes, generation=generation),
            lambda: convert_scheduling(config, spec, notes),
            lambda: _convert_recovery(config, spec, notes),
            lambda: _convert_agent(config, notes),
            lambda: _convert_data(config, notes, generation=generation),
            lambda: _convert_lengths(config, notes),
        ):
            try:
                step()
            except ConfigError as error:
                problems.append(str(error))
        problems += _drop_foreign(config, notes)
        drop_script_keys(config, notes)
        _leave_out_defaults(config)
    _move_server_arguments(config, spec, notes, extra=frozenset(server_args))
    problems += _unknown_problems(config, config_cls)
    name = config.get("experiment_name")
    if not isinstance(name, str) or not name:
        problems.append("experiment_name is missing; set it")
    if problems:
        raise config_error(source, list(dict.fromkeys(problems)))
    name = str(name)
    if object_name(name) == name:
        del config["experiment_name"]
    experiment = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": object_name(name)}, "spec": spec}
    return experiment, notes.lines()


def refuse_other_algorithms(raw: Mapping[str, Any], *, source: str) -> None:
    """Raise ``ConfigError`` with the reason if a file, whose ``${…}`` need not be resolved, cannot run here at all."""
    other = other_algorithm(raw)
    if other is not None:
        raise config_error(source, [other])


def object_name(text: str) -> str:
    """``text`` as the name of a Kubernetes object: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_NAME_LENGTH].strip("-") or "experiment"


def _generation(config: Tree) -> str:
    """``lite`` (2025), ``0.3`` or ``1.0``, which differ in their defaults."""
    mode = config.get("allocation_mode")
    if "." in str(mode or "").split("+")[0] or "checkpointer" in config or get(config, "actor.group_size") is not None:
        return "lite"
    return "1.0" if not mode else "0.3"


def _convert_allocation(config: Tree, spec: Tree, notes: Notes) -> None:
    for key in ("n_nodes", "n_gpus_per_node"):
        value = pop(config, key)
        if value is not None and get(config, f"cluster.{key}") is None:
            set_in(config, f"cluster.{key}", value)
    mode, backends = pop(config, "allocation_mode"), {role: pop(config, f"{role}.backend") for role in _ROLES}
    per_node = _whole_number(config, "cluster.n_gpus_per_node")
    _whole_number(config, "cluster.n_nodes")
    if per_node == 0:
        notes.add("cluster.n_gpus_per_node", "0 GPUs per node: servers.device and trainer.device become cpu")
        set_in(spec, "servers.device", "cpu")
        set_in(spec, "trainer.device", "cpu")
    parts = {role: _backend(backends[role], role) for role in ("rollout", "actor")}
    if any(parts.values()):
        if mode:
            notes.add("allocation_mode", "rollout.backend and actor.backend take precedence")
        servers = parse_part(parts["rollout"] or "sglang:d1", role="servers", key="rollout.backend", notes=notes)
        trainer = parse_part(parts["actor"] or "fsdp:d1", role="trainer", key="actor.backend", notes=notes)
    elif mode:
        servers, trainer = parse_allocation_mode(str(mode), notes)
    else:
        servers, trainer = Sizes(1, 1), Sizes(1, 1)
        notes.add(
            "allocation_mode", "missing; one server and one rank: set servers.replicas and trainer.processesPerNode"
        )
    if backends["ref"]:
        notes.add("ref.backend", "the reference model runs in the trainer's ranks")
    set_in(spec, "servers.replicas", servers.data)
    set_in(spec, "servers.tensorParallel", servers.tensor)
    for kind, size in (("tensor", trainer.tensor), ("context", trainer.context), ("expert", trainer.expert)):
        if size > 1:
            set_in(config, f"actor.parallel.{kind}", size)
    data = _usable_ranks(config, trainer.data, notes, key="actor.backend" if not mode else "allocation_mode")
    total = data * trainer.tensor * trainer.context
    nodes, ranks = spread(total, per_node or GPUS_PER_NODE)
    set_in(spec, "trainer.nodes", nodes)
    set_in(spec, "trainer.processesPerNode", ranks)
    _convert_cluster_size(config, notes, gpus=servers.data * servers.tensor + total)


def _usable_ranks(config: Tree, ranks: int, notes: Notes, *, key: str) -> int:
    """The largest number of data-parallel ranks, at most ``ranks``, that divides the batch."""
    batch = get(config, "train_dataset.batch_size")
    if not isinstance(batch, int) or batch < 1 or batch % ranks == 0:
        return ranks
    usable = next(count for count in range(min(ranks, batch), 0, -1) if batch % count == 0)
    notes.add(key, f"{usable} ranks instead of {ranks}: train_dataset.batch_size {batch} is not a multiple of {ranks}")
    return usable


def _convert_cluster_size(config: Tree, notes: Notes, *, gpus: int) -> None:
    """Drop a number of nodes that the allocation exceeds, as in files whose servers share the trainer's GPUs."""
    nodes, per_node = get(config, "cluster.n_nodes", 1), get(config, "cluster.n_gpus_per_node")
    if not isinstance(nodes, int) or not isinstance(per_node, int) or not 0 < nodes * per_node < gpus:
        return
    set_in(config, "cluster.n_nodes", -(-gpus // per_node))
    notes.add(
        "cluster.n_nodes",
        f"raised from {nodes} to {-(-gpus // per_node)}: servers and trainer use {gpus} separate GPUs",
    )


def _backend(text: Any, role: str) -> str | None:
    """The backend of a role, such as ``sglang:d4``; None without sizes, such as ``fsdp`` in the first generation."""
    if not text or text in ("fsdp", "megatron", "archon"):
        return None
    if not re.search(r"[.:]", str(text)):
        raise ConfigError(f"{role}.backend: {text!r} is not supported; write sglang:d4 (rollout) or fsdp:d4 (actor)")
    return str(text)


def _whole_number(config: Tree, key: str) -> int | None:
    """The number at ``key``, which is text if it comes from an environment variable."""
    value = get(config, key)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < MAX_DIGITS:
        set_in(config, key, value := int(value))
    if type(value) is not int or value < 0:
        raise ConfigError(f"{key} is {shown(value)}; write a whole number")
    return value


def _convert_recovery(config: Tree, spec: Tree, notes: Notes) -> None:
    checkpointer = pop(config, "checkpointer")
    if isinstance(checkpointer, dict) and get(config, "recover") is None:
        config["recover"] = {"mode": "auto", **checkpointer}
        notes.add("checkpointer", "becomes recover")
    elif checkpointer is not None:
        notes.add("checkpointer", "recover takes precedence")
    mode = get(config, "recover.mode")
    modes = {"on": "auto", "fault": "auto", "resume": "auto", True: "auto", "off": "disabled", False: "disabled"}
    if mode in modes:
        set_in(config, "recover.mode", modes[mode])
    keep = pop(config, "recover.keep_last_n")
    if keep is not None:
        set_in(config, "recover.keep", keep)
        notes.add("recover.keep_last_n", "becomes recover.keep")
    retries = pop(config, "recover.retries")
    if retries is not None:
        set_in(spec, "runPolicy.backoffLimit", retries)
        notes.add("recover.retries", "becomes runPolicy.backoffLimit")


def _convert_data(config: Tree, notes: Notes, *, generation: str) -> None:
    for section in ("train_dataset", "valid_dataset"):
        data = config.get(section)
        if not isinstance(data, dict):
            continue
        if data.get("type", "") is None:
            del data["type"]
        if generation == "lite" and not data.get("path"):
            data["path"] = "openai/gsm8k"
            notes.add(f"{section}.path", "missing; set to openai/gsm8k as in AReaL's script for such files: set yours")


def _convert_lengths(config: Tree, notes: Notes) -> None:
    """A request may not exceed the context of the servers; AReaL lets such requests fail one by one."""
    longest = get(config, "rollout.agent.engine_max_tokens")
    if isinstance(longest, int):
        pop(config, "rollout.agent.engine_max_tokens")
        set_in(config, "gconfig.max_tokens", min(longest, get(config, "gconfig.max_tokens", longest)))
        notes.add("rollout.agent.engine_max_tokens", "becomes gconfig.max_tokens")
    top_k = get(config, "gconfig.top_k")
    if isinstance(top_k, int) and top_k >= LARGER_THAN_VOCABULARIES:
        pop(config, "gconfig.top_k")
        notes.add("gconfig.top_k", "larger than every vocabulary, so it limits nothing")
    context = get(config, "sglang.context_length")
    for section in ("gconfig", "eval_gconfig"):
        if not isinstance(context, int) or not isinstance(config.get(section), dict):
            continue
        limit = get(config, f"{section}.max_tokens", AREAL_DEFAULTS["gconfig.max_tokens"])
        if isinstance(limit, int) and limit > context:
            set_in(config, f"{section}.max_tokens", context)
            notes.add(f"{section}.max_tokens", f"set to {context}, the context length of the servers")


def _convert_old_agent(config: Tree, notes: Notes) -> None:
    """``rollout.openai``, the earlier name of ``rollout.agent``, and for a time a section within it."""
    agent, old = get(config, "rollout.agent"), pop(config, "rollout.openai")
    if isinstance(agent, dict) and isinstance(agent.get("openai"), dict):
        old = agent.pop("openai")
    if old is not None:
        set_in(config, "rollout.agent", {**old, **(agent or {})})
        notes.add("rollout.openai", "becomes rollout.agent")


def _convert_agent(config: Tree, notes: Notes) -> None:
    if get(config, "rollout.agent") is None:
        pop(config, "rollout.agent")
        return
    mode = pop(config, "rollout.agent.mode")
    if mode in ("subproc", "online"):
        set_in(config, "rollout.agent.mode", mode)
    elif mode not in (None, "inline"):
        raise ConfigError(f"rollout.agent.mode is {shown(mode)}; set it to inline, subproc or online")
    else:
        notes.add("rollout.agent.mode", "inline is the default")
    key = "rollout.agent.message_preprocessors"
    if isinstance(paths := get(config, key), list) and all(isinstance(path, str) for path in paths):
        set_in(config, key, [import_path(path) for path in paths])
        if paths:
            notes.add(key, "becomes import paths; the trainer needs these modules")


def _drop_foreign(tree: Tree, notes: Notes, prefix: str = "") -> Iterable[str]:
    """Drop the keys without a meaning here; returns a problem for each whose value would change the run."""
    problems: list[str] = []
    for name in list(tree):
        key, value = f"{prefix}{name}", tree[name]
        entry = foreign(key)
        if entry is None and key.startswith("ref.") and prefix == "ref." and _is_of_actor_only(name):
            notes.add(key, "the reference model is not trained")
            del tree[name]
        elif entry is not None:
            if entry.only is not None and value not in entry.only:
                fix = f"leave it out or set it to {shown(entry.only[0])}"
                problems.append(f"{key} is {shown(value)}: {entry.reason}; {fix}")
            else:
                notes.add(key, entry.reason)
            del tree[name]
        elif isinstance(value, dict):
            had_keys = bool(value)
            problems += _drop_foreign(value, notes, f"{key}.")
            if had_keys and not value:
                del tree[name]
    return problems


def _is_of_actor_only(name: str) -> bool:
    return name in PPOActorConfig.model_fields and name not in TrainEngineConfig.model_fields


def _leave_out_defaults(config: Tree) -> None:
    """Remove values that equal our defaults: references to other keys, empty texts, nulls."""
    model = get(config, "actor.path")
    same: dict[str, Callable[[Any], bool]] = {
        "tokenizer_path": lambda value: value in ("", model),
        "sglang.model_path": lambda value: value in ("", model),
        "sglang.random_seed": lambda value: value == config.get("seed", 1),
        "rollout.consumer_batch_size": lambda value: value == get(config, "train_dataset.batch_size"),
        "actor.mb_spec.n_mbs": lambda value: value is None,
        "ref.mb_spec.n_mbs": lambda value: value is None,
        "stats_logger.wandb.tags": lambda value: value is None,
        "stats_logger.swanlab.mode": lambda value: value is None,
    }
    for key, is_same in same.items():
        if get(config, key, default=...) is not ... and is_same(get(config, key)):
            pop(config, key)


def _move_server_arguments(config: Tree, spec: Tree, notes: Notes, *, extra: frozenset[str]) -> None:
    sglang = config.get("sglang")
    if not isinstance(sglang, dict):
        return
    for name in list(sglang):
        if name in extra:
            set_in(spec, f"servers.args.{name}", sglang.pop(name))
        elif name in SGLANG_ARGUMENTS:
            value = sglang.pop(name)
            if value is not None:
                set_in(spec, f"servers.args.{name}", value)
            notes.add(
                f"sglang.{name}", "moves to servers.args" if value is not None else "null is SGLang's own default"
            )


def _unknown_problems(config: Tree, config_cls: type[GRPOConfig]) -> list[str]:
    """The unknown keys of all sections; pydantic would report only one section."""
    problems = [unknown_key(key, config_cls) for key in _unknown(config, config_cls, "")]
    if any(problem.startswith("sglang.") for problem in problems):
        problems.append("pass an argument of SGLang that has no key here in servers.args, or as +sglang.KEY=VALUE")
    return problems


def _unknown(tree: Tree, model: type[Section], prefix: str) -> Iterable[str]:
    names = model.keys()
    for key, value in tree.items():
        if key not in names:
            yield f"{prefix}{key}"
            continue
        below = section_of(model.model_fields[names[key]].annotation)
        if below is not None and isinstance(value, dict):
            yield from _unknown(value, below, f"{prefix}{key}.")
