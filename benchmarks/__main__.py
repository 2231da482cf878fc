"""Run every benchmark of this folder, one after the other; ``python -m benchmarks [NAME ...]`` runs those named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    scripts = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem != "__main__"}
    if unknown := [name for name in names if name not in scripts]:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(scripts)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or scripts:
        print(
            f"\n== {name}: {' '.join((scripts[name].read_text().split(chr(34) * 3)[1].splitlines()[0]).split())}",
            flush=True,
        )
        if subprocess.run([sys.executable, str(scripts[name])], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
