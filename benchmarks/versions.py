"""The quick tests with the versions that are installed, as a row of a table: versions, passed, skipped, failed.

``python benchmarks/versions.py NAME [TEST ...]``, run by the Python of the environment that is to be tried, e.g. one made of the oldest versions that
pyproject.toml allows: ``uv pip compile --resolution lowest-direct --extra test pyproject.toml``. With TESTs given, these files alone.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what these versions are called in the table")
    parser.add_argument("tests", nargs="*", help="files of tests; by default all")
    given = parser.parse_args()
    counts = run(given.tests)
    row = f"| {given.name} | {installed()} | {' | '.join(f'{n:,}' for n in counts.values())} |"
    print(row)
    sys.exit(bool(counts["failed"]))


if __name__ == "__main__":
    main()
