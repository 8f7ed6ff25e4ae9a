"""References in configurations: OmegaConf's meaning, without its resolvers and within bounds."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from areal_api.interpolation import MAX_REFERENCES, Mode, resolve_references


@pytest.mark.parametrize(
    ("config", "resolved"),
    [
        ({"a": 1, "b": "${a}"}, {"a": 1, "b": 1}),
        ({"a": {"x": [1, "t"]}, "b": "${a}"}, {"a": {"x": [1, "t"]}, "b": {"x": [1, "t"]}}),
        ({"a": {"x": 1, "y": "${.x}"}}, {"a": {"x": 1, "y": 1}}),
        ({"a": {"y": "${..b}"}, "b": 2}, {"a": {"y": 2}, "b": 2}),
        ({"a": [3, 4], "b": "${a[1]}-${a.0}"}, {"a": [3, 4], "b": "4-3"}),
        ({"a": "${b}", "b": "${c}", "c": "x"}, {"a": "x", "b": "x", "c": "x"}),
        ({"a": "\\${b}"}, {"a": "${b}"}),
        ({"a": "\\\\${b}", "b": 1}, {"a": "\\1", "b": 1}),
        ({"a": "\\boxed{}"}, {"a": "\\boxed{}"}),
        ({"a": None, "b": "${a}"}, {"a": None, "b": None}),
    ],
)
@pytest.mark.parametrize("mode", ["environment", "keys"])
def test_references_are_replaced_by_their_targets(config: dict[str, Any], resolved: Any, mode: Mode) -> None:
    assert resolve_references(config, mode=mode) == resolved


def test_the_environment_is_read_on_the_users_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.delenv("ABSENT", raising=False)
    config = {"a": "${oc.env:TOKEN}", "b": "${oc.env:ABSENT,d}", "c": "${oc.env:ABSENT,null}", "d": "${oc.env:${e}}"}
    resolved = resolve_references({**config, "e": "TOKEN"})
    assert resolved == {"a": "secret", "b": "d", "c": None, "d": "secret", "e": "TOKEN"}
    for key, value in config.items():
        with pytest.raises(ValueError, match=rf"^{key}: .* is not allowed here") as caught:
            resolve_references({key: value, "e": "TOKEN"}, mode="keys")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": "${b}"}, r"a: \$\{b\} refers to a key that is not set"),
        ({"a": "${oc.decode:x}"}, r"is not (a reference|allowed here)"),
        ({"a": "${no such}"}, r"a: \$\{no such\} is not a reference; write \$\{section.key\}"),
        ({"a": "${b}", "b": "${a}"}, r"references form a cycle, a → b → a"),
        ({"a": {"x": "${a}"}}, r"references form a cycle"),
        ({"a": "${b", "b": 1}, r"a: \$\{b has a \$\{ without its \}"),
        ({"a": "x${b}", "b": {"c": 1}}, r"a: x\$\{b\} puts a section into a text"),
        ({"a": "${.....b}", "b": 1}, r"goes above the root"),
        ({"a": "???"}, r"a is \?\?\?; set it"),
        ({"a": "${b}", "b": "???"}, r"b is \?\?\?; set it"),
    ],
)
@pytest.mark.parametrize("mode", ["environment", "keys"])
def test_a_reference_without_a_value_is_refused_with_its_key(config: Any, message: str, mode: Mode) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_references(config, mode=mode)


def _doubling(levels: int) -> dict[str, Any]:
    return {"k0": "0123456789", **{f"k{n}": f"${{k{n - 1}}}${{k{n - 1}}}" for n in range(1, levels)}}


def _doubling_sections(levels: int) -> dict[str, Any]:
    sections = {f"k{n}": {"x": f"${{k{n - 1}}}", "y": f"${{k{n - 1}}}"} for n in range(1, levels)}
    return {"k0": {"x": 1}, **dict(reversed(sections.items()))}


def _deep(levels: int, *, lists: bool) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value] if lists else {"a": value}
    return {"a": value}


@pytest.mark.parametrize(
    "config",
    [
        _doubling(30),
        _doubling_sections(30),
        _deep(10_000, lists=True),
        _deep(10_000, lists=False),
        {f"k{n}": f"${{k{n + 1}}}" for n in range(MAX_REFERENCES + 2)} | {f"k{MAX_REFERENCES + 2}": 1},
        {"a": "${" * 20_000},
        {"a": "${" * 20_000 + "b" + "}" * 20_000, "b": 1},
        {"a": ["x" * 1000] * 2000},
    ],
    ids=["texts", "sections", "lists", "mappings", "chain", "unclosed", "nested", "size"],
)
@pytest.mark.parametrize("mode", ["environment", "keys"])
def test_expansion_is_bounded(config: dict[str, Any], mode: Mode) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=r"more than|larger than|without its|not allowed here"):
        resolve_references(config, mode=mode)
    assert time.process_time() - began < 10


def test_backslashes_cost_linear_time() -> None:
    began = time.process_time()
    text = "\\" * 300_000
    assert resolve_references({"a": text}) == {"a": text}
    assert time.process_time() - began < 10


KEYS = st.sampled_from(["a", "b", "c"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["", "x", "\\", "a\\\\", "}", "$"]))
PARTS = st.one_of(
    st.sampled_from(["${a}", "${b}", "${c}", "${.b}", "${a.b}", "${c.a}", "\\${a}", "\\\\${b}", "x", "-"]),
)
TEXTS = st.lists(PARTS, min_size=1, max_size=3).map("".join)
VALUES = st.recursive(SCALARS | TEXTS, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)


@example({"a": {"a": "${b}${b}"}, "b": {"a": "${a}"}})
@example({"c": "${a}", "a": {"a": None, "b": "${c.a}"}, "b": "${c.a}"})
@example({"d": "${c}", "c": "${a.a}", "a": {"a": {"b": 1}}, "b": "${d.b}"})
@settings(max_examples=400, deadline=None)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
def test_the_result_is_omegaconfs(config: dict[str, Any]) -> None:
    try:
        expected = OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
    except Exception:  # noqa: BLE001 (OmegaConf leaks several kinds, RecursionError included)
        return
    try:
        assert resolve_references(config) == expected
    except ValueError as error:
        # OmegaConf writes the representation of a section in a text, without resolving what the section contains.
        in_text = "form a cycle" in str(error) and any("{" in text for text in texts_in(expected))
        if "puts a section into a text" not in str(error) and not in_text:
            raise


@pytest.mark.parametrize(
    "config",
    [
        {"a": "${b}", "b": "${a}", "x": "${a.k}"},
        {"c": "${c.a}"},
        {"a": "${b.a}", "b": "${a.b}"},
        {f"a{i}": f"${{a{i + 1}{'.x' * 200}}}" for i in range(60)},
    ],
    ids=range(4),
)
def test_a_key_of_a_section_that_refers_to_itself_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"references in a chain, .* → |references form a cycle"):
        resolve_references(config)


def texts_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for below in value.values() for text in texts_in(below)]
    return [value] if isinstance(value, str) else []


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.recursive(st.text("${}.a:b\\[]0", max_size=12), st.lists, max_leaves=5)))
def test_any_text_resolves_or_is_a_value_error(config: dict[str, Any]) -> None:
    for mode in ("environment", "keys"):
        with contextlib.suppress(ValueError):
            resolve_references(config, mode=mode)
