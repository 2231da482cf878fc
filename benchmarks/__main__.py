"""Run benchmarks of this folder, one after the other; ``python -m benchmarks [NAME ...] [--json FILE]``.

Without names those that take minutes; ``all`` runs every one. With ``--json`` the figures, their limits, ratios and goals, the device and versions
are written down, of which ``python benchmarks/figures.py FILE`` makes a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
QUICK = ("genome_axis", "files", "ingest", "embed", "engine", "linear_cost", "time_to_quality")


def main() -> int:
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem not in ("__main__", "figures")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=QUICK, metavar="NAME", help=f"all, or of {', '.join(scripts)}")
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    names = list(scripts) if "all" in a.names else list(a.names)
    if unknown := [name for name in names if name not in scripts]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(scripts)}")
    failed, figures = [], {}
    for name in names:
        text = scripts[name].read_text()
        print(f"\n== {name}: {text.split(chr(34) * 3)[1].splitlines()[0]}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.json"
            options = ["--json", str(file)] if a.json and "from figures import" in text else []
            if subprocess.run([sys.executable, str(scripts[name]), *options], check=False).returncode:
                failed.append(name)
            elif file.exists():
                figures |= json.loads(file.read_text())
    if a.json:
        a.json.write_text(json.dumps(figures, indent=1))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
