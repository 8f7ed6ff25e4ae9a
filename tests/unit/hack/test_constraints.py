"""constraints.txt pins what both devices install; `make check` asks the index whether both sets resolve."""

from __future__ import annotations

from hack.constraints import CONSTRAINTS, pins, problems, rendered


def test_names_are_normalised_and_comments_and_markers_are_ignored() -> None:
    text = (
        "# a comment\nTyping_Extensions==4.1\nuvloop==0.22 ; sys_platform != 'win32'\ncuda-toolkit[nvcc,cccl]==13.0\n"
    )
    assert pins(text) == {"typing-extensions": "4.1", "uvloop": "0.22", "cuda-toolkit": "13.0"}


def test_a_package_without_a_pin_is_named_with_its_device() -> None:
    found = problems({"torch": "2"}, {"cpu": {"torch": "2"}, "cuda": {"torch": "2", "tilelang": "0.1"}})
    assert found == ["tilelang==0.1 is installed for DEVICE=cuda but has no pin"]


def test_a_pin_that_neither_device_uses_is_named() -> None:
    assert problems({"torch": "2", "old": "1"}, {"cpu": {"torch": "2"}}) == [
        "old is pinned but neither device installs it"
    ]


def test_the_file_is_what_the_script_writes() -> None:
    text = CONSTRAINTS.read_text()
    assert rendered(pins(text)) == text
