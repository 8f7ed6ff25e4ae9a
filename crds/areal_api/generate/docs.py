"""Lists every key with type, default, unit, bounds and meaning, for docs/configuration.md and ``grpo run --help``.

``python -m areal_api.generate.docs --write`` writes the file, ``--check`` fails if it is out of date.
"""

from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo

from areal_api.bounds import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_FREE_FORM_DEPTH,
    MAX_ITEMS,
    MAX_TEXT,
    MAX_TOTAL_TEXT,
    MAX_VALUES,
)
from areal_api.config import GRPOConfig
from areal_api.experiment import ExperimentSpec
from areal_api.generate.check import check_or_write
from areal_api.keys import fields, item_section_of, section_of
from areal_api.section import CamelSection, Section

DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"

_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Any": "anything"}


@dataclass(frozen=True)
class KeyDoc:
    """One key. ``type`` is empty for a section; ``default`` is in YAML, or empty if the key is required."""

    key: str
    type: str
    default: str
    unit: str
    bounds: str
    description: str


def key_docs() -> list[KeyDoc]:
    """All keys: those of the configuration without a prefix, then those of the experiment around it."""
    around = [(key, field) for key, field, _ in fields(ExperimentSpec) if key.split(".")[0] != "config"]
    return [_doc(key, field) for key, field in [*((key, field) for key, field, _ in fields(GRPOConfig)), *around]]


