from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xr_avocado as xa
from xr_avocado.cube import CubeError, experiments
from xr_avocado.genome import GenomeError
from xr_avocado.index import bins_of
from xr_avocado.io import keras
from xr_avocado.io.keras import SCALES, Expanded, Table

CELLTYPES, ASSAYS = ["E003", "E017", "E065"], ["H3K4me1", "H3K27me3"]
LAYERS = ("celltype", "assay", "genome_25bp", "genome_250bp", "genome_5kbp")
REAL = [("readme_5001", 5001), ("two_layer_2000", 2000)]


def save_model(path: Path, n: int, *, layers: int = 1, seed: int = 0, network_seed: int = 0) -> dict[str, Any]:
    """Save a random model as the published package does (layout of Keras 2.3), with h5py alone; return its arrays."""
    random, shared = np.random.default_rng(seed), np.random.default_rng(network_seed)
    factors = {"celltype": 3, "assay": 2, "genome_25bp": 4, "genome_250bp": 2, "genome_5kbp": 3}
    rows = dict(zip(LAYERS, (len(CELLTYPES), len(ASSAYS), n, n // 10 + 1, n // 200 + 1), strict=True))
    arrays = {
        f"{name}_embedding": [
            (shared if rows[name] < 4 else random).normal(size=(rows[name], factors[name])).astype("f4")
        ]
        for name in ("celltype", "assay")
    }
    arrays |= {
        f"{name}_embedding": [random.normal(size=(rows[name], factors[name])).astype("f4")] for name in LAYERS[2:]
    }
    sizes = [sum(factors.values()), *[5] * layers, 1]
    names = [*(f"dense_{i}" for i in range(layers)), "y_pred"]
    for name, n_in, n_out in zip(names, sizes, sizes[1:], strict=False):
        arrays[name] = [shared.normal(size=(n_in, n_out)).astype("f4"), shared.normal(size=n_out).astype("f4")]
    about = {"celltypes": CELLTYPES, "assays": ASSAYS, "experiments": [["E003", "H3K4me1"], ["E065", "H3K27me3"]]}
    about |= {"n_celltype_factors": 3, "n_assay_factors": 2, "n_genomic_positions": n, "n_25bp_factors": 4}
    about |= {"n_250bp_factors": 2, "n_5kbp_factors": 3, "n_layers": layers, "n_nodes": 5, "batch_size": 7}
    path.with_name(f"{path.name}.json").write_text(json.dumps(about))
    with h5py.File(f"{path}.h5", "w") as file:
        for layer, weights in arrays.items():
            group = file.create_group(f"model_weights/{layer}")
            for kind, values in zip(["embeddings"] if len(weights) == 1 else ["kernel", "bias"], weights, strict=True):
                group[f"{layer}/{kind}"] = values
    return arrays


def predicted(arrays: dict[str, Any], c: int, a: int, n: int) -> np.ndarray:
    """What the published package computes, written out: factors side by side, then each layer."""
    i = np.arange(n)
    of = [np.full(n, c), np.full(n, a), i, i // 10, i // 200]
    hidden = np.concatenate(
        [arrays[f"{name}_embedding"][0][rows] for name, rows in zip(LAYERS, of, strict=True)], axis=1
    )
    names = [name for name in arrays if name.startswith("dense")]
    for name in names:
        kernel, bias = arrays[name]
        hidden = np.maximum(hidden.astype(np.float64) @ kernel + bias, 0)
    return (hidden @ arrays["y_pred"][0] + arrays["y_pred"][1])[:, 0]


def track(ds: xr.Dataset, celltype: str, assay: str) -> np.ndarray:
    return ds.avocado.impute(celltype, assay).imputed.sel(celltype=celltype, assay=assay).values


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(tmp_path / "avocado-chr1", 450)
    return tmp_path / "avocado-chr1"


def edited(model: Path, **changes: Any) -> Path:
    """Change entries of a model's json; None takes one out."""
    file = Path(f"{model}.json")
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return model


# --- what the published package predicted -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), REAL)
@pytest.mark.parametrize("where", ["chromosome", "regions"])
def test_predictions_of_published_models_are_the_package_s_own(shared, name, n, where):
    # These regions start off the grid of 250 bp and 5 kbp, and the second lies on another chromosome.
    first = 1234
    regions = [("chr1", 151_158_025, 151_158_025 + 25 * first), ("chr2", 51_658_675, 51_658_675 + 25 * (n - first))]
    on = {"chrom": "chr21"} if where == "chromosome" else {"regions": regions}
    cube = xa.read_keras(shared / "data" / "keras" / name, genome="hg19", **on)
    assert cube.sizes["position"] == n
    for celltype, assay in [("E065", "H3K4me1"), ("E116", "H3K9me3")]:
        theirs = np.load(shared / "data" / "keras" / f"{name}.{celltype}.{assay}.npy")
        np.testing.assert_allclose(track(cube, celltype, assay), theirs, rtol=0, atol=1e-5)
        inside = cube.avocado.impute().isel(position=slice(600, 1400)).imputed.sel(celltype=celltype, assay=assay)
        np.testing.assert_allclose(inside.values, theirs[600:1400], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "n"), REAL)
def test_genome_factors_of_published_models_are_the_package_s_own(shared, name, n):
    cube = xa.read_keras(shared / "data" / "keras" / name, chrom="chr21")
    head = np.load(shared / "data" / "keras" / f"{name}.genome_embedding_head.npy")
    table = cube.avocado.embed("position", regions=f"chr21:0-{25 * len(head)}", as_="frame")
    np.testing.assert_array_equal(table.iloc[:, 3:].to_numpy(np.float32), head)


@pytest.mark.parametrize(("name", "n"), REAL)
def test_what_is_written_has_the_layout_of_a_published_model(shared, tmp_path, name, n):
    published = shared / "data" / "keras" / name
    xa.read_keras(published, chrom="chr21").avocado.to_keras(tmp_path / "model", progress=False)
    assert json.loads((tmp_path / "model.json").read_text()) == json.loads(Path(f"{published}.json").read_text())
    with h5py.File(f"{published}.h5") as theirs, h5py.File(tmp_path / "model.h5") as ours:
        assert layout(ours) == {k: v for k, v in layout(theirs).items() if not k.startswith("optimizer_weights")}
        for key in layout(ours):
            if isinstance(key and ours.get(key), h5py.Dataset):
                shape = ours[key].shape
                # The package's tables have a row beyond the last position, that no prediction reads.
                scale = {"genome_250bp": 10, "genome_5kbp": 200}.get(key.split("/")[1].removesuffix("_embedding"), 1)
                rows = min(shape[0], -(-n // scale)) if scale > 1 else shape[0]
                np.testing.assert_array_equal(ours[key][:rows], theirs[key][:rows])
        configs = [json.loads(numbered(file.attrs["model_config"])) for file in (ours, theirs)]
        assert configs[0] == configs[1]
        settings = [json.loads(f.attrs["training_config"]) for f in (ours, theirs)]
        assert settings[0].keys() == settings[1].keys()
        assert settings[0]["optimizer_config"]["config"] == pytest.approx(settings[1]["optimizer_config"]["config"])


def numbered(name: str) -> str:
    """Leave out the numbers that Keras gives to layers and models in the order they are made in a session."""
    return re.sub(r"(flatten|concatenate|model)_\d+", r"\1", name)


def layout(file: h5py.File) -> dict[str, Any]:
    """Names, shapes and dtypes of everything in a file, and of every attribute down to how its text is encoded."""
    found = {"": attributes(file)}
    file.visititems(
        lambda name, o: found.update(
            {numbered(name): (getattr(o, "shape", None), getattr(o, "dtype", None), attributes(o))}
        )
    )
    return found


def attributes(o: Any) -> dict[str, Any]:
    ids = {name: o.attrs.get_id(name) for name in o.attrs}
    return {name: (i.shape, i.dtype.kind, getattr(i.get_type(), "get_cset", int)()) for name, i in ids.items()}


# --- generated pairs: the layout without the data -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 9, 10, 200, 401, 450])
@pytest.mark.parametrize("layers", [1, 3])
def test_predictions_are_factors_side_by_side_through_the_layers(tmp_path, n, layers):
    arrays = save_model(tmp_path / "avocado-chr1", n, layers=layers)
    cube = xa.read_keras(tmp_path / "avocado-chr1")
    for c, a in [(0, 0), (2, 1)]:
        np.testing.assert_allclose(
            track(cube, CELLTYPES[c], ASSAYS[a]), predicted(arrays, c, a, n), rtol=1e-5, atol=1e-5
        )


@settings(max_examples=20)
@given(st.data())
def test_regions_anywhere_read_the_array_s_own_coarse_rows(tmp_path_factory, data):
    lengths = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=4))
    starts = data.draw(st.lists(st.integers(0, 1000), min_size=len(lengths), max_size=len(lengths)))
    regions = pd.DataFrame({"chrom": [f"chr{i}" for i in range(len(lengths))], "start": np.array(starts) * 25})
    regions["end"] = regions.start + np.array(lengths) * 25
    path = tmp_path_factory.mktemp("model") / "avocado-pilot"
    arrays = save_model(path, sum(lengths))
    cube = xa.read_keras(path, regions=regions)
    np.testing.assert_allclose(
        track(cube, "E017", "H3K4me1"), predicted(arrays, 1, 0, sum(lengths)), rtol=1e-5, atol=1e-5
    )


def test_what_the_json_says_is_on_the_cube(model):
    cube = xa.read_keras(model, genome={"chr1": 450 * 25 - 7, "chr2": 100})
    assert cube.celltype.values.tolist() == CELLTYPES
    assert cube.assay.values.tolist() == ASSAYS
    assert experiments(cube) == [("E003", "H3K4me1"), ("E065", "H3K27me3")]
    assert cube.attrs["avocado"]["trained_on"] == [["E003", "H3K4me1"], ["E065", "H3K27me3"]]
    assert int(cube.end[-1]) == 450 * 25 - 7
    assert cube.attrs["chromsizes"] == {"chr1": 450 * 25 - 7, "chr2": 100}
    assert cube.avocado.impute(only_missing=True).imputed_tracks.sum() == 4


def test_a_json_of_before_experiments_were_kept_reads_as_well(model):
    assert not xa.read_keras(edited(model, experiments=None)).observed.any()


@pytest.mark.parametrize("suffix", ["", ".json", ".h5"])
def test_either_file_names_the_model(model, suffix):
    assert xa.read_keras(f"{model}{suffix}").sizes["position"] == 450


def test_opening_reads_no_genome_factor_and_looking_reads_only_the_rows(model, monkeypatch):
    read = []
    block = Table.block
    monkeypatch.setattr(Table, "block", lambda self, a, b: read.append((self.layer, a, b)) or block(self, a, b))
    cube = xa.read_keras(model)
    assert not read
    assert cube.genome_factors_25bp[17:20].values.shape == (3, 4)
    assert read == [("genome_25bp_embedding", 17, 20)]


def test_a_model_in_a_store_predicts_the_same(model, tmp_path):
    cube = xa.read_keras(model)
    stored = cube.avocado.to_zarr(tmp_path / "model.zarr", progress=False)
    np.testing.assert_array_equal(track(stored, "E017", "H3K4me1"), track(cube, "E017", "H3K4me1"))


@given(
    index=st.one_of(
        st.slices(45),
        st.lists(st.integers(-45, 44), min_size=1, max_size=9),
        st.integers(-45, 44),
        st.just(np.arange(45) % 3 == 1),
    )
)
def test_lazy_factors_are_indexed_as_arrays_are(tmp_path_factory, index):
    path = tmp_path_factory.getbasetemp() / "indexed-chr1"
    if not Path(f"{path}.h5").exists():
        save_model(path, 45)
    lazy = xa.read_keras(path).genome_factors_25bp
    with h5py.File(f"{path}.h5") as file:
        values = file["model_weights/genome_25bp_embedding/genome_25bp_embedding/embeddings"][...]
    np.testing.assert_array_equal(lazy[index].values, values[index])
    np.testing.assert_array_equal(
        lazy[index, 1:3].values, values[index, ..., 1:3] if np.ndim(index) else values[index][..., 1:3]
    )


def test_lazy_factors_pickle(model):
    cube = pickle.loads(pickle.dumps(xa.read_keras(model)))
    assert cube.genome_factors_250bp.values.shape == (45, 2)


# --- several files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def chromosomes(tmp_path) -> tuple[list[Path], list[dict[str, Any]]]:
    paths = [tmp_path / f"avocado-{chrom}" for chrom in ("chr1", "chr2", "chrX")]
    return paths, [save_model(path, n, seed=i) for i, (path, n) in enumerate(zip(paths, (450, 203, 1), strict=True))]


def test_models_of_several_chromosomes_open_as_one_cube(chromosomes):
    paths, arrays = chromosomes
    cube = xa.read_keras(paths)
    assert bins_of(cube).segments.values.tolist() == [["chr1", 0, 11250], ["chr2", 0, 5075], ["chrX", 0, 25]]
    for path, of, (chrom, n) in zip(paths, arrays, {"chr1": 450, "chr2": 203, "chrX": 1}.items(), strict=True):
        here = track(cube.avocado.sel(chrom), "E065", "H3K27me3")
        np.testing.assert_allclose(here, predicted(of, 2, 1, n), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(here, track(xa.read_keras(path), "E065", "H3K27me3"))


def test_a_chromosome_of_several_is_written_as_a_model_of_its_own(chromosomes, tmp_path):
    paths, arrays = chromosomes
    cube = xa.read_keras(paths)
    cube.avocado.sel("chr2").avocado.to_keras(tmp_path / "again-chr2", progress=False)
    again = track(xa.read_keras(tmp_path / "again-chr2"), "E003", "H3K4me1")
    np.testing.assert_allclose(again, predicted(arrays[1], 0, 0, 203), rtol=1e-5, atol=1e-5)
    with pytest.raises(CubeError, match="first base; cut the cube"):
        cube.avocado.to_keras(tmp_path / "all", progress=False)


def test_files_of_different_models_do_not_open_as_one(tmp_path):
    save_model(tmp_path / "a-chr1", 30)
    save_model(tmp_path / "b-chr2", 30, network_seed=1)
    save_model(tmp_path / "c-chr3", 30, layers=2)
    save_model(tmp_path / "d-chr4", 30)
    edited(tmp_path / "d-chr4", assays=["H3K4me1", "H3K9ac"], experiments=[])
    for other, said in {"b-chr2": "network", "c-chr3": "network", "d-chr4": "assays"}.items():
        with pytest.raises(CubeError, match=f"{said}.*different models: read each on its own"):
            xa.read_keras([tmp_path / "a-chr1", tmp_path / other])


# --- where it lies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"genome": {"chr1": 449 * 25}}, CubeError, "450 positions, but chr1 is 11,225 bp long and has 449 bins"),
        ({"genome": {"chr2": 20_000}}, GenomeError, "chromosome 'chr1' is not here"),
        ({"genome": "hg0"}, GenomeError, "neither a file nor an assembly"),
        ({"chrom": ["chr1", "chr2"]}, CubeError, "got 2 for 1"),
        ({"regions": "chr1:0-11,225"}, CubeError, "449 bins of 25 bp, but the model has 450"),
        ({"regions": "chr1:0-11,250", "chrom": "chr1"}, CubeError, "without chrom="),
        ({"regions": [("chr1", 500, 600), ("chr1", 0, 100)]}, GenomeError, "sort the table"),
    ],
)
def test_a_place_that_the_model_does_not_fill_is_refused(model, options, error, said):
    with pytest.raises(error, match=said):
        xa.read_keras(model, **options)


def test_a_name_without_a_chromosome_asks_for_one(tmp_path):
    save_model(tmp_path / "avocado-pilot", 10)
    with pytest.raises(CubeError, match="'avocado-pilot' does not end with a chromosome: give chrom= .* or regions="):
        xa.read_keras(tmp_path / "avocado-pilot")
    assert xa.read_keras(tmp_path / "avocado-pilot", chrom="pilot").chrom.values[0] == "pilot"


def test_the_same_chromosome_twice_is_refused(model):
    with pytest.raises(CubeError, match="chr1 is there twice"):
        xa.read_keras([model, model])


# --- files not to be trusted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_nodes": 6}, "dense_0 holds 14 x 5 and 5, but the json calls for 14 x 6 and 6"),
        ({"n_genomic_positions": 451}, "genome_25bp_embedding holds 450 x 4, but the json calls for 451 x 4"),
        ({"n_layers": 2}, "has no 'dense_1'"),
        ({"n_layers": 0}, "'n_layers' must be a whole number from 1"),
        ({"n_layers": 10**9}, "'n_layers' must be a whole number from 1"),
        ({"n_5kbp_factors": "3"}, "'n_5kbp_factors' must be a whole number .* it is '3'"),
        ({"n_assay_factors": True}, "'n_assay_factors' must be"),
        ({"n_25bp_factors": None}, "'n_25bp_factors' must be .* it is missing"),
        ({"celltypes": ["E003", "E003", "E065"]}, "names 'E003' twice"),
        (
            {"celltypes": ["E003", "E017"], "experiments": []},
            "celltype_embedding holds 3 x 3, but the json calls for 2 x 3",
        ),
        ({"assays": "H3K4me1"}, "'assays' must be a list of names"),
        ({"assays": []}, "'assays' must be a list of names"),
        ({"experiments": [["E003", "DNase"]]}, "is no pair of this model"),
        ({"experiments": [["E003", ["H3K4me1"]]]}, "is no pair of this model"),
        ({"experiments": {"E003": 1}}, "'experiments' must be a list of pairs"),
    ],
)
def test_a_json_that_is_wrong_says_where(model, changes, said):
    with pytest.raises(CubeError, match=said):
        xa.read_keras(edited(model, **changes))


