"""Only one process works on the same files."""

import pytest

from apq import ApqError
from apq.lock import Lock


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    monkeypatch.setattr("apq.lock.PATIENCE_S", 0.2)


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_second_one_is_told_and_gets_it_after_the_release(tmp_path, is_folder):
    path = tmp_path / "new" / "thing"
    first, second = (Lock(path, "works on", is_folder) for _ in range(2))
    first.acquire()
    assert path.is_dir() == is_folder
    with pytest.raises(ApqError, match=r"another process works on .*thing: wait for its end"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_held_lets_go_unless_it_was_held_before(tmp_path):
    lock, other = (Lock(tmp_path, "works in", is_folder=True) for _ in range(2))
    with lock.held():
        with lock.held():
            pass
        with pytest.raises(ApqError):
            other.acquire()
    with other.held():
        pass


def test_a_file_that_was_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    path = tmp_path / "log"
    first, second, third = (Lock(path, "writes to") for _ in range(3))
    first.acquire()

    def end_the_first(_):
        path.unlink(missing_ok=True)
        first.release()

    with monkeypatch.context() as patch:
        patch.setattr("apq.lock.time.sleep", end_the_first)  # while the second waits
        second.acquire()
    with pytest.raises(ApqError):  # the second holds the file of this name, not the removed one
        third.acquire()
    second.release()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for is_folder in (True, False):
        with pytest.raises(ApqError, match=r"cannot write .*inside: "):
            Lock(tmp_path / "file" / "inside", "works on", is_folder).acquire()
