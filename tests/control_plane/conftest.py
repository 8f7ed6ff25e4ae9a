"""Order of the tests on the shared control plane."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that kill the operator last, so that they disturb no others."""
    items.sort(key=lambda item: "restart" in item.path.name)
