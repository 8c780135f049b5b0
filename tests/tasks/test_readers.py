"""Reading rows, broken ones included."""

import gzip
import json
import sys
import tracemalloc
import types

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import ConfigError, DataError, MissingExtra
from tamis.tasks import json_rows
from tamis.tasks.readers import Bad, Row, hub_name, locate, read

ROWS = [{"question": "a", "answer": "1"}, {"question": "é\nb", "answer": "2"}, {"question": "c", "answer": None}]


def rows_of(path):
    return [row for source in locate(str(path)) for row in read(source)]


def fields_of(path):
    return [dict(row.fields) for row in rows_of(path)]


def test_every_format_gives_the_same_rows(tmp_path):
    lines = "\n".join(map(json.dumps, ROWS))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "d.json").write_text(lines)
    (tmp_path / "e.csv").write_text('question,answer\na,1\n"é\nb",2\nc,\n', encoding="utf-8")
    (tmp_path / "f.tsv").write_text('question\tanswer\na\t1\n"é\nb"\t2\nc\t\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "g.parquet")
    (tmp_path / "h.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "i.csv.gz").write_bytes(gzip.compress((tmp_path / "e.csv").read_bytes()))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for path in tmp_path.iterdir():
        assert fields_of(path) == ROWS, path.name


def test_rows_say_where_they_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n\n{"q": 2}\n')
    (tmp_path / "b.csv").write_text('q\n"x\ny"\nz\n')
    assert [r.where for r in rows_of(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:3"]
    assert [r.where for r in rows_of(tmp_path / "b.csv")] == ["b.csv:2", "b.csv:4"]


def test_broken_lines_are_told_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    broken = [b'{"q": ', b"[1, 2]", b"\xff\xfe\x00", b"9" * 5000, b'{"q": ' + b"[" * 100_000, b'"text"']
    path.write_bytes(b'\xef\xbb\xbf{"q": 1}\r\n' + b"\r\n".join(broken) + b'\r\n{"q": NaN}\r\n')
    found = rows_of(path)
    assert [r.where for r in found] == [f"a.jsonl:{i}" for i in range(1, 9)]
    assert [type(r) for r in found] == [Row, *[Bad] * 6, Row]
    reasons = [r.reason for r in found if isinstance(r, Bad)]
    assert reasons[0] == "broken JSON"
    assert reasons[1] == reasons[5] == "not an object with named fields"
    assert reasons[2] == "not UTF-8"


def test_broken_csv_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfq;a\r\nx;1\r\ntoo;many;fields\r\n\xff;2\r\n\r\ny;3\r\n")
    found = rows_of(path)
    assert [(type(r), r.where) for r in found] == [
        (Row, "a.csv:2"),
        (Bad, "a.csv:3"),
        (Bad, "a.csv:4"),
        (Row, "a.csv:6"),
    ]
    path.write_text('q,a\n"x"y,1\nz,2\n"open,3\n')
    found = rows_of(path)
    assert [type(r) for r in found] == [Bad, Row, Bad]


def test_a_gzipped_file_with_another_name_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match=r"a.jsonl: the file is gzipped\n.*end in .gz"):
        rows_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.json", b'{"data": [1,\n 2', "a.json:2"),
        ("a.json", b'{"x": [{}], "y": [{}]}', "a.json"),
        ("a.json", b"3", "a.json"),
        ("a.jsonl", "{}".encode("utf-16"), "a.jsonl"),
        ("a.csv", "q,a".encode("utf-16"), "a.csv"),
        ("a.csv", b"q,q\n1,2\n", "a.csv:1"),
        ("a.parquet", b"no parquet", "a.parquet"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz"),
        ("a.jsonl.gz", gzip.compress(b'{"q": 1}\n' * 999)[:-20], "a.jsonl.gz"),
        ("a.json", b"\n\xff", "a.json:2"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, where):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / name)
    assert caught.value.where == where


def test_what_is_not_there(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"Did you mean 'train\.jsonl'"):
        locate(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="is not there either"):
        locate(str(tmp_path / "no" / "train.jsonl"))
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(DataError, match="Known endings"):
        locate(str(tmp_path / "a.xlsx"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data file"):
        locate(str(tmp_path / "empty"))
    assert locate(str(tmp_path / "a.xlsx"), "csv")[0].format == "csv"


def test_folders_with_both_sides_give_the_split(tmp_path):
    for name in ("train-00000.jsonl", "test.jsonl", "notes.txt"):
        (tmp_path / name).write_text('{"q": 1}\n')
    assert [(r.where, r.split) for r in rows_of(tmp_path)] == [
        ("test.jsonl:1", "heldout"),
        ("train-00000.jsonl:1", "train"),
    ]
    (tmp_path / "more.jsonl").write_text('{"q": 1}\n')
    assert {r.split for r in rows_of(tmp_path)} == {""}


def test_saved_dataset_dict_gives_the_split(tmp_path):
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    both.save_to_disk(tmp_path / "saved")
    assert [r.split for r in rows_of(tmp_path / "saved")] == ["train"] * 3 + ["heldout"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.jsonl"

    def peak(n):
        path.write_text((json.dumps({"question": "x" * 1000}) + "\n") * n)
        tracemalloc.start()
        assert sum(1 for _ in read(locate(str(path))[0])) == n
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(5000) < peak(500) + 100_000


def test_hub_names():
    assert hub_name("hub:openai/gsm8k/main@test") == ("openai/gsm8k", "main", "test")
    assert hub_name("hub:org/name") == ("org/name", None, "train")
    for wrong in ("hub:", "hub:name", "hub:a/b/c/d"):
        with pytest.raises(ConfigError, match="hub:org/name"):
            hub_name(wrong)


def test_hub_data_sets(monkeypatch):
    asked = []
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *args, **kwargs: asked.append((args, kwargs)) or iter(ROWS)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert fields_of("hub:org/name/main@test") == ROWS
    assert asked == [(("org/name", "main"), {"split": "test", "streaming": True})]

    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    fake.load_dataset = fail
    with pytest.raises(DataError, match=r"no network[\s\S]*give its path"):
        rows_of("hub:org/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"tamis\[data\]"):
        rows_of("hub:org/name")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", "{"),
        ("state.json", "{}"),
        ("dataset_dict.json", '{"splits": 3}'),
        ("dataset_dict.json", "[]"),
    ],
)
def test_a_damaged_saved_data_set_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        rows_of(tmp_path)


def test_a_name_that_stands_twice_in_a_row_is_not_silently_dropped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "a", "question": "b"}\n{"question": "c"}\n')
    bad, good = rows_of(tmp_path / "a.jsonl")
    assert isinstance(bad, Bad)
    assert "stands twice" in bad.detail
    assert good.fields == {"question": "c"}
    (tmp_path / "a.json").write_text('[{"question": "a", "question": "b"}]')
    with pytest.raises(DataError, match="stands twice"):
        rows_of(tmp_path / "a.json")


def test_links_to_nowhere_and_devices_are_named_and_an_empty_csv_has_no_row(tmp_path):
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match="link to 'nowhere'"):
        locate(str(tmp_path / "link.jsonl"))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        locate("/dev/null")
    (tmp_path / "empty.csv").write_text("")
    assert rows_of(tmp_path / "empty.csv") == []


@given(
    st.lists(st.recursive(st.none() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=4)),
    st.integers(1, 9),
)
def test_an_array_is_read_item_by_item_whatever_its_cuts(tmp_path_factory, values, chunk):
    path = tmp_path_factory.mktemp("a") / "a.json"
    text = json.dumps([{"q": value} for value in values], indent=chunk % 3 or None, ensure_ascii=chunk % 2 == 0)
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_CHUNK", chunk)
        assert fields_of(path) == [{"q": value} for value in values]


def test_memory_does_not_grow_with_an_array(tmp_path):
    path = tmp_path / "a.json"

    def peak(n):
        path.write_text(json.dumps([{"question": "x" * 1000}] * n))
        tracemalloc.start()
        assert sum(1 for _ in read(locate(str(path))[0])) == n
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(10_000) < peak(2000) + 200_000


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'[{"q": 1},\n{"q": }]', 2),
        (b'[{"q": 1}\n{"q": 2}]', 2),
        (b'[{"q": 1},\n', 2),
        (b"[\n\n1] x", 3),
        (b'[{"q": 1},\n\n{"q": 1, "q": 2}]', 3),
    ],
)
def test_a_broken_array_is_told_with_its_line(tmp_path, content, line):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "a.json")
    assert caught.value.where == f"a.json:{line}"


def test_what_is_no_unicode_or_has_no_end_is_told_of_its_row(tmp_path):
    rows = ['{"q": "\\ud800"}', '{"\\ud800": 1}', '{"q": ' + "[" * 200 + "]" * 200 + "}", '{"q": "\\ud83d\\ude00"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "a.json").write_text(f"[{','.join(rows)}]")
    for path in ("a.jsonl", "a.json"):
        *bad, good = rows_of(tmp_path / path)
        assert [b.reason for b in bad] == ["not valid Unicode", "not valid Unicode", "nested too deeply"]
        assert good.fields == {"q": "😀"}


def test_columns_of_the_same_name_and_damaged_compression_are_refused(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["q", "q"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="same name"):
        rows_of(tmp_path / "a.parquet")
    packed = bytearray(gzip.compress(bytes(range(256)) * 40))
    packed[20:60] = b"x" * 40
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(DataError, match="cannot be read as jsonl"):
        rows_of(tmp_path / "a.jsonl.gz")


def test_a_header_may_hold_a_line_break_in_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('c,"a\nb"\n1,2\n')
    assert [(r.where, r.fields) for r in rows_of(tmp_path / "a.csv")] == [("a.csv:3", {"c": "1", "a\nb": "2"})]
