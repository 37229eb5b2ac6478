"""The files of `make gpu`: written as they grow, gone on with, merged, and refused if they are others."""

import json

import pytest

from benchmarks.gpu.merge import main as merge_main
from benchmarks.gpu.plan import PARTS
from benchmarks.gpu.sheet import Sheet, merge, read_sheet, render, worst_status

ORIGIN = {"device": "Test GPU", "kind": "cuda", "capability": [9, 0], "time": "2026-01-02T03:04:05Z"}


def row(item, status="ok", **more):
    return {"item": item, "status": status, "reason": None if status == "ok" else "It broke.", **more}


def sheet(folder, *rows, status="ok", part="limits", device="Test GPU"):
    made = Sheet.begin(folder, part, {**ORIGIN, "device": device}, resume=False)
    made.add(rows)
    made.finish(status, None if status == "ok" else "It broke.", 2.0)
    return made


def test_every_row_is_on_the_disk_at_once(tmp_path):
    made = Sheet.begin(tmp_path, "limits", ORIGIN, resume=False)
    assert read_sheet(made.path).status == "running"
    made.add([row("copy", gb_per_s=4.0)])
    assert read_sheet(made.path).rows == [row("copy", gb_per_s=4.0)]
    made.finish("ok", None, 1.26)
    content = json.loads(made.path.read_text())
    assert (content["status"], content["seconds"], content["device"]) == ("ok", 1.3, "Test GPU")
    assert [path.name for path in tmp_path.iterdir()] == ["limits.json"]


def test_going_on_keeps_what_is_done_on_the_same_device_alone(tmp_path):
    sheet(tmp_path, row("a"), row("b", "failed"), row("c", "skipped"))
    again = Sheet.begin(tmp_path, "limits", ORIGIN, resume=True)
    assert [each["item"] for each in again.rows] == ["a"]
    assert again.status == "running"
    assert Sheet.begin(tmp_path, "limits", {**ORIGIN, "device": "Another"}, resume=True).rows == []


def test_a_row_takes_the_place_of_an_earlier_one(tmp_path):
    made = sheet(tmp_path, row("a"), row("b", gb_per_s=1.0))
    made.replace([row("b", gb_per_s=2.0), row("c")])
    assert [(each["item"], each.get("gb_per_s")) for each in read_sheet(made.path).rows] == [
        ("a", None),
        ("b", 2.0),
        ("c", None),
    ]
    assert made.has({"item": "c"})
    assert not made.has({"item": "d"})


def test_merging_prefers_what_is_done_and_then_what_is_new(tmp_path):
    old = sheet(tmp_path / "1", row("a", gb_per_s=1.0), row("b", "failed"), row("c", "failed"))
    new = sheet(
        tmp_path / "2", row("a", "skipped"), row("b", gb_per_s=2.0), row("c", "skipped"), status="killed"
    )
    merged = merge([old, new], tmp_path / "limits.json")
    assert [(each["item"], each["status"]) for each in merged.rows] == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "skipped"),
    ]
    assert (merged.status, merged.content["seconds"]) == ("killed", 4.0)


def test_the_command_merges_folders_and_copies_what_one_alone_has(tmp_path, capsys):
    sheet(tmp_path / "1", row("a"), status="killed")
    sheet(tmp_path / "2", row("b"))
    sheet(tmp_path / "2", row("x"), part="build")
    folders = [str(tmp_path / name) for name in ("1", "2")]
    assert merge_main([*folders, "--output", str(tmp_path / "all")]) == 0
    assert capsys.readouterr().out == "build: ok, 1 rows\nlimits: ok, 2 rows\n"
    assert read_sheet(tmp_path / "all" / "limits.json").has({"item": "a"})


@pytest.mark.parametrize("part", ["limits", "build"])
def test_two_devices_are_not_merged(part, tmp_path, capsys):
    sheet(tmp_path / "1", row("a"), device="One")
    sheet(tmp_path / "2", row("b"), device="Two", part=part)
    folders = [str(tmp_path / name) for name in ("1", "2")]
    with pytest.raises(SystemExit):
        merge_main([*folders, "--output", str(tmp_path / "all")])
    assert "on one device, got" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()


def test_folders_without_a_part_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        merge_main([str(tmp_path), "--output", str(tmp_path / "all")])
    assert "no folder has a file of a part" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}', '{"status": "ok", "rows": [{"status": "odd"}]}'])
def test_a_file_of_something_else_is_refused(text, tmp_path):
    path = tmp_path / "limits.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"limits.json is no sheet of benchmarks.gpu"):
        read_sheet(path)


def test_the_table_shows_numbers_and_gives_reasons_once(tmp_path):
    rows = [row("a", gb_per_s=4321.987), row("b", "failed"), *(row(f"c{n}", "skipped") for n in range(5))]
    text = render(sheet(tmp_path, *rows, status="failed"), PARTS["limits"].columns)
    assert text.splitlines()[0] == "## limits: failed, 2 s: It broke."
    assert "| a | 4322 |  |  |" in text
    assert "- b: failed: It broke." in text
    assert "- c0, c1, c2 and 2 more: skipped: It broke." in text


def test_a_peer_that_breaks_is_no_fault_of_the_run():
    peer = {**row("a", "failed"), "kind": "peer"}
    assert worst_status([peer, row("b")]) == "ok"
    assert worst_status([peer, {**row("b", "wrong"), "kind": "ours"}]) == "failed"


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ([], "ok"),
        (["ok", "skipped"], "ok"),
        (["skipped"], "skipped"),
        (["ok", "wrong"], "failed"),
        (["failed", "ok"], "failed"),
    ],
)
def test_a_part_is_as_good_as_its_rows(statuses, worst):
    assert worst_status(row("a", status) for status in statuses) == worst
