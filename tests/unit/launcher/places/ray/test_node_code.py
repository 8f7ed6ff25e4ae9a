"""Code of the project that a node lacks, or has in another version."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.places.ray import node_code

HERE = {"node": "10.0.0.1", "python": "/here/python", "areal_api": "a", "areal_launcher": "b", "areal_server": "c"}


def test_nodes_with_the_same_code_have_no_problem() -> None:
    assert node_code.problem(HERE, {**HERE, "node": "10.0.0.2", "python": "/there/python"}, "areal_server") is None


def test_a_missing_package_is_named_with_its_node() -> None:
    there = {**HERE, "node": "10.0.0.2", "python": "/usr/bin/python3", "areal_launcher": "", "areal_server": ""}
    text = node_code.problem(HERE, there, "areal_server")
    assert text is not None
    assert text.startswith(
        "node 10.0.0.2: Ray's interpreter /usr/bin/python3 lacks areal_launcher, areal_server; install"
    )


def test_only_the_package_that_runs_there_has_to_be_equal() -> None:
    there = {**HERE, "node": "10.0.0.2", "areal_server": "older", "areal_trainer": "t"}
    here = {**HERE, "areal_trainer": "t"}
    assert node_code.problem(here, there, "areal_trainer") is None
    text = node_code.problem(here, there, "areal_server")
    assert text is not None
    assert "node 10.0.0.2: areal_server of Ray's interpreter" in text


def test_a_digest_depends_on_names_and_contents_of_the_python_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = set()
    for number, files in enumerate(({"a.py": "1"}, {"a.py": "2"}, {"b.py": "1"}, {"b.py": "1", "c.txt": "x"})):
        package = tmp_path / f"digested{number}"
        package.mkdir()
        for name, text in files.items():
            (package / name).write_text(text)
        digests.add(node_code.digest_of(package.name))
    assert len(digests) == 3  # other files than Python's do not count
    assert node_code.digest_of("no_such_package_anywhere") == node_code.MISSING