def test_an_h5_with_more_layers_than_its_json_is_refused(tmp_path):
    save_model(tmp_path / "avocado-chr1", 30, layers=2)
    with pytest.raises(
        CubeError, match="weights of a layer 'dense_1', which its json .1 hidden layers. does not call for"
    ):
        xa.read_keras(edited(tmp_path / "avocado-chr1", n_layers=1))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"celltypes": NaN}', "\xff"])
def test_a_json_that_is_none_is_refused(model, text):
    Path(f"{model}.json").write_text(text, "latin-1")
    with pytest.raises(CubeError, match="avocado-chr1.json"):
        xa.read_keras(model)


def test_a_json_too_large_is_not_read(model):
    with open(f"{model}.json", "r+b") as file:
        file.truncate(keras.LARGEST_JSON + 1)
    with pytest.raises(CubeError, match="bytes long"):
        xa.read_keras(model)


@pytest.mark.parametrize("gone", ["json", "h5"])
def test_one_file_without_the_other_is_refused(model, gone):
    Path(f"{model}.{gone}").unlink()
    with pytest.raises(
        CubeError, match=f"there is no file .*chr1.{gone}: avocado-chr1.* is there, but a model is both"
    ):
        xa.read_keras(model)


def test_an_h5_cut_short_anywhere_is_an_error_that_names_it(model):
    whole = Path(f"{model}.h5").read_bytes()
    for length in [0, 1, 8, 100, *range(512, len(whole), 997), len(whole) - 1]:
        Path(f"{model}.h5").write_bytes(whole[:length])
        with pytest.raises(CubeError, match="avocado-chr1.h5"):
            xa.read_keras(model)


