"""The journal of a run, and those who follow it."""

from __future__ import annotations

from pathlib import Path

from areal_launcher.core.journal import Journal, JournalReader, journal_file, journal_size
from areal_launcher.errors import RunError
from support.local_runs import RecordingDisplay


def test_a_reader_repeats_what_was_reported_and_how_it_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path, job="7")
    journal.phase("starting")
    journal.phase("starting")
    display, reader = RecordingDisplay(), JournalReader(tmp_path)
    reader.replay(display)
    assert (display.messages, reader.ended) == (["starting"], None)
    journal.message("server-0 ready")
    journal.fail(RunError("no server is left", log=Path("/l"), lines=["a", "b"], status=3))
    reader.replay(display)
    assert display.messages == ["starting", "server-0 ready"]
    assert isinstance(reader.ended, RunError)
    assert (str(reader.ended), reader.ended.lines, reader.ended.status) == ("no server is left", ["a", "b"], 3)


def test_a_new_start_of_the_launcher_takes_back_the_end_of_the_last(tmp_path: Path) -> None:
    Journal(tmp_path).end(143)
    reader = JournalReader(tmp_path)
    reader.replay(RecordingDisplay())
    assert reader.ended == 143
    later = journal_size(tmp_path)
    Journal(tmp_path).end(0)
    reader.replay(RecordingDisplay())
    assert reader.ended == 0
    second, display = JournalReader(tmp_path, offset=later), RecordingDisplay()
    second.replay(display)
    assert second.ended == 0


def test_damaged_lines_are_skipped_and_incomplete_ones_wait(tmp_path: Path) -> None:
    journal_file(tmp_path).write_bytes(b'[1]\n{"message": 3}\n\xff\n{"message": "x"}\n{"mess')
    display, reader = RecordingDisplay(), JournalReader(tmp_path)
    reader.replay(display)
    assert display.messages == ["x"]
    with journal_file(tmp_path).open("ab") as file:
        file.write(b'age": "y"}\n')
    reader.replay(display)
    assert display.messages == ["x", "y"]
