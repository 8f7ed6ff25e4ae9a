"""A run directory and its copy in a real bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_trainer.storage.bucket import Bucket, BucketError
from areal_trainer.storage.mirror import Mirror, complete_directories, mirrored, restore
from hack.testbed.s3_server import S3Server


def write(run: Path, step: int, text: str = "") -> None:
    """A recovery checkpoint."""
    folder = run / "recover" / f"step{step}"
    (folder / "state").mkdir(parents=True, exist_ok=True)
    (folder / "loop.json").write_text(text or f"loop of {step}")
    (folder / "state" / "shard.safetensors").write_bytes(b"s" * step)


def test_a_checkpoint_comes_back_in_an_empty_run_directory(bucket: Bucket, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, 4)
    (here / "stats.jsonl").write_text("{}\n")
    (here / "checkpoints" / "epoch1step4").mkdir(parents=True)
    (here / "checkpoints" / "epoch1step4" / "config.json").write_text("{}")
    Mirror(here, bucket).sync()
    assert sorted(complete_directories(bucket)) == ["checkpoints/epoch1step4", "recover/step4"]
    assert restore(there, bucket) == "recover/step4"
    assert (there / "recover" / "step4" / "loop.json").read_text() == "loop of 4"
    assert (there / "recover" / "step4" / "state" / "shard.safetensors").read_bytes() == b"ssss"
    assert (there / "stats.jsonl").read_text() == "{}\n"
    assert restore(there, bucket) is None  # it has that checkpoint
    write(there, 6)
    assert restore(there, bucket) is None  # a newer one


def test_the_newest_checkpoints_are_kept(bucket: Bucket, tmp_path: Path) -> None:
    kept = Bucket(bucket.spec.model_copy(update={"keep": 2}), "exp/trial0")
    mirror = Mirror(tmp_path, kept)
    for step in (2, 4, 10):
        write(tmp_path, step)
        mirror.sync()
    assert complete_directories(kept) == ["recover/step10", "recover/step4"]
    assert not [name for name in kept.names_below("recover") if "step2/" in name]


def test_a_rollback_removes_the_collapse_and_replaces_the_checkpoint(bucket: Bucket, tmp_path: Path) -> None:
    kept = Bucket(bucket.spec.model_copy(update={"keep": 3}), "exp/trial0")
    mirror = Mirror(tmp_path, kept)
    for step in (2, 4):
        write(tmp_path, step)
    mirror.sync()
    for path in sorted((tmp_path / "recover" / "step4").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "recover" / "step4").rmdir()
    write(tmp_path, 2, "after the rollback")
    mirror.sync()
    assert complete_directories(kept) == ["recover/step2"]
    assert restore(tmp_path / "other", kept) == "recover/step2"
    assert (tmp_path / "other" / "recover" / "step2" / "loop.json").read_text() == "after the rollback"


def test_an_upload_that_was_cut_off_is_never_restored(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path / "here", 2)
    Mirror(tmp_path / "here", bucket).sync()
    bucket.put_text("a part", "recover/step9/loop.json")  # without a manifest
    assert restore(tmp_path / "there", bucket) == "recover/step2"
    Mirror(tmp_path / "here", bucket).sync()
    assert not [name for name in bucket.names_below("recover") if "step9" in name]


def test_a_restarted_trainer_sends_nothing_again(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, 2)
    Mirror(tmp_path, bucket).sync()
    bucket.delete(["recover/step2/loop.json"])  # would be written again
    again = Mirror(tmp_path, bucket, period_s=3600)
    again.start()
    again.finish()
    assert "recover/step2/loop.json" not in bucket.names_below("recover")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", ""])
def test_a_manifest_that_leads_out_of_the_run_is_refused(bucket: Bucket, tmp_path: Path, name: str) -> None:
    entry = f'{{"files": {{"{name}": {{"size": 1, "xxh3_128": "0"}}}}}}'
    bucket.put_text(entry, "recover/step2.complete.json")
    with pytest.raises(BucketError, match=r"step2\.complete\.json cannot be read"):
        restore(tmp_path / "run", bucket)
    bucket.delete(["recover/step2.complete.json"])


def test_a_damaged_file_is_refused_by_name(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path / "here", 2)
    Mirror(tmp_path / "here", bucket).sync()
    bucket.put_text("loop of X", "recover/step2/loop.json")
    with pytest.raises(BucketError, match=r"recover/step2/loop\.json differs from its manifest"):
        restore(tmp_path / "there", bucket)
    assert not (tmp_path / "there" / "recover" / "step2").exists()


def test_a_server_that_goes_away_and_returns_delays_the_copy(
    bucket: Bucket, s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mirrored(tmp_path, bucket, resumes=True) as mirror:
        assert mirror is not None
        s3.stop()
        write(tmp_path, 2)
        with pytest.raises(OSError, match=r"storage\.bucket: cannot"):
            mirror.sync()
        s3.start()
        mirror.finish()
    assert complete_directories(bucket) == ["recover/step2"]
