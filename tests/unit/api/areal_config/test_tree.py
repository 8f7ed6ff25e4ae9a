"""Nested mappings addressed by dotted keys."""

from __future__ import annotations

from areal_api.areal_config.tree import Notes, Tree, get, pop, set_in


def test_values_are_read_set_and_removed_by_dotted_keys() -> None:
    tree: Tree = {"a": {"b": 1}}
    set_in(tree, "a.c.d", 2)
    assert (get(tree, "a.c.d"), get(tree, "a.x", 3), get(tree, "a.b.x")) == (2, 3, None)
    assert (pop(tree, "a.b"), pop(tree, "a.b"), pop(tree, "x.y")) == (1, None, None)
    assert tree == {"a": {"c": {"d": 2}}}


def test_notes_are_grouped_by_reason() -> None:
    notes = Notes()
    for key, reason in (("a", "one"), ("b", "two"), ("c", "one")):
        notes.add(key, reason)
    assert notes.lines() == ["a, c: one", "b: two"]
