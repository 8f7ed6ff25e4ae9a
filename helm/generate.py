"""Generates files of the chart: copies of the CRD and of the examples (a chart must contain all that it installs), the
dashboard of ``dashboard.py``, and descriptions of the values from the comments in values.yaml.

``python helm/generate.py --write`` writes them, ``--check`` fails if one is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import dashboard
from areal_api.generate.check import check_or_write

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "areal-gsm8k"
COPIES = {
    CHART / "charts/crds/crds/grpoexperiments.yaml": ROOT / "crds/grpoexperiments.yaml",
    CHART / "files/gsm8k.yaml": ROOT / "examples/gsm8k/experiment.yaml",
    CHART / "files/tiny.yaml": ROOT / "examples/tiny/experiment.yaml",
}
BEGIN, END = "<!-- values: python helm/generate.py --write -->\n", "<!-- end of values -->\n"
LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:# (?P<comment>.*))?$")


def texts() -> dict[Path, str]:
    """The text of each generated file."""
    readme = (CHART / "README.md").read_text()
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    table = "".join(f"| `{key}` | `{value}` | {text} |\n" for key, value, text in rows())
    head = "| value | default | meaning |\n|---|---|---|\n"
    return {
        **{target: source.read_text() for target, source in COPIES.items()},
        CHART / "files/dashboard.json": dashboard.text(),
        CHART / "values.schema.json": schema(),
        CHART / "README.md": f"{before}{BEGIN}{head}{table}{END}{after}",
    }


def rows() -> Iterator[tuple[str, str, str]]:
    """Key, default and description of every value; raises ``ValueError`` for one without a description."""
    values, path = yaml.safe_load((CHART / "values.yaml").read_text()), list[str]()
    described: dict[str, str] = {}
    for line in (CHART / "values.yaml").read_text().splitlines():
        found = LINE.match(line)
        if found:
            path = [*path[: len(found["indent"]) // 2], found["key"]]
            if found["comment"]:
                described[".".join(path)] = found["comment"]
    for section, below in values.items():
        for key, value in below.items():
            name = f"{section}.{key}"
            if name not in described:
                raise ValueError(f"values.yaml: {name} has no comment; describe it")
            yield name, json.dumps(value), described[name]


def schema() -> str:
    """values.schema.json with the descriptions of values.yaml."""
    root: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    for name, _, text in rows():
        section, key = name.split(".")
        node = root["properties"][section]["properties"][key]
        rest = {field: value for field, value in node.items() if field != "description"}
        root["properties"][section]["properties"][key] = {"description": text, **rest}
    return json.dumps(root, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str]) -> int:
    """``--write`` or ``--check``."""
    statuses = [
        check_or_write(arguments, path=path, text=text, module="helm/generate.py") for path, text in texts().items()
    ]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