def test_an_h5_that_was_overwritten_after_opening_is_an_error(model, tmp_path):
    cube = xa.read_keras(model)
    save_model(model, 20)
    with pytest.raises(CubeError, match="are of different models"):
        cube.genome_factors_25bp.values  # noqa: B018
    Path(f"{model}.h5").unlink()
    with pytest.raises(CubeError, match="cannot be read"):
        cube.genome_factors_25bp.values  # noqa: B018


LAYER = "model_weights/genome_25bp_embedding"
WEIGHT = f"{LAYER}/genome_25bp_embedding/embeddings"


def external_link(file, folder):
    del file[LAYER]
    file[LAYER] = h5py.ExternalLink(str(folder / "other.h5"), LAYER)


def soft_link(file, folder):
    del file[WEIGHT]
    file[WEIGHT] = h5py.SoftLink("/model_weights/y_pred/y_pred/kernel")


def external_storage(file, folder):
    (folder / "secret").write_bytes(bytes(450 * 4 * 4))
    del file[WEIGHT]
    file.create_dataset(WEIGHT, (450, 4), "f4", external=[(str(folder / "secret"), 0, 450 * 16)])


def virtual(file, folder):
    del file[WEIGHT]
    source = h5py.VirtualLayout((450, 4), "f4")
    source[:] = h5py.VirtualSource(str(folder / "other.h5"), WEIGHT, (450, 4))
    file.create_virtual_dataset(WEIGHT, source)


