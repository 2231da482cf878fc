"""The tests with the versions that are installed, as a row of the table of versions in docs/trust.md.

    python benchmarks/versions.py NAME [--out docs/trust.md] [-- TEST ...]

Run it by the Python of the environment that is to be tried. ``make test-oldest`` makes one of the oldest versions that pyproject.toml allows.
The quick part of the tests runs, those that are not marked ``slow``; with TESTs given, these files alone.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from re import match
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]


def installed() -> str:
    """Name the versions of Python and of every direct dependency that is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [
        line for extra in ("distributed", "search", "states") for line in project["optional-dependencies"][extra]
    ]
    names = [match(r"[\w-]+", line)[0] for line in [*project["dependencies"], *optional]]
    found = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def run(tests: list[str]) -> dict[str, int]:
    """Run tests and count what they came to."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *(tests or ["tests"])], cwd=ROOT, check=False)
        (suite,) = ElementTree.parse(report).getroot()
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    return {"passed": counts["tests"] - failed - counts["skipped"], "skipped": counts["skipped"], "failed": failed}


def update(page: Path, name: str, row: str) -> None:
    """Put the row of that name into the page's table of versions, in place of the one it has."""
    lines = page.read_text().splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| versions |"))
    end = next(i for i in range(head, len(lines) + 1) if i == len(lines) or not lines[i].startswith("|"))
    rows = [line for line in lines[head + 2 : end] if not line.startswith(f"| {name} |")]
    page.write_text("\n".join([*lines[: head + 2], *rows, row, *lines[end:]]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what these versions are called in the table")
    parser.add_argument("tests", nargs="*", help="files of tests; by default all")
    parser.add_argument("--out", type=Path, help="the page whose table is brought up to date")
    given = parser.parse_args()
    counts = run(given.tests)
    row = f"| {given.name} | {installed()} | {' | '.join(f'{n:,}' for n in counts.values())} |"
    print(row)
    if given.out:
        update(given.out, given.name, row)
    sys.exit(bool(counts["failed"]))


if __name__ == "__main__":
    main()
