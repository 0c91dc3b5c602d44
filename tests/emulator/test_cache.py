import multiprocessing
import os
import signal
import time

import pytest

from cloister.emulator.cache import Cache, cache_folder, check_owner, digest_of_folder, locked
from cloister.errors import EnclaveUnavailable, UserError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", lambda _: None)


def test_made_once(cache):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "file").write_text("whole")

    first = cache.made("thing", [1, "a"], make)
    assert cache.made("thing", [1, "a"], make) == first
    assert (first / "file").read_text() == "whole"
    assert len(made) == 1


def test_other_inputs_other_folder(cache):
    folders = {cache.made("thing", inputs, lambda _: None) for inputs in ([1], [2], ["1"], [[1]], {"a": 1})}
    assert len(folders) == 5


def test_a_failure_leaves_nothing(cache):
    def make(folder):
        (folder / "file").write_text("half")
        raise EnclaveUnavailable("broken off")

    with pytest.raises(EnclaveUnavailable, match="broken off"):
        cache.made("thing", [], make)
    assert [path.name for path in cache.root.iterdir()] == ["lock"]


def test_no_room_is_named(cache):
    def make(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(EnclaveUnavailable, match="No space left") as caught:
        cache.made("thing", [], make)
    assert "CLOISTER_CACHE" in caught.value.hint


def test_anew_replaces(cache):
    cache.made("thing", [], lambda folder: (folder / "old").touch())
    folder = cache.made("thing", [], lambda folder: (folder / "new").touch(), anew=True)
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_anew_that_fails_keeps_what_was_there(cache):
    folder = cache.made("thing", [], lambda folder: (folder / "old").touch())

    def make(_):
        raise EnclaveUnavailable("broken off")

    with pytest.raises(EnclaveUnavailable):
        cache.made("thing", [], make, anew=True)
    assert [path.name for path in folder.iterdir()] == ["old"]


def test_those_used_last_stay(cache):
    other = cache.made("thing-two", [], lambda _: None)
    folders = []
    for n in range(4):
        folders.append(cache.made("thing", [n], lambda _: None))
        cache.made("thing", [0], lambda _: None)  # used between the others
    assert [folder.exists() for folder in folders] == [True, False, False, True]
    cache.made("thing", [4], lambda _: None, keep=1)
    assert not any(folder.exists() for folder in folders)
    assert other.exists()


def killed_in_the_middle(root):
    def make(folder):
        (folder / "file").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    Cache(root, lambda _: None).made("thing", [], make)


def test_a_process_killed_in_the_middle_leaves_nothing_that_is_used(cache):
    process = FORK.Process(target=killed_in_the_middle, args=(cache.root,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not cache.path("thing", []).exists()
    folder = cache.made("thing", [], lambda folder: (folder / "file").write_text("whole"))
    assert (folder / "file").read_text() == "whole"
    assert sorted(path.name for path in cache.root.iterdir()) == ["lock", folder.name]


def slowly(root, results):
    def make(folder):
        time.sleep(0.3)
        (folder / str(os.getpid())).touch()

    waited = []
    folder = Cache(root, waited.append).made("thing", [], make)
    results.put(([path.name for path in folder.iterdir()], waited))


def test_two_at_once_make_it_once(cache):
    results = FORK.Queue()
    processes = [FORK.Process(target=slowly, args=(cache.root, results)) for _ in range(2)]
    for process in processes:
        process.start()
    (one, waited_one), (two, waited_two) = results.get(timeout=20), results.get(timeout=20)
    for process in processes:
        process.join()
    assert one == two
    assert len(one) == 1
    waited = waited_one + waited_two
    assert waited == [f"waiting for process {one[0]}"]


def test_a_lock_is_free_after_its_holder_was_killed(tmp_path):
    def hold():
        with locked(tmp_path / "lock", lambda _: None):
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=hold)
    process.start()
    process.join()
    waited = []
    with locked(tmp_path / "lock", waited.append):
        pass
    assert waited == []


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("CLOISTER_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cloister"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cloister"


def test_a_place_that_cannot_be_used(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="cannot be made") as caught:
        cache_folder()
    assert "CLOISTER_CACHE" in caught.value.hint


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_place_where_others_may_write(monkeypatch, tmp_path, mode):
    tmp_path.chmod(mode)
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"others may write there.* got {mode:04o}") as caught:
        cache_folder()
    assert f"chmod go-w {tmp_path}" in caught.value.hint


def test_a_place_of_another_user(monkeypatch, tmp_path):
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.raises(UserError, match=f"belongs to user {real}; expected {real + 1}"):
        check_owner(tmp_path, "")


def test_what_others_could_write_is_made_so_that_they_cannot(tmp_path):
    before = os.umask(0)
    try:
        Cache(tmp_path / "cache", lambda _: None).made("thing", [], lambda _: None)
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o022 == 0 for path in (tmp_path / "cache").iterdir() if path.is_dir())


def test_a_digest_sees_names_contents_and_where_files_end(tmp_path):
    digests = set()
    for files in ({"a": "xy"}, {"b": "xy"}, {"a": "x", "b": "y"}, {"a": "xz"}, {"d/a": "xy"}):
        folder = tmp_path / str(len(digests))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        digests.add(digest_of_folder(folder))
    assert len(digests) == 5