def compressed(file, folder):
    del file[WEIGHT]
    file.create_dataset(WEIGHT, data=np.zeros((450, 4), "f4"), compression="gzip")


def never_written(file, folder):
    del file[WEIGHT]
    file.create_dataset(WEIGHT, (450, 4), "f4")


def text(file, folder):
    del file[WEIGHT]
    file[WEIGHT] = np.full((450, 4), b"x", "S4")


def objects(file, folder):
    del file[WEIGHT]
    file.create_dataset(WEIGHT, (450, 4), h5py.string_dtype())


def scalar(file, folder):
    del file[WEIGHT]
    file[WEIGHT] = np.float32(1)


def crowd(file, folder):
    for i in range(20):
        file[f"{LAYER}/more{i}"] = np.zeros(2)


def circle(file, folder):
    del file[WEIGHT]
    file[f"{LAYER}/genome_25bp_embedding/again"] = file[LAYER]


def a_type(file, folder):
    del file[LAYER]
    file[LAYER] = np.dtype("f4")


def infinite(file, folder):
    file["model_weights/y_pred/y_pred/bias"][0] = np.inf


def another_layer(file, folder):
    file["model_weights/batch_normalization/gamma"] = np.ones(5, "f4")


def many_layers(file, folder):
    for i in range(1100):
        file.create_group(f"model_weights/more{i}")


