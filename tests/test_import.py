from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "xgboost", "sklearn", "anndata", "pyranges", "bioframe", "matplotlib", "optuna", "h5py", "pooch")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    loaded = run("import sys, xr_avocado; print(*sys.modules)").split()
    assert not [name for name in HEAVY if name in loaded]


def test_import_registers_the_accessor():
    assert run("import xr_avocado, xarray; print(type(xarray.Dataset().avocado).__name__)") == "AvocadoAccessor"


def test_public_names_are_listed_and_load():
    import xr_avocado as xa

    assert {
        "build_cube",
        "open_cube",
        "datasets",
        "evaluate",
        "plot",
        "read_keras",
        "GenomeIndex",
        "GenomeBins",
    } <= set(dir(xa))
    for name in xa.__all__:
        assert getattr(xa, name) is not None
    assert xa.__version__.count(".") == 2


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known():
    import xr_avocado as xa

    with pytest.raises(AttributeError, match="'build'; it has .*build_cube"):
        _ = xa.build


def test_version_is_the_one_installed():
    from importlib.metadata import version

    import xr_avocado as xa

    assert version("xr-avocado") == xa.__version__
