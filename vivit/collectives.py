"""What a compiled program sends between devices, read from the text of its HLO."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
COLLECTIVE = re.compile(rf"^ *(?:ROOT )?%?\S+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
SHAPE = re.compile(r"\b([a-z]+\d+[a-z\d]*|pred)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One collective: the devices of a group, and the bytes of its result on each device."""

    kind: str
    group: int
    result_bytes: float

    @property
    def sent_bytes(self) -> float:
        """The bytes that a device must send: what the ring algorithms send, which is the least."""
        others = self.group - 1
        return (
            self.result_bytes
            * {
                "all-reduce": 2 * others / self.group,
                "all-gather": others / self.group,
                "reduce-scatter": others,
                "all-to-all": others / self.group,
                "collective-permute": 1.0,
            }[self.kind]
        )


def sent_by_kind(hlo: str) -> dict[str, dict[str, int | float]]:
    """Returns kind -> {"count", "bytes"}: how often a device runs such collectives in one run of
    the program, and the bytes that it sends.

    hlo: `compiled.as_text()`. The body of a loop counts as often as it runs, if the program says
    how often.
    """
    program = _Program(hlo)
    found: dict[str, dict[str, int | float]] = {}
    for collective, times in program.collectives():
        kind = found.setdefault(collective.kind, {"count": 0, "bytes": 0.0})
        kind["count"] += times
        kind["bytes"] += times * collective.sent_bytes
    return found


class _Program:
    def __init__(self, hlo: str) -> None:
        self.bodies: dict[str, list[str]] = {}
        self.entry, name = "", ""
        for line in hlo.splitlines():
            header = COMPUTATION.match(line)
            if header:
                name = header[1]
                self.bodies[name] = []
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif name:
                self.bodies[name].append(line)
        self.devices = int((re.search(r"num_partitions=(\d+)", hlo) or [0, 1])[1])

    def collectives(self) -> list[tuple[Collective, int]]:
        """Returns the collectives, and how often each runs.

        A TPU's program mentions an asynchronous one where it starts, continues and ends, under one
        chain and channel: it counts once. Channels alone are not unique.
        """
        found_by_key: dict[str, tuple[Collective, int]] = {}
        for name, times in self._times().items():
            for number, line in enumerate(self.bodies[name]):
                match = COLLECTIVE.match(line)
                if match:
                    chain = re.search(r"channel_id=\d+.*chain_id=\"\d+\"", line)
                    key = re.sub(r",.*,", " ", chain[0]) if chain else f"{name} {number}"
                    found = self._read(name, line, match), times
                    found_by_key[key] = max(found_by_key.get(key, found), found, key=lambda x: x[1])
        return list(found_by_key.values())

    def _times(self) -> dict[str, int]:
        """Returns how often each computation that is reached runs."""
        times: dict[str, int] = defaultdict(int)

        def visit(name: str, count: int) -> None:
            times[name] += count
            for line in self.bodies.get(name, ()):
                trips = self._trips(line) if " while(" in line else 1
                branches = [b for listed in BRANCHES.findall(line) for b in listed.split(",")]
                for called in CALLED.findall(line) + [b.strip().strip("%") for b in branches]:
                    if called in self.bodies:
                        visit(called, count * trips)

        visit(self.entry, 1)
        return times

    def _trips(self, line: str) -> int:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", line)
        body = "\n".join(self.bodies.get(condition[1], ())) if condition else ""
        limits = [int(n) for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", body)]
        return max(limits, default=1)

    def _read(self, name: str, line: str, match: re.Match[str]) -> Collective:
        result, kind, start = match.groups()
        group, size = self._group_size(line), _bytes(result)
        if kind == "collective-permute":
            return Collective(kind, 2, size / 2 if start else size)
        if start and kind in ("all-gather", "reduce-scatter"):  # operands and results
            size *= (group if kind == "all-gather" else 1) / (group + 1)
        if kind == "all-reduce" and "all-reduce-scatter" in name:  # a TPU's fused reduce-scatter
            return Collective("reduce-scatter", group, size / group)
        return Collective(kind, group, size)

    def _group_size(self, line: str) -> int:
        listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
        if listed:
            return len(listed[1].split(","))
        iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
        if iota:
            return int(iota[1])
        mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", line)
        if mesh:
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
        return self.devices


def _bytes(shapes: str) -> float:
    """Returns the bytes of all arrays in a type; scalars are bookkeeping and do not count."""
    total = 0.0
    for dtype, dims in SHAPE.findall(shapes):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or [0])[0])
        total += math.prod(int(n) for n in dims.split(",")) * bits / 8 if dims else 0
    return total