def no_weights(file, folder):
    del file["model_weights"]


HOSTILE = {
    external_link: "is a link to .*other.h5', which is not followed",
    soft_link: "is a link to .*kernel', which is not followed",
    external_storage: "from other files, which are not followed",
    virtual: "from other files, which are not followed",
    compressed: "is compressed; undo that with h5repack",
    never_written: "450 x 4, but the file holds 0 of its 7,200 bytes",
    text: "not floating-point numbers",
    objects: "not floating-point numbers",
    scalar: "holds a single value, but the json calls for 450 x 4",
    crowd: "more than its weights",
    circle: "more than its weights",
    a_type: "more than its weights",
    infinite: "bias holds values that are not finite",
    another_layer: "weights of a layer 'batch_normalization', which its json .1 hidden",
    many_layers: "layers, so it is no model",
    no_weights: "has no 'model_weights'",
}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda f: f.__name__)
def test_an_h5_that_leads_astray_is_refused(model, tmp_path, change):
    save_model(tmp_path / "other", 450)
    with h5py.File(f"{model}.h5", "r+") as file:
        change(file, tmp_path)
    with pytest.raises(CubeError, match=HOSTILE[change]):
        xa.read_keras(model)


def test_huge_shapes_are_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "avocado-chr1"
    save_model(path, 450)
    huge = 2**31 - 1
    with h5py.File(f"{path}.h5", "r+") as file:
        for layer, shape in {
            "genome_25bp": (huge, 4),
            "genome_250bp": (huge // 10 + 1, 2),
            "genome_5kbp": (huge // 200 + 1, 3),
        }.items():
            del file[f"model_weights/{layer}_embedding"]
            file.create_dataset(f"model_weights/{layer}_embedding/x/embeddings", shape, "f4")
    assert Path(f"{path}.h5").stat().st_size < 100_000
    with pytest.raises(CubeError, match="the file holds 0 of its 34,359,738,352 bytes"):
        xa.read_keras(edited(path, n_genomic_positions=huge))


def test_many_names_for_one_dataset_do_not_multiply_in_memory(tmp_path):
    path = tmp_path / "avocado-chr1"
    save_model(path, 10, layers=2)
    edited(path, n_layers=90, n_nodes=300)
    names = [*(f"dense_{i}" for i in range(90)), "y_pred"]
    with h5py.File(f"{path}.h5", "r+") as file:
        weights = file["model_weights"]
        for name in ("dense_0", "dense_1", "y_pred"):
            del weights[name]
        for name, shape in {"dense_0": (14, 300), "dense_1": (300, 300), "y_pred": (300, 1)}.items():
            weights[f"{name}/kernel"], weights[f"{name}/bias"] = np.zeros(shape, "f4"), np.zeros(shape[1], "f4")
        for name in names[2:-1]:
            weights[name] = weights["dense_1"]
    with pytest.raises(CubeError, match="network and labels take .* but the file has"):
        xa.read_keras(path)


# --- writing --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> xr.Dataset:
    cube = xa.datasets.simulate(n_celltypes=3, n_assays=3, chromsizes={"chr1": 30_010, "chr2": 20_000})
    return cube.avocado.fit("small", epochs=1, progress=False)


def test_a_fitted_cube_written_and_read_predicts_the_same(fitted, tmp_path):
    here = fitted.avocado.sel("chr1")
    files = here.avocado.to_keras(tmp_path / "avocado-chr1", progress=False)
    assert [path.name for path in files] == ["avocado-chr1.json", "avocado-chr1.h5"]
    again = xa.read_keras(tmp_path / "avocado-chr1", genome=fitted.attrs["chromsizes"])
    for name in ("celltype_factors", "assay_factors", "genome_factors_250bp", "network_weight_0"):
        np.testing.assert_array_equal(again[name], here[name])
    np.testing.assert_allclose(track(again, "C2", "H3K4me1"), track(here, "C2", "H3K4me1"), rtol=0, atol=1e-6)
    assert again.observed.sum() == len(fitted.attrs["avocado"]["trained_on"])


def test_a_few_labels_of_a_model_are_written_with_their_experiments(model, tmp_path):
    cube = xa.read_keras(model).sel(celltype=["E065", "E003"])
    cube.avocado.to_keras(tmp_path / "some-chr1", progress=False)
    about = json.loads((tmp_path / "some-chr1.json").read_text())
    assert about["celltypes"] == ["E065", "E003"]
    np.testing.assert_array_equal(
        track(xa.read_keras(tmp_path / "some-chr1"), "E065", "H3K4me1"), track(cube, "E065", "H3K4me1")
    )


def test_a_model_of_regions_is_written_as_it_was(tmp_path):
    arrays = save_model(tmp_path / "pilot", 450)
    regions = [("chr1", 1025, 1025 + 300 * 25), ("chr2", 50, 50 + 150 * 25)]
    cube = xa.read_keras(tmp_path / "pilot", regions=regions)
    cube.avocado.to_keras(tmp_path / "again", progress=False)
    with h5py.File(tmp_path / "again.h5") as file:
        for layer, scale in zip(LAYERS[2:], SCALES, strict=True):
            rows = -(-450 // scale)
            ours = file[f"model_weights/{layer}_embedding/{layer}_embedding/embeddings"]
            assert ours.shape == arrays[f"{layer}_embedding"][0].shape
            np.testing.assert_array_equal(ours[:rows], arrays[f"{layer}_embedding"][0][:rows])
    with pytest.raises(CubeError, match="part of the regions"):
        cube.isel(position=slice(3, None)).avocado.to_keras(tmp_path / "part", progress=False)


def test_models_that_the_package_cannot_express_are_refused(fitted, simulated, tmp_path):
    with pytest.raises(CubeError, match="not fitted yet"):
        simulated.avocado.to_keras(tmp_path / "x")
    with pytest.raises(CubeError, match="first base"):
        fitted.avocado.sel("chr1:1,000-30,010").avocado.to_keras(tmp_path / "x")
    small = simulated.avocado.sel("chr1:0-20,000").isel(celltype=slice(3), assay=slice(3))
    sizes = {"layers": 1, "nodes": 4, "epochs": 1}
    for change, said in {"average": "average activity", "scales": "this model has 25, 100, 5000"}.items():
        value = (1, 4, 200) if change == "scales" else True
        model = small.avocado.fit("small", config=sizes | {change: value}, progress=False)
        with pytest.raises(CubeError, match=said):
            model.avocado.to_keras(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_replaced_only_when_asked(model):
    cube = xa.read_keras(model)
    before = track(cube, "E017", "H3K4me1")
    with pytest.raises(CubeError, match="overwrite=True"):
        cube.avocado.to_keras(model, progress=False)
    # Onto the very files that its factors are read from.
    cube.avocado.to_keras(model, overwrite=True, progress=False)
    np.testing.assert_array_equal(track(xa.read_keras(model), "E017", "H3K4me1"), before)


def test_a_write_that_fails_leaves_what_was_there(model, monkeypatch):
    cube = xa.read_keras(model)
    before = {path.name: path.read_bytes() for path in model.parent.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(keras, "_write_layer", fail)
    with pytest.raises(OSError, match="disk full"):
        cube.avocado.to_keras(model, overwrite=True, progress=False)
    assert {path.name: path.read_bytes() for path in model.parent.iterdir()} == before


def test_expanded_rows_are_the_rows_of_all_scales(model):
    pair = keras.read_pair(model)
    whole = Expanded(pair.genome)
    fine, middle, coarse = (table.block(0, table.shape[0]) for table in pair.genome)
    i = np.arange(450)
    np.testing.assert_array_equal(whole.block(0, 450), np.hstack([fine, middle[i // 10], coarse[i // 200]]))
    np.testing.assert_array_equal(whole.block(195, 211), whole.block(0, 450)[195:211])
