"""Reading a run folder whose files were edited: an error that names the file and the field."""

import json
import shutil

import pytest
from fixture import parts, write_run

from tamis.errors import StoreError
from tamis.report.html import write_report
from tamis.report.tables import print_dropped, print_result

EDITS = [
    ("manifest.json", ("machine",), [], "machine is not a mapping"),
    ("manifest.json", ("created",), 5, "created is not text"),
    ("manifest.json", ("stages", 1, "cost"), 5, "stages[1].cost is not a mapping"),
    ("manifest.json", ("stages", 1, "cost"), {"sampled_tokens": "x"}, "stages[1].cost.sampled_tokens is not a number"),
    ("manifest.json", ("stages", 1, "seconds"), float("nan"), "stages[1].seconds is not a number"),
    ("manifest.json", ("stages", 1, "seconds"), True, "stages[1].seconds is not a number"),
    ("manifest.json", ("stages", 1, "folder"), "../x", "stages[1].folder is not a name"),
    ("manifest.json", ("stages", 0), 3, "stages[0] is not a mapping"),
    ("metrics.json", ("rows",), [5], "rows[0] is not a mapping"),
    ("metrics.json", ("rows", 0, "before"), 3, "rows[0].before is not a mapping"),
    ("metrics.json", ("rows", 0, "before"), {}, "rows[0].before.value is missing"),
    ("metrics.json", ("rows", 0, "difference"), {"value": "x"}, "is"),
    ("metrics.json", ("rows", 0, "after", "low"), 10**400, "rows[0].after.low is not a number or null"),
]


@pytest.mark.parametrize(("name", "at", "value", "said"), EDITS)
def test_an_edited_field_is_named(tmp_path, name, at, value, said):
    run = write_run(tmp_path / "run", parts())
    path = run.path / name
    found = place = json.loads(path.read_text())
    for part in at[:-1]:
        place = place[part]
    place[at[-1]] = value
    path.write_text(json.dumps(found))
    for read in (write_report, print_result):
        if read is write_report or name == "metrics.json":
            with pytest.raises(StoreError) as error:
                read(run)
            assert said in error.value.message
            assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["task", "sample", "judge", "compose"])
def test_a_report_is_not_written_over_where_records_are_gone(tmp_path, kind):
    run = write_run(tmp_path / "run", parts())
    path = write_report(run)
    before = path.read_bytes()
    shutil.rmtree(run.stages(kind)[0].path)
    with pytest.raises(StoreError, match="what this stage made is gone"):
        write_report(run)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("row", "said"), [({"record": "x"}, "line 1.reason is missing"), (5, "line 1 is not a mapping")]
)
def test_a_row_of_what_was_dropped_without_its_reason_is_named(tmp_path, row, said):
    run = write_run(tmp_path / "run", parts())
    path = run.stages("sample")[0].path / "rejected.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(StoreError) as error:
        print_dropped(run, 3)
    assert said in error.value.message
    assert str(path) in str(error.value)
