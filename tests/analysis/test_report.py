import json
import re
from html.parser import HTMLParser

import numpy as np

from vivit.analysis import open_run
from vivit.analysis.report import main


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


def test_the_report_is_one_file_with_everything(tiny_run, capsys):
    main([f"--workdir={tiny_run}", "--checkpoint=latest"])
    assert str(tiny_run / "report.html") in capsys.readouterr().out
    page = Page()
    page.feed((tiny_run / "report.html").read_text())
    assert all(link.startswith("data:image/") for link in page.links)
    text = " ".join(page.text)
    for part in ("Learning", "Confusion", "Where it looks", "Between time steps"):
        assert part in text
    scores = json.loads((tiny_run / "eval/test_00000006_1x1.json").read_text())
    assert f"{scores['top1']:.2%} of 21 test clips" in text
    # Curves, confusion, three pictures a sample, and the temporal stage.
    samples = len(re.findall("predicted ", text))
    assert samples == 8
    assert len(page.images) == 2 + 3 * samples + 1


def test_an_opened_run_gives_clips_and_their_labels(tiny_run):
    run = open_run(tiny_run, checkpoint="latest")
    assert run.step == 6
    chosen = run.one_of_each_class(8)
    clips, labels = run.clips(chosen)
    assert clips.shape == (8, 16, 32, 32, 3)
    assert sorted(labels) == sorted(np.unique(labels))
    assert len(run.one_of_each_class(12)) == 12
