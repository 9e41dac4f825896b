import json
import re
from html.parser import HTMLParser

import numpy as np

from vivit.analysis import open_run
from vivit.analysis.__main__ import main
from vivit.analysis.report import choose_clips, draw_confusion, similar_first, write_report
from vivit.results import read_rows


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs["src"])
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_file_with_everything(tiny_run, capsys):
    main([str(tiny_run), "--checkpoint=latest", "--methods=rollout"])
    assert str(tiny_run / "report_test.html") in capsys.readouterr().out
    page = Page()
    page.feed((tiny_run / "report_test.html").read_text())
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    text = " ".join(page.text)
    for part in ("Evaluations", "Mistakes", "Classes", "Confusion", "Learning", "Config"):
        assert part in text
    scores = json.loads((tiny_run / "eval/test_00000006_1x1.json").read_text())
    for part in (f"{scores['top1']:.2%}", "1x1 views", "checkpoint of step 6", "Split test"):
        assert part in text
    rows = read_rows(tiny_run / "eval/test_00000006_1x1.parquet")
    wrong = [row for row in rows if row["classes"][0] != row["label"]]
    assert f"{len(wrong)} of 21 clips are wrong" in text
    most = max(wrong, key=lambda row: row["probabilities"][0])
    assert text.index(f"record {most['index']} ") == text.index("record ")  # it comes first
    shown = choose_clips(open_run(tiny_run, checkpoint="latest"), rows)
    assert len(shown) == len(set(shown)) == 16
    confident = sorted(wrong, key=lambda row: -row["probabilities"][0])
    assert shown[:8] == [row["index"] for row in confident[:8]]


def test_pages_of_two_splits_stand_next_to_each_other(tiny_run):
    common = {"checkpoint": "latest", "methods": ["rollout"], "clips": [0]}
    paths = [write_report([tiny_run], split=split, **common) for split in ("test", "validation")]
    assert paths[0] != paths[1]
    test, validation = (path.read_text() for path in paths)
    assert "Split test" in test
    assert "Split validation" in validation
    assert "<td>validation</td>" in validation  # all evaluations of the run are listed
    assert "<td>test</td>" in validation


def test_400_classes_are_a_picture_with_the_confused_next_to_each_other():
    rng = np.random.default_rng(0)
    confusion = np.zeros((400, 400), int)
    pairs = rng.permutation(400).reshape(200, 2)  # each class is taken for one other
    for i, j in pairs:
        confusion[i, i] = confusion[j, j] = 6
        confusion[i, j] = confusion[j, i] = 4
    order = similar_first(confusion / 10)
    places = {name: place for place, name in enumerate(order)}
    assert all(abs(places[i] - places[j]) == 1 for i, j in pairs)
    names = [f"class <{i}>" for i in range(400)]
    drawn = draw_confusion(confusion, names)
    assert len(drawn) < 200_000
    data = json.loads(re.search(r"application/json[^>]*>(.*?)</script>", drawn, re.S)[1])
    assert data["head"] == ""
    i, j = pairs[0]
    assert data["counts"][f"{places[i]},{places[j]}"] == 4
    assert data["names"][places[i]] == f"class <{i}>"


def test_an_opened_run_gives_clips_and_their_labels(tiny_run):
    run = open_run(tiny_run, checkpoint="latest")
    assert run.step == 6
    chosen = run.one_of_each_class(8)
    clips, labels = run.clips(chosen)
    assert clips.shape == (8, 16, 32, 32, 3)
    assert sorted(labels) == sorted(np.unique(labels))
    assert len(run.one_of_each_class(12)) == 12
