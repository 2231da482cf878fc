"""Figures of benchmarks as JSON, each beside its limit, and the table that is made of them.

``python benchmarks/figures.py FILE [FILE ...]`` prints what ``--json`` wrote, of ``python -m benchmarks`` or of a single benchmark, as the rows
of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("xr-avocado", "numpy", "torch", "xarray", "zarr", "dask", "pyBigWig")


def about(device: str = "cpu", **more: Any) -> dict[str, Any]:
    """Say where figures were measured."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    versions = {name: torch.__version__ if name == "torch" else _version(name) for name in PACKAGES}
    where = {"device": gpu or device, "machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {**where, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions, **more}


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "not installed"


def row(what: str, figure: float, unit: str, *, limit: str = "", ratio: float | None = None, goal: str = "") -> dict:
    """Give one figure: what was reached, beside what bounds it and the ratio of the two."""
    return {"what": what, "figure": figure, "unit": unit, "limit": limit, "ratio": ratio, "goal": goal}


def write(path: Path | None, name: str, rows: list[dict], about: dict[str, Any]) -> None:
    """Write the figures of one benchmark, where a file is asked for."""
    if path is not None:
        path.write_text(json.dumps({name: {"about": about, "figures": rows}}, indent=1))


def table(results: dict[str, Any]) -> str:
    """Make a Markdown table."""
    lines = ["| what | figure | limit | ratio | goal | command |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        for r in result["figures"]:
            ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
            figure = f"{r['figure']:,.3g}" if abs(r["figure"]) < 1000 else f"{r['figure']:,.0f}"
            cells = (r["what"], f"{figure} {r['unit']}".strip(), r["limit"], ratio, r["goal"], f"`{name}.py`")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _many(loaded: dict[str, Any]) -> bool:
    return all(isinstance(result, dict) and "figures" in result for result in loaded.values())


def _flat(loaded: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: value for name, value in loaded.items() if isinstance(value, float)}
    about = {name: value for name, value in loaded.items() if name not in numbers}
    return {"about": about, "figures": [row(name, value, "") for name, value in numbers.items()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    results: dict[str, Any] = {}
    for path in parser.parse_args().files:
        loaded = json.loads(path.read_text())
        # The GPU set is one level of names and figures.
        results |= loaded if _many(loaded) else {path.stem: _flat(loaded)}
    print(table(results))
    for name, result in results.items():
        print(f"\n{name}: {', '.join(f'{key} {value}' for key, value in result['about'].items())}")


if __name__ == "__main__":
    main()
