"""DMVR's TFRecords as an annotation format: they hold labels and pictures."""

from collections.abc import Sequence
from pathlib import Path

from vivit.data.classes import UNLABELLED, Classes, mirror_names
from vivit.data.dmvr import parse, records
from vivit.data.manifest import raise_all
from vivit.data.video import ClipReadError
from vivit.dataprep.convert import FORMATS, Converted, Entry, read_class_names, split_of


@FORMATS.register("dmvr")
def dmvr(annotations: Sequence[Path], *, videos: str | Path, classes: str = "") -> Converted:
    """DMVR's .tfrecord files are the annotations, and `videos` is the folder that they are in.

    classes: names in the order of the numbers, where the records have only numbers.
    """
    entries, problems, texts, largest = [], [], {}, -1
    root = Path(videos).resolve()
    for path in annotations:
        place = path.resolve()
        if not place.is_relative_to(root):
            raise ValueError(f"{str(path)!r} is not below {str(videos)!r}")
        try:
            for at, data in records(place):
                record = parse(data)
                if len(record.labels) > 1:
                    problems.append(f"{path.name}#{at}: {len(record.labels)} labels, not one")
                label = record.labels[0] if record.labels else UNLABELLED
                largest = max(largest, label)
                texts |= dict(zip(record.labels, record.texts, strict=False))
                name = f"{place.relative_to(root)}#{at}"
                id, split = record.key or name, split_of(path)
                entries.append(Entry((name,), split, {"label": label}, id=id, is_record=True))
        except ClipReadError as error:
            problems.append(f"{path.name}: {error}")
    raise_all("dmvr", problems)
    if classes:
        names = read_class_names(classes)
    else:
        names = [texts.get(i, str(i)) for i in range(largest + 1)]
    return Converted(entries, {"label": Classes(tuple(names), mirror_names(names))})
