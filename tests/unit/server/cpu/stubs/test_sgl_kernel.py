"""The stub of SGLang's compiled kernels."""

from __future__ import annotations

import sys

import pytest

from areal_server.arguments import STUBS_DIR


def test_stub_names_the_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUBS_DIR))
    monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    import sgl_kernel

    with pytest.raises(RuntimeError, match=r"sgl_kernel\.verify_tree_greedy_cpu"):
        sgl_kernel.verify_tree_greedy_cpu()
    monkeypatch.delitem(sys.modules, "sgl_kernel")
