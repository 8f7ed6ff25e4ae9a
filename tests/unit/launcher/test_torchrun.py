"""torchrun's failure report."""

from __future__ import annotations

from areal_launcher.torchrun import failed_rank_status, strip_report


def test_torchruns_report_is_stripped_and_parsed() -> None:
    lines = [
        "ValueError: no column 'answer'",
        "E1122 13:00:00 99 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: 1) local_rank: 0",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
    ]
    assert strip_report(lines) == ["ValueError: no column 'answer'"]
    assert failed_rank_status(lines) == 1
    assert failed_rank_status([lines[1].replace("exitcode: 1", "exitcode: -9")]) == 137
    assert failed_rank_status(lines[:1]) is None
