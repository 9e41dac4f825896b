"""Every annotation format as it was published, on files of a few bytes."""

import json
import re

import pytest

import vivit.dataprep.class_folders
import vivit.dataprep.dmvr
import vivit.dataprep.published  # noqa: F401
from vivit.data.manifest import UNLABELLED, read_manifest
from vivit.dataprep.__main__ import main
from vivit.dataprep.class_folders import source_of
from vivit.dataprep.convert import FORMATS, convert


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows(manifest, label="label"):
    names = manifest.classes[label].names
    number = lambda clip: clip.labels[label]
    name = lambda clip: None if number(clip) == UNLABELLED else names[number(clip)]
    return {clip.path: (clip.split, name(clip), clip.start, clip.end) for clip in manifest.clips}


def run(tmp_path, format, annotations, **options):
    manifest, missing = convert(format, tmp_path / "v", annotations, tmp_path / "m.csv", **options)
    assert read_manifest(tmp_path / "m.csv") == manifest
    assert (tmp_path / "m.missing.txt").read_text().split() == missing
    return manifest, missing


KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
tap dancing,---0dWlqevI,19,29,train,0
abseiling,--3ouPhoy2A,20,30,train,0
tap dancing,-gone-,1,11,train,0
"""


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        (["---0dWlqevI_000019_000029.mp4", "--3ouPhoy2A_000020_000030.mp4"], True),
        (
            [
                "train/tap dancing/---0dWlqevI_000019_000029.mp4",
                "train/abseiling/--3ouPhoy2A_000020_000030.mkv",
            ],
            True,
        ),
        (["tap_dancing/---0dWlqevI.mp4", "abseiling/--3ouPhoy2A.webm"], False),
    ],
)
def test_kinetics(tmp_path, files, whole):
    touch(tmp_path / "v", *files)
    train = write(tmp_path / "kinetics-400_train.csv", KINETICS)
    manifest, missing = run(tmp_path, "kinetics", [train])
    times = [(None, None), (None, None)] if whole else [(19, 29), (20, 30)]
    assert rows(manifest) == {
        files[0]: ("train", "tap dancing", *times[0]),
        files[1]: ("train", "abseiling", *times[1]),
    }
    assert missing == ["-gone-_000001_000011"]
    assert manifest.classes["label"].names == ("abseiling", "tap dancing")


def test_kinetics_test_files_without_labels(tmp_path):
    touch(tmp_path / "v", "a_000001_000011.mp4", "b_000001_000011.mp4")
    val = write(
        tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split\nrun,a,1,11,val\n"
    )
    test = write(tmp_path / "test.csv", "youtube_id,time_start,time_end\nb,1,11\n")
    manifest, _ = run(tmp_path, "kinetics", [val, test])
    assert rows(manifest) == {
        "a_000001_000011.mp4": ("validation", "run", None, None),
        "b_000001_000011.mp4": ("test", None, None, None),
    }


def test_the_same_video_in_two_folders_is_that_of_its_split(tmp_path):
    touch(tmp_path / "v", "train/a_000001_000011.mp4", "val/a_000001_000011.mp4")
    text = "label,youtube_id,time_start,time_end,split\nrun,a,1,11,{}\n"
    for split, folder in (("validate", "val"), ("train", "train")):
        path = write(tmp_path / "x.csv", text.format(split))
        manifest, _ = run(tmp_path, "kinetics", [path])
        assert manifest.clips[0].path == f"{folder}/a_000001_000011.mp4"


def test_path_lists(tmp_path):
    touch(tmp_path / "v", "run/a b.mp4", "jump/c.mp4", "jump/d.mp4")
    train = write(tmp_path / "train.csv", "/old/disk/run/a b.mp4 1\n/old/disk/jump/c.mp4 0\n")
    val = write(tmp_path / "val_list.txt", "jump/d.mp4,0\n")
    manifest, _ = run(tmp_path, "list", [train, val])
    assert rows(manifest) == {
        "run/a b.mp4": ("train", "1", None, None),
        "jump/c.mp4": ("train", "0", None, None),
        "jump/d.mp4": ("validation", "0", None, None),
    }
    with pytest.raises(ValueError, match="train.csv line 2: 'nothing' is not a path and class"):
        run(tmp_path, "list", [write(tmp_path / "train.csv", "run/a b.mp4 1\nnothing\n")])
    names = write(tmp_path / "names.txt", "jump\n")
    with pytest.raises(ValueError, match="class number 1 is not in 0 .. 0"):
        run(
            tmp_path,
            "list",
            [write(tmp_path / "train.csv", "run/a b.mp4 1\n")],
            classes=str(names),
        )


def test_a_missing_file_is_not_that_of_another_class(tmp_path):
    touch(tmp_path / "v", "B/0001.mp4", "aBC.mp4")
    train = write(tmp_path / "train.csv", "train/A/0001.mp4 0\ntrain/B/0001.mp4 1\n")
    manifest, missing = run(tmp_path, "list", [train])
    assert rows(manifest) == {"B/0001.mp4": ("train", "1", None, None)}
    assert missing == ["train/A/0001.mp4"]
    other = write(tmp_path / "train.csv", "Abc.mp4 0\naBC.mp4 1\n")
    manifest, missing = run(tmp_path, "list", [other])
    assert missing == ["Abc.mp4"]


def test_something_something(tmp_path):
    touch(tmp_path / "v", "1.webm", "2.webm", "3.webm", "4.webm")
    labels = {
        "Holding something": "0",
        "Pushing something from left to right": "1",
        "Pushing something from right to left": "2",
    }
    names = write(tmp_path / "something-something-v2-labels.json", json.dumps(labels))
    train = write(
        tmp_path / "something-something-v2-train.json",
        json.dumps(
            [
                {"id": "1", "label": "holding a cup", "template": "Holding [something]"},
                {
                    "id": "2",
                    "label": "pushing a pen",
                    "template": "Pushing [something] from left to right",
                },
            ]
        ),
    )
    val = write(
        tmp_path / "something-something-v2-validation.json",
        json.dumps([{"id": 3, "template": "Pushing something from right to left"}]),
    )
    test = write(tmp_path / "something-something-v2-test.json", json.dumps([{"id": "4"}]))
    manifest, _ = run(tmp_path, "something", [train, val, test], classes=str(names))
    assert rows(manifest) == {
        "1.webm": ("train", "Holding something", None, None),
        "2.webm": ("train", "Pushing something from left to right", None, None),
        "3.webm": ("validation", "Pushing something from right to left", None, None),
        "4.webm": ("test", None, None, None),
    }
    assert manifest.classes["label"].flip_label() == [0, 2, 1]
    answers = write(tmp_path / "test-answers.csv", "4;Holding something\n")
    manifest, _ = run(tmp_path, "something", [test, answers], classes=str(names))
    assert rows(manifest)["4.webm"][1] == "Holding something"
    bad = write(tmp_path / "train.json", json.dumps([{"id": "1", "template": "Eating [it]"}]))
    with pytest.raises(ValueError, match=r"train.json entry 1 \(1\): unknown template 'eating it'"):
        run(tmp_path, "something", [bad], classes=str(names))


def test_ucf101(tmp_path):
    files = ["HandstandPushups/v_HandStandPushups_g01_c01.avi", "Archery/v_Archery_g08_c01.avi"]
    touch(tmp_path / "v", *files)
    names = write(tmp_path / "classInd.txt", "1 Archery\n2 HandstandPushups\n")
    train = write(tmp_path / "trainlist01.txt", f"{files[1]} 1\n")
    test = write(tmp_path / "testlist01.txt", "HandStandPushups/v_HandStandPushups_g01_c01.avi\n")
    manifest, _ = run(tmp_path, "ucf101", [train, test], classes=str(names))
    assert rows(manifest) == {
        files[1]: ("train", "Archery", None, None),
        files[0]: ("test", "HandstandPushups", None, None),
    }
    assert [clip.labels["label"] for clip in manifest.clips] == [0, 1]
    wrong = write(tmp_path / "trainlist02.txt", f"{files[1]} 2\n")
    with pytest.raises(ValueError, match="line 1: Archery is 1, not 2"):
        run(tmp_path, "ucf101", [wrong], classes=str(names))


def test_hmdb51(tmp_path):
    touch(tmp_path / "v", "clap/#a(1)_clap_u.avi", "clap/b.avi", "clap/c.avi", "sit/d.avi")
    clap = write(tmp_path / "clap_test_split1.txt", "#a(1)_clap_u.avi 1 \nb.avi 2 \nc.avi 0 \n")
    sit = write(tmp_path / "sit_test_split1.txt", "d.avi 1 \n")
    manifest, _ = run(tmp_path, "hmdb51", [clap, sit])
    assert rows(manifest) == {
        "clap/#a(1)_clap_u.avi": ("train", "clap", None, None),
        "clap/b.avi": ("test", "clap", None, None),
        "sit/d.avi": ("train", "sit", None, None),
    }
    other = write(tmp_path / "sit_test_split2.txt", "d.avi 1 \n")
    with pytest.raises(ValueError, match="give the files of one split number"):
        run(tmp_path, "hmdb51", [clap, other])


def test_epic_kitchens(tmp_path):
    touch(tmp_path / "v", "P01/videos/P01_01.MP4")
    verbs = write(tmp_path / "verbs.csv", "id,key,instances,category\n1,put,[],x\n0,take,[],x\n")
    nouns = write(tmp_path / "nouns.csv", "id,key,instances,category\n0,tap,[],x\n1,cup,[],x\n")
    head = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
        "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class\n"
    )
    train = write(
        tmp_path / "EPIC_100_train.csv",
        head + 'P01_01_0,P01,P01_01,x,00:00:00.14,00:01:03.37,8,202,"put, cup",put,1,cup,1\n',
    )
    test = write(
        tmp_path / "EPIC_100_test_timestamps.csv",
        "narration_id,participant_id,video_id,start_timestamp,stop_timestamp\n"
        "P01_01_1,P01,P01_01,01:00:00.00,01:00:02.00\n",
    )
    manifest, _ = run(tmp_path, "epic_kitchens", [train, test], verbs=str(verbs), nouns=str(nouns))
    first, second = manifest.clips
    assert (first.start, first.end, first.id) == (0.14, 63.37, "P01_01_0")
    assert first.path == "P01/videos/P01_01.MP4"
    assert first.labels == {"verb": 1, "noun": 1}
    assert manifest.classes["verb"].names == ("take", "put")
    assert (second.start, second.labels) == (3600, {"verb": UNLABELLED, "noun": UNLABELLED})


def test_diving48(tmp_path):
    touch(tmp_path / "v", "rgb/abc_00001.mp4")
    names = write(tmp_path / "vocab.json", json.dumps([["Back", "15som", "FREE"]] * 1))
    train = write(
        tmp_path / "Diving48_V2_train.json",
        json.dumps([{"vid_name": "abc_00001", "label": 0, "start_frame": 0, "end_frame": 99}]),
    )
    manifest, _ = run(tmp_path, "diving48", [train], classes=str(names))
    assert rows(manifest) == {"rgb/abc_00001.mp4": ("train", "Back_15som_FREE", None, None)}
    bad = write(tmp_path / "V2_test.json", json.dumps([{"vid_name": "abc_00001", "label": 48}]))
    with pytest.raises(ValueError, match="label 48"):
        run(tmp_path, "diving48", [bad])


def test_moments_in_time(tmp_path):
    touch(tmp_path / "v", "training/adult+female/yt-1.mp4", "validation/adult+female/yt-1.mp4")
    names = write(tmp_path / "moments_categories.txt", "clapping,0\nadult+female,1\n")
    train = write(tmp_path / "trainingSet.csv", "adult+female/yt-1.mp4,adult+female,3,0\n")
    val = write(tmp_path / "validationSet.csv", "adult+female/yt-1.mp4,adult+female,3,0\n")
    manifest, _ = run(tmp_path, "moments", [train, val], classes=str(names))
    assert rows(manifest) == {
        "training/adult+female/yt-1.mp4": ("train", "adult+female", None, None),
        "validation/adult+female/yt-1.mp4": ("validation", "adult+female", None, None),
    }


def test_a_folder_of_class_folders(tmp_path):
    touch(tmp_path / "v", *(f"{c}/{i}.mp4" for c in ("run", "jump") for i in range(10)))
    manifest, _ = run(tmp_path, "folder", [])
    splits = [clip.split for clip in manifest.clips]
    assert {s: splits.count(s) for s in splits} == {"train": 16, "validation": 2, "test": 2}
    again, _ = run(tmp_path, "folder", [])
    assert again == manifest
    other, _ = run(tmp_path, "folder", [], holdout="0.3,0.0", seed="1")
    assert [clip.split for clip in other.clips].count("validation") == 6
    touch(tmp_path / "v", "stray.mp4")
    with pytest.raises(ValueError, match=r"move them, or leave them out with --skip:\n  stray.mp4"):
        run(tmp_path, "folder", [])


def test_a_folder_with_splits(tmp_path):
    touch(tmp_path / "v", "train/run/1.mp4", "val/run/2.mp4", "test/jump/3.mp4")
    manifest, _ = run(tmp_path, "folder", [])
    touch(tmp_path / "w", "train/run/1.mp4", "extra/run/2.mp4")
    with pytest.raises(ValueError, match=r"no class folder of a split.*\n  extra/run/2.mp4"):
        convert("folder", tmp_path / "w", [], tmp_path / "other.csv")
    assert rows(manifest) == {
        "test/jump/3.mp4": ("test", "jump", None, None),
        "train/run/1.mp4": ("train", "run", None, None),
        "val/run/2.mp4": ("validation", "run", None, None),
    }


def test_stray_files_are_all_listed_or_skipped(tmp_path, caplog):
    touch(tmp_path / "v", "run/1.mp4", "jump/2.gif", "a.mp4", "b.mov", "notes.txt", "list.txt")
    with pytest.raises(ValueError, match=r"--skip:\n  a.mp4\n  b.mov"):
        run(tmp_path, "folder", [])
    with caplog.at_level("INFO", "vivit"):
        manifest, _ = run(tmp_path, "folder", [], skip=True)
    assert set(rows(manifest)) == {"run/1.mp4", "jump/2.gif"}
    assert "left out 2 other files" in caplog.text
    assert "2 of .txt" in caplog.text
    assert "2 files are in no class folder and are left out" in caplog.text


@pytest.mark.parametrize("ending", ["gif", "ogv", "3gp", "mts"])
def test_videos_of_rarer_endings_are_taken(tmp_path, ending):
    touch(tmp_path / "v", f"run/1.{ending}")
    assert len(run(tmp_path, "folder", [])[0].clips) == 1


def test_a_group_stays_in_one_split(tmp_path):
    films = [f"film{k}" for k in range(12)]
    touch(tmp_path / "v", *(f"{c}/{f}_{i}.mp4" for c in ("run", "jump") for f in films
                            for i in range(3)))  # fmt: skip
    manifest, _ = run(tmp_path, "folder", [], group=r"/([^/]+)_\d+\.", holdout="0.25,0.25")
    splits = {}
    for clip in manifest.clips:
        splits.setdefault(clip.path.split("/")[1].split("_")[0], set()).add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = [clip.split for clip in manifest.clips]
    assert {s: counts.count(s) for s in counts} == {"train": 36, "validation": 18, "test": 18}
    other, _ = run(tmp_path, "folder", [], group=r"/([^/]+)_\d+\.", holdout="0.25,0.25", seed="1")
    assert other != manifest
    # The same by a column of a file.
    lines = [f"{clip.path},{clip.path.split('/')[1].split('_')[0]}" for clip in manifest.clips]
    table = write(tmp_path / "who.csv", "path,person\n" + "\n".join(lines) + "\n")
    assert run(tmp_path, "folder", [table], group="person", holdout="0.25,0.25")[0] == manifest


def test_few_groups_leave_something_to_train_on(tmp_path, caplog):
    touch(tmp_path / "v", *(f"{c}/{c}{f}x_{i}.mp4" for c in ("run", "jump") for f in "ab"
                            for i in range(5)))  # fmt: skip
    manifest, _ = run(tmp_path, "folder", [], group=r"/([^/]+)_\d+\.")
    trained = {clip.path.split("/")[0] for clip in manifest.clips if clip.split == "train"}
    assert trained == {"run", "jump"}
    touch(tmp_path / "w", "train/run/1.mp4", "train/run/2.mp4", "test/jump/2.mp4")
    convert("folder", tmp_path / "w", [], tmp_path / "n.csv")
    assert "no clip of split train is of: jump" in caplog.text


def test_mistakes_with_groups(tmp_path):
    touch(tmp_path / "v", *(f"run/film_{i}.mp4" for i in range(6)))
    with pytest.raises(ValueError, match=r"finds nothing:\n  run/film_0.mp4"):
        run(tmp_path, "folder", [], group="person")
    with pytest.raises(ValueError, match="is not a regular expression"):
        run(tmp_path, "folder", [], group="(")
    with pytest.raises(ValueError, match="1 groups cannot be divided over 3 splits"):
        run(tmp_path, "folder", [], group="film")
    table = write(tmp_path / "who.csv", "path,person\nrun/film_0.mp4,a\n")
    with pytest.raises(ValueError, match=r"paths that have no person:\n  run/film_1.mp4"):
        run(tmp_path, "folder", [table], group="person")
    with pytest.raises(ValueError, match="has no column who"):
        run(tmp_path, "folder", [table], group="who")
    touch(tmp_path / "w", "train/run/1.mp4", "test/run/2.mp4")
    with pytest.raises(ValueError, match="--group has nothing to draw"):
        convert("folder", tmp_path / "w", [], tmp_path / "m.csv", group="run")
    with pytest.raises(ValueError, match="holdout='abc' is not a pair of fractions"):
        run(tmp_path, "folder", [], holdout="abc")
    with pytest.raises(ValueError, match="seed='x' is not a whole number"):
        run(tmp_path, "folder", [], seed="x")


def test_files_of_one_film_in_several_splits_are_warned_of(tmp_path, caplog):
    touch(tmp_path / "v", *(f"{c}/holiday_{c}x_{i}.mp4" for c in ("run", "jump")
                            for i in range(10)))  # fmt: skip
    run(tmp_path, "folder", [])
    assert "2 films seem to have clips in several splits" in caplog.text
    assert "holiday_jumpx: 1 in test, 8 in train, 1 in validation" in caplog.text
    assert "--group REGEX" in caplog.text


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("run/0.mp4", ""),
        ("run/run_01.mp4", ""),  # the class with a number
        ("run/film1_000123_000133.mp4", "film1"),
        ("run/v_Archery_g01_c03.avi", "v_Archery_g01"),
        ("run/holiday (4).mp4", "holiday"),
        ("run/match-clip 12.mp4", "match"),
        ("run/abc.mp4", ""),
    ],
)
def test_sources_by_name(path, source):
    assert source_of(path) == source


@pytest.mark.parametrize(
    ("format", "missing"),
    [
        ("something", "--classes FILE"),
        ("ucf101", "--classes FILE"),
        ("moments", "--classes FILE"),
        ("epic_kitchens", "--verbs FILE and --nouns FILE"),
    ],
)
def test_a_missing_option_is_named(tmp_path, format, missing):
    file = write(tmp_path / "train.csv", "x\n")
    with pytest.raises(ValueError, match=f"{format} needs {missing}"):
        convert(format, tmp_path, [file], tmp_path / "m.csv")


EPIC = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"


@pytest.mark.parametrize(
    ("format", "name", "text", "problems"),
    [
        (
            "kinetics",
            "train.csv",
            "label,youtube_id,time_start,time_end\nrun,a,ten,20\nrun,b,1,2\nrun\n",
            ["train.csv line 2: time_start 'ten' is not a number", "line 4: time_start ''",
             "line 4: no youtube_id"],
        ),
        ("something", "test-answers.csv", "1;a\n2\n", ["test-answers.csv line 2: '2' is not like"]),
        (
            "epic_kitchens",
            "EPIC_100_train.csv",
            EPIC + "P01_01,0:0,00:00:02.00,0,x\nP01_01,00:00:01.00,00:00:02.00,5,0\n",
            [
                "line 2: start_timestamp '0:0' is not a time",
                "line 2: noun_class 'x' is not in 0 .. 0",
                "line 3: verb_class '5' is not in 0 .. 0",
            ],
        ),
        ("moments", "trainingSet.csv", "a.mp4,run\nb.mp4\n", ["trainingSet.csv line 2: 'b.mp4'"]),
        ("hmdb51", "run_test_split1.txt", "a.avi 1\nb.avi\n", ["split1.txt line 2: 'b.avi'"]),
        ("diving48", "Diving48_V2_train.json", '[{"vid_name": "a", "label": "x"}]',
         ["entry 1 \\(a\\): label 'x' is not in 0 .. 47"]),
        ("diving48", "Diving48_train.json", '[{"vid_name": "a"}]', ["entry 1: {'vid_name': 'a'}"]),
    ],
)  # fmt: skip
def test_bad_rows_are_all_named(tmp_path, format, name, text, problems):
    touch(tmp_path / "v", "a.mp4")
    options = {
        "something": {"classes": str(write(tmp_path / "labels.json", '{"a": "0"}'))},
        "moments": {"classes": str(write(tmp_path / "c.txt", "run,0\n"))},
        "epic_kitchens": {
            key: str(write(tmp_path / f"{key}.csv", "id,key\n0,take\n"))
            for key in ("verbs", "nouns")
        },
    }
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        convert(
            format,
            tmp_path / "v",
            [write(tmp_path / name, text)],
            tmp_path / "m.csv",
            **options.get(format, {}),
        )
    for problem in problems:
        assert re.search(problem, str(caught.value)), str(caught.value)


def test_mistakes_of_the_command_line(tmp_path):
    touch(tmp_path / "v", "a.mp4")
    lost = write(
        tmp_path / "train.csv", "label,youtube_id,time_start,time_end,split\nrun,b,1,2,train\n"
    )
    common = ["convert", "kinetics", f"--videos={tmp_path}/v", f"--out={tmp_path}/m.csv"]
    with pytest.raises(ValueError, match="none of the 1 annotated videos is below"):
        main([*common, "--annotations", str(lost)])
    with pytest.raises(ValueError, match="'nothing.csv' does not exist"):
        main([*common, "--annotations", "nothing.csv"])
    with pytest.raises(ValueError, match="kinetics needs --annotations FILE"):
        main(common)
    with pytest.raises(ValueError, match="must end in .csv or .parquet"):
        convert("folder", tmp_path / "v", [], tmp_path / "m.txt")
    with pytest.raises(ValueError, match="neither a manifest .* nor one of: moving_digits"):
        main(["prepare", "clips", str(tmp_path)])
    with pytest.raises(ValueError, match="kinetics takes no option holdout; its options: classes"):
        main([*common, "--holdout=0.1,0.1", "--annotations", str(lost)])
    with pytest.raises(ValueError, match="has no column youtube_id"):
        main([*common, "--annotations", str(write(tmp_path / "train.csv", "a,b\n1,2\n"))])
    unclear = write(tmp_path / "things.txt", "a.mp4 0\n")
    with pytest.raises(ValueError, match=r"'things.txt' says neither train, val nor test"):
        convert("list", tmp_path / "v", [unclear], tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no video files"):
        convert("folder", tmp_path / "empty", [], tmp_path / "m.csv")


def test_every_format_has_a_test_here():
    tested = {"kinetics", "list", "something", "ucf101", "hmdb51", "epic_kitchens", "diving48"}
    assert set(FORMATS) == tested | {"moments", "folder", "dmvr"}  # dmvr: test_tfrecord.py
