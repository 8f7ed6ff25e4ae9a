"""Results fetched from a cluster."""

from __future__ import annotations

from pathlib import Path

from areal_launcher.cluster.fetch_results import extract_files
from areal_launcher.cluster.in_pod import print_files


def test_only_requested_files_are_extracted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "config.yaml").write_text("y")
    assert extract_files(print_files.archive(str(tmp_path), ["secret", "config.yaml"])) == {"config.yaml": b"y"}
