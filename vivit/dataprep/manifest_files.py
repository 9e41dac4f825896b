"""Writes manifests; vivit.data.manifest reads them."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from vivit.data.manifest import COLUMNS, SEPARATOR, UNLABELLED, Manifest, classes_path
from vivit.io import write_json


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Writes CSV, or Parquet for a name that ends so, and the classes in a file next to it."""
    path = Path(path)
    columns = [*COLUMNS, *manifest.classes]
    rows = [
        [c.path, c.start, c.end, c.split, c.id, c.sha256]
        + [
            SEPARATOR.join(classes.names[i] for i in np.ravel(c.labels[k]) if i != UNLABELLED)
            for k, classes in manifest.classes.items()
        ]
        for c in manifest.clips
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if path.suffix == ".parquet":
        arrays = list(zip(*rows, strict=True))
        parquet.write_table(pa.table(dict(zip(columns, map(list, arrays), strict=True))), part)
    else:
        with open(part, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(["" if x is None else x for x in row] for row in rows)
    values = {k: v.described() for k, v in manifest.classes.items()}
    write_json(classes_path(path), values)
    part.replace(path)