def describe_keys() -> str:
    """The text of ``grpo run --help`` about keys."""
    lines = ["Keys of the configuration (in an experiment: below config.), followed by keys of the experiment:"]
    for doc in key_docs():
        facts = [doc.type, f"default {doc.default}" if doc.default else "required", doc.bounds, doc.unit]
        shown = ", ".join(fact for fact in facts if fact)
        lines.append("")
        lines.append(f"  {doc.key}" + (f"  [{shown}]" if doc.type else ""))
        lines.extend(textwrap.wrap(doc.description, 110, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def configuration_markdown() -> str:
    """docs/configuration.md."""
    lines = [_HEAD, _general_limits(), "", "## Configuration (`spec.config`, and AReaL's own file)", ""]
    lines += _tables(GRPOConfig, "", "run")
    lines += ["## Experiment (`spec`, around the configuration)", ""]
    for key, name in ExperimentSpec.keys().items():
        annotation = ExperimentSpec.model_fields[name].annotation
        section, item = section_of(annotation), item_section_of(annotation)
        if key != "config" and section is not None:
            lines += _tables(section, f"{key}.", key)
        elif item is not None:
            lines += _tables(item, f"{key}[].", f"{key} (a list)")
    return "\n".join(lines).rstrip("\n") + "\n"


def _tables(model: type[Section], prefix: str, title: str) -> Iterator[str]:
    yield from (f"### {title}", "", str(model.__doc__).strip().splitlines()[0], "")
    yield from ("| key | type | default | bounds | unit | meaning |", "|---|---|---|---|---|---|")
    below: list[tuple[str, str, type[Section]]] = []  # prefix, title
    for key, name in model.keys().items():
        field = model.model_fields[name]
        section = section_of(field.annotation)
        if section is not None:
            below.append((f"{prefix}{key}.", f"{prefix}{key}", section))
        elif (item := item_section_of(field.annotation)) is not None and issubclass(item, CamelSection):
            below.append((f"{prefix}{key}[].", f"{prefix}{key} (a list)", item))
        doc = _doc(f"{prefix}{key}", field)
        cells = [f"`{doc.key}`", doc.type or "section", f"`{doc.default}`" if doc.default else "required"]
        yield (
            "| "
            + " | ".join(cell.replace("|", "\\|") for cell in [*cells, doc.bounds, doc.unit, doc.description])
            + " |"
        )
    yield ""
    for start, title, section in below:
        yield from _tables(section, start, title)


def _doc(key: str, field: FieldInfo) -> KeyDoc:
    extra = field.json_schema_extra
    unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    section = section_of(field.annotation)
    if field.is_required():
        default = ""
    elif section is not None:
        default = "null" if field.default is None else "{}"
    else:
        default = _flow(field.get_default(call_default_factory=True))
    kind = "" if section is not None else _type_name(field.annotation)
    return KeyDoc(key, kind, default, unit, _bounds(field), str(field.description))


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _type_name(argument) for argument in arguments)
    if origin is list:
        return (
            "list" if _is_mapping(arguments[0]) or section_of(arguments[0]) else f"list of {_type_name(arguments[0])}"
        )
    if origin is dict:
        return "mapping"
    return _TYPES[annotation.__name__]


def _is_mapping(annotation: Any) -> bool:
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_origin(inner) is dict


def _bounds(field: FieldInfo) -> str:
    texts: list[str] = []
    for constraint in field.metadata:
        match constraint:
            case annotated_types.Ge(ge=bound):
                texts.append(f"≥ {bound}")
            case annotated_types.Gt(gt=bound):
                texts.append(f"> {bound}")
            case annotated_types.Le(le=bound):
                texts.append(f"≤ {bound}")
            case annotated_types.Lt(lt=bound):
                texts.append(f"< {bound}")
    return ", ".join(texts)


def _general_limits() -> str:
    """The limits of ``bounds.py``, which the tables do not repeat."""
    text = (
        f"Where a table states no other bound, a text has at most {MAX_TEXT:,} characters and no NUL character, a list "
        f"{MAX_ITEMS} items, a mapping {MAX_ENTRIES} keys, and a whole number is within ±(2^53 - 1). Free-form values "
        f"(`workflow.kwargs`, `servers.args`) have at most {MAX_FREE_FORM_DEPTH} levels. An experiment has at most "
        f"{MAX_VALUES:,} values, {MAX_TOTAL_TEXT:,} characters and {MAX_DEPTH} levels."
    )
    return "\n".join(textwrap.wrap(text, 120))


_HEAD = """\
# Configuration

<!-- Generated by `python -m areal_api.generate.docs --write`; do not edit. -->

An experiment is one file, `experiment.yaml`. `grpo run` runs it locally, `kubectl apply` in a cluster:

```yaml
apiVersion: areal.dev/v1alpha1
kind: GRPOExperiment
metadata: {name: gsm8k}
spec:
  config: {…}      # AReaL's keys, in snake_case: those of gsm8k_grpo.yaml
  servers: {…}     # SGLang
  trainer: {…}     # torchrun
  storage: {…}     # in a cluster
  runPolicy: {…}
  agents: […]      # in a cluster: pods that train by online mode
  tools: […]       # in a cluster: tool servers in sandboxes
  slurm: {…}       # grpo run --on slurm
```

`grpo run script.py --config gsm8k_grpo.yaml` reads AReaL's own configuration files. `allocation_mode` (or
`rollout.backend` and `actor.backend`) determines servers and ranks; `vllm`, `megatron` and `archon` become SGLang and
FSDP on as many GPUs. Servers and trainer never share GPUs, so `cluster.n_nodes` is raised where AReaL's file shares
them. Additional keys of a script (`max_turns`, `econfig`) are dropped: pass them in `workflow.kwargs`. A key without
meaning here is reported with the reason. Files for another algorithm (supervised fine-tuning, DPO, a reward model, PPO
with a critic, distillation) and those that train on images (`sglang.enable_multimodal`) are refused. All problems of a
file are reported at once. `grpo convert` writes the file as an `experiment.yaml`. Of the 71 YAML files in the examples
of AReaL of August 2026, 47 convert and can be planned, 11 are for another algorithm, 9 for images, 3 configure no
training, and one has no `actor.path`.

Overrides follow the file: `actor.path=Qwen/Qwen3-1.7B`. With an experiment file they are relative to `spec`
(`config.actor.path=…`, `servers.replicas=2`). With AReaL's file they are relative to its configuration, and
`servers.`, `trainer.`, `storage.`, `runPolicy.` and `slurm.` set keys of the experiment. An unknown key is an error.
The only exception is `+sglang.KEY=VALUE`, which sets any argument of SGLang's `ServerArgs`, like
`servers.args.KEY=VALUE`.

The type of the key decides how the text of an override is read. Text is literal: `trial_name=001` is `001`, and
`train_dataset.instruction=` is the empty text. Quotes around the whole value are removed. Numbers are decimal. Lists
and sections are YAML, and their items follow their own types: `gconfig.stop=[001, "a, b"]`. `null` is allowed where
the type lists it; there an empty value is `null` too. Numbers must be finite.

`${actor.path}` is replaced by the value of that key, counted from the root of the configuration, and `${.path}` by
the value of a key in the same section. `\\${` is a literal `${`. Files on your machine may also use
`${oc.env:NAME}` and `${oc.env:NAME,default}`. In an object that is applied to a cluster only references to its own
keys are allowed. References are limited to 32 in a chain and 1 MiB of resolved text.

A path may be absolute, relative to the working directory, or start with `~`. `owner/name` is a repository on the
Hugging Face hub, unless `owner` is a directory here. Sizes are Kubernetes quantities, such as `100Gi` or `1.5T`.
Of `freq_epochs`, `freq_steps` and `freq_secs`, whichever is due first applies.

Servers and trainer compute log-probs of softmax(logits / temperature). Settings of `gconfig` that sample from another
distribution are refused: `top_p`, `top_k`, `min_new_tokens`, `frequency_penalty`, `greedy` and temperature 0.
`eval_gconfig` may use them. `sglang` and `servers.args` are checked against the rules of SGLang before a run starts.
"""


def main(arguments: Sequence[str]) -> int:
    """``--write`` or ``--check``."""
    return check_or_write(arguments, path=DOCUMENT, text=configuration_markdown(), module="areal_api.generate.docs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
