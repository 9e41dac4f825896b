import pyarrow as pa
import pytest
from pyarrow import parquet

from vivit.data.manifest import (
    UNLABELLED,
    Classes,
    ClipRow,
    Manifest,
    count_unlabelled,
    mirror_names,
    read_manifest,
)
from vivit.dataprep.manifest_files import write_manifest

CLIPS = Manifest(
    (
        ClipRow("a/1.mp4", "train", {"verb": 1, "noun": 0}, 0.5, 2.25, "first"),
        ClipRow("a/1.mp4", "train", {"verb": 0, "noun": 1}, 2.25, None, "second", "ab12"),
        ClipRow("b, 2.mp4", "test", {"verb": UNLABELLED, "noun": UNLABELLED}, id="third"),
    ),
    {"verb": Classes(("cut", "wash")), "noun": Classes(("cup", "left hand"), {"left hand": None})},
)


def write(folder, text, classes=None):
    path = folder / "m.csv"
    path.write_text(text)
    if classes:
        (folder / "m.classes.json").write_text(classes)
    return path


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_written_is_read(tmp_path, suffix):
    write_manifest(tmp_path / f"m.{suffix}", CLIPS)
    assert read_manifest(tmp_path / f"m.{suffix}") == CLIPS
    assert not list(tmp_path.glob(".*"))


def test_a_manifest_by_hand_needs_path_split_and_a_label(tmp_path):
    path = write(tmp_path, "path,split,label\nb.mp4,train,run\na.mp4,test,jump\n")
    manifest = read_manifest(path)
    assert manifest.classes["label"].names == ("jump", "run")
    assert [clip.labels["label"] for clip in manifest.clips] == [1, 0]
    assert [clip.id for clip in manifest.clips] == ["b.mp4", "a.mp4"]


def test_numbers_are_class_numbers(tmp_path):
    path = write(tmp_path, "path,split,label\nb.mp4,train,3\na.mp4,test,0\n")
    assert read_manifest(path).classes["label"].names == ("0", "1", "2", "3")


def test_all_mistakes_are_told_at_once_with_their_rows(tmp_path):
    rows = [
        "path,split,start,end,label",
        "a.mp4,train,,,run",
        "b.mp4,train,,,hop",  # 3: unknown name
        "c.mp4,train,,,7",  # 4: out of range
        "d.mp4,train,,,-1",  # 5: negative
        "e.mp4,train,,,0.5",  # 6: no whole number
        ",train,,,run",  # 7: no path
        "f.mp4,,,,run",  # 8: no split
        "g.mp4,train,5,2,run",  # 9: ends before its start
        "h.mp4,train,soon,,run",  # 10: no number
    ]
    classes = '{"label": {"names": ["jump", "run"]}}'
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_manifest(write(tmp_path, "\n".join(rows), classes))
    for line in (
        "row 3: unknown label 'hop' (of 2 classes)",
        "row 4: label 7 is not in 0 .. 1",
        "row 5: label -1 is not in 0 .. 1",
        "row 6: label 0.5 is not a whole number",
        "row 7: no path",
        "row 8: split '' is not a word",
        "row 9: ends at 2 s, before its start at 5 s",
        "row 10: start 'soon' is not a number of seconds",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ((None, None), (None, None), True),
        ((0, 10), (9, 12), True),
        ((0, 10), (10, 12), False),
        ((5, None), (0, 5), False),
    ],
)
def test_splits_may_not_share_video(tmp_path, first, second, shared):
    clips = tuple(
        ClipRow(
            "a.mp4", split, {"label": 0}, *(None if t is None else float(t) for t in times), split
        )
        for split, times in (("train", first), ("test", second))
    )
    write_manifest(tmp_path / "m.csv", Manifest(clips, {"label": Classes(("x",))}))
    if shared:
        with pytest.raises(ValueError, match=r"a.mp4.* is in \w+ and in \w+"):
            read_manifest(tmp_path / "m.csv")
    else:
        read_manifest(tmp_path / "m.csv")


