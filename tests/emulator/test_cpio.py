import io
import stat

from cloister.emulator import cpio


def read(data):
    """An independent reader: path -> (mode, links, bytes)."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, n_links, size, name_size = fields[1], fields[4], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        assert data[at + 110 + name_size - 1] == 0
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert start == len(data)
            return found
        assert fields[2:4] == [0, 0]  # root
        assert fields[5] == 0  # 1970
        found[name] = (mode, n_links, data[start : start + size], fields[0])
        at = (start + size + 3) // 4 * 4


def archive(entries):
    stream = io.BytesIO()
    cpio.write_archive(stream, entries)
    return stream.getvalue()


def test_what_is_written_is_read():
    files = {f"a/b/{'x' * n}": cpio.program(bytes(range(n))) for n in range(1, 9)}
    found = read(archive({**files, "lib/ld": cpio.link("/usr/ld"), "dev": cpio.folder()}))
    assert {name: found[name][2] for name in files} == {name: entry.data for name, entry in files.items()}
    assert all(stat.S_ISREG(found[name][0]) and found[name][0] & 0o111 for name in files)
    assert stat.S_ISLNK(found["lib/ld"][0])
    assert found["lib/ld"][2] == b"/usr/ld"
    assert all(stat.S_ISDIR(found[name][0]) for name in ("a", "a/b", "lib", "dev"))


def test_folders_come_before_what_is_in_them():
    names = list(read(archive({"usr/bin/x": cpio.program(b""), "usr-local/y": cpio.program(b"")})))
    assert names.index("usr") < names.index("usr/bin") < names.index("usr/bin/x")


def test_each_entry_has_a_number_of_its_own():
    found = read(archive({name: cpio.program(b"") for name in "abc"}))
    assert len({number for *_, number in found.values()}) == 3


def test_the_order_of_the_entries_does_not_matter():
    one = {"b": cpio.program(b"1"), "a/c": cpio.program(b"2")}
    assert archive(one) == archive(dict(reversed(one.items())))
