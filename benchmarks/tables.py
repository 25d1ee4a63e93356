# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Writes the results of the benchmarks into the documentation: `make results`.

    python benchmarks/tables.py           # writes tables and pictures
    python benchmarks/tables.py --check   # fails if one is not current

A table stands in a page between `<!-- results: NAME -->` and `<!-- end -->`, with what it was measured by and on below
it; NAME is a file of `benchmarks/results/`. `<!-- value: NAME KEY ROW FORMAT -->…<!-- end -->` is a single figure in a
sentence: column KEY of the row whose first column is ROW. Needs neither torch nor the package.
"""

import argparse
import hashlib
import json
import re
import statistics
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLE = re.compile(r"<!-- results: (?P<name>\S+) -->\n.*?<!-- end -->", re.S)
VALUE = re.compile(r"<!-- value: (?P<name>\S+) (?P<key>\S+) (?P<row>.+?) (?P<format>\S+) -->.*?<!-- end -->", re.S)


def shown(value: Any, kind: str) -> str:
    """A value of a table as text.

    Kinds are `text`, `int`, `percent` (of a fraction; `percent2` with two digits), `ms` (of seconds), `times`, or the
    number of digits behind the point. Of several values, `percent` and digits show the mean with the range, `ms` and
    `times` the median.
    """
    if value is None:
        return ""
    if kind == "text" or isinstance(value, str):
        return str(value)
    if kind == "int":
        return f"{value:,}"
    if kind == "ms":
        return _digits(1000 * (statistics.median(value) if isinstance(value, list) else value))
    if kind == "times":
        return f"{statistics.median(value) if isinstance(value, list) else value:.2f}×"
    factor, decimals = (100, int(kind[7:] or 1)) if kind.startswith("percent") else (1, int(kind))
    values = [factor * v for v in (value if isinstance(value, list) else [value])]
    mean = f"{statistics.mean(values):,.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{decimals}f} to {max(values):,.{decimals}f})"


def _digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(result: dict) -> str:
    """The Markdown table of a result."""
    columns = result["columns"]
    lines = ["| " + " | ".join(title for title, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in result["rows"]:
        lines.append("| " + " | ".join(shown(row.get(key), kind) for key, (_, kind) in columns.items()) + " |")
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", line) for line in lines)


def caption(result: dict) -> str:
    """What was measured, by which version, on what, and the command that measures it."""
    found = result["measured"]
    words = [f"version {found['version']} ({found['commit']})", found["processor"]]
    if "gpu" in found:
        words[-1] = found["gpu"]
    elif found.get("threads"):
        threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
        words.append(f"{threads} of {found['cores']} cores")
    if found.get("instructions"):
        rates = ", ".join(f"{rate:,} GFLOP/s in {name}" for name, rate in found.get("gflops", {}).items())
        words.append(f"{found['instructions']}{f' ({rates})' if rates else ''}")
    if (found.get("load") or 0) > (found.get("threads") or 1) / 2:
        words.append("with other work beside it")
    words += [found[key] for key in ("clock", "dtype") if found.get(key)]
    if found.get("torch"):
        words.append(f"PyTorch {found['torch'].split('+')[0]}")
    seeds = result["seeds"]
    words.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    return f"{result['about']} Measured with {'; '.join(words)}; {found['date']}: `{result['command']}`"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def written(text: str) -> str:
    """A page with its tables and values as the results have them."""

    def whole(match: re.Match) -> str:
        result = read(match["name"])
        return f"<!-- results: {match['name']} -->\n\n{table(result)}\n\n{caption(result)}\n\n<!-- end -->"

    def value(match: re.Match) -> str:
        result = read(match["name"])
        first = next(iter(result["columns"]))
        row = next(r for r in result["rows"] if str(r[first]) == match["row"])
        own = row[match["key"]]
        figure = shown(statistics.mean(own) if isinstance(own, list) else own, match["format"])
        return f"{match[0].split('-->')[0]}-->{figure}<!-- end -->"

    return VALUE.sub(value, TABLE.sub(whole, text))


def digest(name: str) -> str:
    """Of the rows of a result; its pictures carry it, so that an old one is found."""
    return hashlib.sha256(json.dumps(read(name)["rows"], sort_keys=True).encode()).hexdigest()[:16]


SPREAD = {"mean": statistics.mean, "least": min, "most": max}


def picture_labels(path: Path) -> None:
    """Mean IoU over the number of labelled images."""
    from diffuseseg_diffusers.figures.curves import label_curves

    result, curves = read("labels-faces64"), {}
    for method, (title, _) in list(result["columns"].items())[1:]:
        curves[title] = [
            {"labelled_images": row["labels"]} | {k: of(row[method]) for k, of in SPREAD.items()}
            for row in result["rows"]
        ]
    label_curves(curves).savefig(path, metadata={"Source": digest("labels-faces64")})


PICTURES = {"docs/label_efficiency.png": ("labels-faces64", picture_labels)}


def current(path: Path, name: str) -> bool:
    """Whether a picture was drawn of the result as it is."""
    from PIL import Image

    if not path.is_file():
        return False
    with Image.open(path) as image:
        return image.info.get("Source") == digest(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Write nothing; fail where something is not current.")
    args = parser.parse_args()
    old = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            old.append(page.relative_to(ROOT).as_posix())
            if not args.check:
                page.write_text(new, encoding="utf-8")
    for place, (name, draw) in PICTURES.items():
        if not current(ROOT / place, name):
            old.append(place)
            if not args.check:
                draw(ROOT / place)
    print("\n".join(f"{'not current' if args.check else 'written'}: {place}" for place in old) or "All are current.")
    if args.check and old:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