def test_clips_may_have_no_labels(tmp_path):
    manifest = read_manifest(write(tmp_path, "path,split\na.mp4,train\n"))
    assert (manifest.classes, manifest.clips[0].labels) == ({}, {})


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no clip is of split 'validation'; there are: test"):
        CLIPS.split("validation")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows"),
        ("path,label\na.mp4,0\n", "no column 'split'"),
        ("path,split,label\na.mp4,train,x,y\n", "row 2 has more fields"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        read_manifest(write(tmp_path, text))


def test_numbers_as_tables_write_them(tmp_path):
    rows = "".join(f"{i}.mp4,train,{i}.0\n" for i in range(12))
    manifest = read_manifest(write(tmp_path, f"path,split,label\n{rows}"))
    assert [clip.labels["label"] for clip in manifest.clips] == list(range(12))
    for values, told in (
        (("0", "-1"), "row 3: label -1 is not in 0 .. 0"),
        (("0", "run"), "label mixes numbers and names, such as 'run'"),
        (("0", "1700000000"), r"label 1.7e\+09 is not a class number"),
    ):
        rows = "".join(f"{i}.mp4,train,{value}\n" for i, value in enumerate(values))
        with pytest.raises(ValueError, match=told):
            read_manifest(write(tmp_path, f"path,split,label\n{rows}"))


def test_names_by_hand_still_know_their_mirror_images(tmp_path):
    rows = "path,split,label\na.mp4,train,pull left\n"
    names = '{"label": {"names": ["pull left", "pull right"]}}'
    assert read_manifest(write(tmp_path, rows, names)).classes["label"].flip_label() == [1, 0]
    for broken in ('{"label": ["a"]}', "{"):
        with pytest.raises(ValueError, match="m.classes.json must have the form"):
            read_manifest(write(tmp_path, rows, broken))
    for flip in ('{"pull left": "pull right"}', '{"push left": null}'):
        wrong = names.replace("}}", f', "flip": {flip}}}}}')
        with pytest.raises(ValueError, match="must pair classes of label, both ways"):
            read_manifest(write(tmp_path, rows, wrong))


def test_mirror_images_of_classes():
    names = ["turning left", "turning right", "Left hook", "right Hook", "going left", "sit"]
    assert mirror_names(names) == {
        "turning left": "turning right",
        "turning right": "turning left",
        "Left hook": "right Hook",
        "right Hook": "Left hook",
        "going left": None,
    }
    classes = Classes(tuple(names), mirror_names(names))
    assert classes.flip_label() == [1, 0, 3, 2, UNLABELLED, 5]
    assert mirror_names(["clockwise", "anticlockwise"])["clockwise"] == "anticlockwise"
    assert mirror_names(["copyright", "bright"]) == {}


TAGS = Classes(("dog", "barking", "cat"), several=True)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_clip_may_have_several_classes(tmp_path, suffix):
    rows = [("1.mp4", (0, 1)), ("2.mp4", ()), ("3.mp4", (2,))]
    clips = tuple(ClipRow(path, "train", {"tags": tags}, id=path) for path, tags in rows)
    write_manifest(tmp_path / f"m.{suffix}", Manifest(clips, {"tags": TAGS}))
    assert read_manifest(tmp_path / f"m.{suffix}") == Manifest(clips, {"tags": TAGS})
    assert count_unlabelled(clips, {"tags": TAGS}) == {"tags": 0}
    assert count_unlabelled(clips[1:2], {"tags": TAGS}) == {"tags": 1}  # none of them has any


def test_several_classes_by_hand(tmp_path):
    names = '{"tags": {"names": ["dog", "cat"], "several": true}}'
    path = write(tmp_path, "path,split,tags\na,train,cat | dog\nb,train, \nc,train,dog| \n", names)
    assert [clip.labels["tags"] for clip in read_manifest(path).clips] == [(1, 0), (), (0,)]
    with pytest.raises(ValueError, match="row 2: unknown tags 'mouse'"):
        read_manifest(write(tmp_path, "path,split,tags\na,train,mouse|dog\n", names))
    bad = write(tmp_path, "path,split,tags\na,train,\n", names.replace("dog", "a|b"))
    with pytest.raises(ValueError, match=r"tags 'a\|b' has a '\|', which separates"):
        read_manifest(bad)
    table = pa.table({"path": ["a"], "split": ["train"], "kinds": [["x", "y"]]})
    parquet.write_table(table, tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match=r'kinds has lists; .* need "several": true in lists.cl'):
        read_manifest(tmp_path / "lists.parquet")
