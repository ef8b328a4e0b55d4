"""Files that are appended to are read once, in whole lines."""

from campaign.watch.tail import Tail


def test_only_what_came_since_is_read(tmp_path):
    path = tmp_path / "trace"
    tail = Tail(path)
    assert tail.read(100) == (False, [])
    path.write_bytes(b"a\nb\n")
    assert tail.read(100) == (False, [b"a", b"b"])
    with path.open("ab") as file:
        file.write(b"c\n")
    assert tail.read(100) == (False, [b"c"])
    assert tail.read(100) == (False, [])


def test_half_a_line_is_not_there_yet(tmp_path):
    path = tmp_path / "trace"
    tail = Tail(path)
    path.write_bytes(b"a\nhal")
    assert tail.read(100) == (False, [b"a"])
    assert tail.n_left == 0
    with path.open("ab") as file:
        file.write(b"f\n")
    assert tail.read(100) == (False, [b"half"])


def test_a_long_file_is_read_bit_by_bit(tmp_path):
    path = tmp_path / "trace"
    lines = [b"%d" % number * 20 for number in range(30)]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    tail, found, reads = Tail(path), [], 0
    while not found or tail.n_left:
        found += tail.read(100)[1]
        reads += 1
    assert found == lines
    assert reads > 5


def test_a_line_longer_than_is_read_at_once_is_read_whole(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(b"x" * 1000 + b"\nshort\n")
    tail, found = Tail(path), []
    for _ in range(8):
        found += tail.read(100)[1]
    assert found == [b"x" * 1000, b"short"]


def test_another_file_of_the_name_is_read_from_its_start(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(b"a\nb\n")
    tail = Tail(path)
    tail.read(100)
    (tmp_path / "part").write_bytes(b"c\nd\ne\n")
    (tmp_path / "part").replace(path)
    assert tail.read(100) == (True, [b"c", b"d", b"e"])
    path.write_bytes(b"f\n")
    assert tail.read(100) == (True, [b"f"])
    path.unlink()
    assert tail.read(100) == (True, [])
