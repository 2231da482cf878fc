"""The quick tests with the versions that are installed, as a row of a table: versions, passed, skipped, failed.

``python benchmarks/versions.py NAME [TEST ...]``, run by the Python of the environment that is to be tried; ``make test-oldest`` makes one of the
oldest versions that pyproject.toml allows, and calls this. With TESTs given, these files alone.
A test that fails since a dependency is not installed counts as skipped, and a file of tests that is not read for that as one test.
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


def installed() -> tuple[str, list[str]]:
    """Name the versions of Python and of every direct dependency that is there, and those that are not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [
        line for extra in ("distributed", "search", "states") for line in project["optional-dependencies"][extra]
    ]
    names = [match(r"[\w-]+", line)[0] for line in [*project["dependencies"], *optional]]
    found, lacking = [f"Python {platform.python_version()}"], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
            lacking.append(name)
    return ", ".join(found), lacking


def run(tests: list[str], lacking: list[str]) -> dict[str, int]:
    """Run tests and count what they came to."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        call = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *(tests or ["tests"])]
        subprocess.run(call, cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    counts = {"passed": 0, "skipped": 0, "failed": 0}
    for case in cases:
        wrong = [part for part in case if part.tag in ("failure", "error")]
        if any(
            f"No module named '{name}'" in f"{part.get('message')} {part.text}" for part in wrong for name in lacking
        ):
            counts["skipped"] += 1
        elif wrong:
            counts["failed"] += 1
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what these versions are called in the table")
    parser.add_argument("tests", nargs="*", help="files of tests; by default all")
    given = parser.parse_args()
    versions, lacking = installed()
    counts = run(given.tests, lacking)
    print(f"| {given.name} | {versions} | {' | '.join(f'{n:,}' for n in counts.values())} |")
    sys.exit(bool(counts["failed"]))


if __name__ == "__main__":
    main()
