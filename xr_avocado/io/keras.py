"""Files of the published package: sizes and labels in json beside weights in h5, read without Keras, and written for it."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from xr_avocado.cube import CubeError
from xr_avocado.io.atomic import local_path, replacing
from xr_avocado.io.lock import only_one

if TYPE_CHECKING:
    import h5py

__all__ = ["BINSIZE", "SCALES", "Expanded", "Header", "Pair", "Rows", "Table", "pair_paths", "read_pair", "write_pair"]

BINSIZE = 25
SCALES = (1, 10, 200)
"""Positions that share a row of each genome table: row i, i // 10 and i // 200 of the whole array."""
CELLTYPE_LAYER, ASSAY_LAYER = "celltype_embedding", "assay_embedding"
GENOME_LAYERS = ("genome_25bp_embedding", "genome_250bp_embedding", "genome_5kbp_embedding")
INPUTS = ("celltype_input", "assay_input", "genome_25bp_input", "genome_250bp_input", "genome_5kbp_input")
WEIGHTS, ARCHITECTURE = "model_weights", "model_config"

LARGEST_JSON = 1 << 24
"""Bytes of a json, at most; the largest published one has about 300,000."""
LARGEST_NETWORK = 1 << 31
"""Bytes of a network and its labels' factors, at most; the published ones have about 20 million."""
MOST_LAYERS, MOST_GROUPS = 100, 1000
STEP = 4096 * SCALES[-1]
"""Rows of a genome table that are written at a time."""


@dataclass(frozen=True)
class Header:
    """What the json says: labels, the experiments trained on, and every size of the model."""

    celltypes: tuple[str, ...]
    assays: tuple[str, ...]
    experiments: tuple[tuple[str, str], ...]
    n_celltype_factors: int
    n_assay_factors: int
    n_genomic_positions: int
    n_25bp_factors: int
    n_250bp_factors: int
    n_5kbp_factors: int
    n_layers: int
    n_nodes: int
    batch_size: int

    @classmethod
    def from_json(cls, values: Any, path: Path) -> Header:
        """Check what a json holds; keys that are not known are passed over."""
        if not isinstance(values, dict):
            raise CubeError(f"{path} holds no model of the published package: it is a JSON {type(values).__name__}")
        labels = {name: _labels(values.get(name), name, path) for name in ("celltypes", "assays")}
        pairs = _experiments(values.get("experiments", []), labels, path)
        sizes = {name: _size(values.get(name), name, path) for name in cls.__annotations__ if name.startswith("n_")}
        batch = _size(values.get("batch_size", 40_000), "batch_size", path)
        return cls(labels["celltypes"], labels["assays"], pairs, **sizes, batch_size=batch)

    def to_json(self) -> str:
        """Write the json as the published package does."""
        return json.dumps(vars(self), separators=(",", " : "), indent=4)

    @property
    def genome_factors(self) -> tuple[int, int, int]:
        """Length of the vector of each scale."""
        return self.n_25bp_factors, self.n_250bp_factors, self.n_5kbp_factors

    @property
    def dense(self) -> tuple[str, ...]:
        """Names of the dense layers, first to last."""
        return (*(f"dense_{i}" for i in range(self.n_layers)), "y_pred")

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Shapes of each layer's weights: one for a table of factors, kernel and bias for a dense layer."""
        n = self.n_genomic_positions
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {
            CELLTYPE_LAYER: ((len(self.celltypes), self.n_celltype_factors),),
            ASSAY_LAYER: ((len(self.assays), self.n_assay_factors),),
        }
        for layer, scale, factors in zip(GENOME_LAYERS, SCALES, self.genome_factors, strict=True):
            shapes[layer] = ((n if scale == 1 else n // scale + 1, factors),)
        sizes = [self.n_celltype_factors + self.n_assay_factors + sum(self.genome_factors)]
        sizes += [self.n_nodes] * self.n_layers + [1]
        for layer, n_in, n_out in zip(self.dense, sizes, sizes[1:], strict=False):
            shapes[layer] = ((n_in, n_out), (n_out,))
        return shapes


class Rows(ABC):
    """A table of factors (bins x factors, float32) that is read where it is indexed; what dask makes its array from."""

    dtype = np.dtype(np.float32)
    ndim = 2
    shape: tuple[int, int]

    @abstractmethod
    def block(self, first: int, last: int) -> np.ndarray:
        """Read a run of rows."""

    def __getitem__(self, index: tuple[Any, Any]) -> np.ndarray:
        rows, columns = index
        n = self.shape[0]
        picked = np.arange(*rows.indices(n)) if isinstance(rows, slice) else np.asarray(rows, np.int64) % n
        if not picked.size:
            return np.empty((0, self.shape[1]), self.dtype)[:, columns]
        first = int(picked.min())
        return self.block(first, int(picked.max()) + 1)[picked - first][..., columns]


class Table(Rows):
    """A table of genome factors in an h5 file, which is opened for each read, so that it pickles and holds nothing."""

    def __init__(self, path: Path, layer: str, stored: tuple[int, ...], rows: int) -> None:
        self.path, self.layer, self.stored = path, layer, stored
        self.shape = (rows, stored[1])

    def block(self, first: int, last: int) -> np.ndarray:
        """Read a run of rows."""
        with _opened(self.path) as file:
            (dataset,) = _weights_of(file, self.layer, (self.stored,), self.path)
            return np.asarray(dataset[first:last], np.float32)


class Expanded(Rows):
    """Tables of all scales side by side at the finest: row i is row i, i // 10 and i // 200 of theirs."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tuple(tables)
        self.shape = (tables[0].shape[0], sum(table.shape[1] for table in tables))

    def block(self, first: int, last: int) -> np.ndarray:
        """Read a run of rows, and of the coarser tables what they lie in."""
        rows = np.arange(first, last)
        parts = []
        for table, scale in zip(self.tables, SCALES, strict=True):
            held = table.block(first // scale, (last - 1) // scale + 1)
            parts.append(held[rows // scale - first // scale])
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Pair:
    """A model as its two files have it: the network and the labels' factors in memory, the genome's in the file."""

    path: Path
    header: Header
    celltype_factors: np.ndarray
    assay_factors: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    @cached_property
    def genome(self) -> tuple[Table, ...]:
        """Genome factors of each scale; the row that the package adds beyond the last position is left out."""
        n, shapes = self.header.n_genomic_positions, self.header.shapes
        return tuple(
            Table(self.path, layer, shapes[layer][0], -(-n // scale))
            for layer, scale in zip(GENOME_LAYERS, SCALES, strict=True)
        )


def pair_paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Name the two files of a model, from what they have in common or from either of them."""
    name = str(local_path(path, "a model is read from or"))
    stem = name.removesuffix(".json") if name.endswith(".json") else name.removesuffix(".h5")
    return Path(f"{stem}.json"), Path(f"{stem}.h5")


def read_pair(path: str | os.PathLike[str]) -> Pair:
    """Read a model: sizes and labels, the network and the labels' factors; of the genome's factors only that they are there.

    The files are not trusted. Nothing in them is run; every shape is what the json calls for, and every byte of it lies in the h5
    itself, before it is read.

    Raises
    ------
    CubeError
        Where a file is missing, damaged, or not of such a model, the two do not belong together, or the h5 leads outside of itself.
    """
    json_path, h5_path = pair_paths(path)
    for file_path, other in ((json_path, h5_path), (h5_path, json_path)):
        if not os.path.isfile(file_path):
            is_there = os.path.isfile(other)
            there = f"{other.name} is there, but a model is both" if is_there else "a model is a .json and a .h5"
            raise CubeError(f"there is no file {file_path}: {there}; give the name that they have in common")
    header = Header.from_json(_json(json_path), json_path)
    with _opened(h5_path) as file:
        _check_layers(file, header, h5_path)
        found = {layer: _weights_of(file, layer, shapes, h5_path) for layer, shapes in header.shapes.items()}
        held = {layer: datasets for layer, datasets in found.items() if layer not in GENOME_LAYERS}
        _check_room(sum((datasets for datasets in held.values()), []), h5_path)
        arrays = {layer: [_values(dataset, h5_path) for dataset in datasets] for layer, datasets in held.items()}
    kernels, biases = zip(*(arrays[name] for name in header.dense), strict=True)
    factors = arrays[CELLTYPE_LAYER][0], arrays[ASSAY_LAYER][0]
    return Pair(h5_path, header, *factors, tuple(kernel.T for kernel in kernels), biases)


def _json(path: Path) -> Any:
    if path.stat().st_size > LARGEST_JSON:
        raise CubeError(
            f"{path} is {path.stat().st_size:,} bytes long; the json of a model has at most {LARGEST_JSON:,}"
        )
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CubeError(f"{path} is no JSON, or not all of it is there: {error}") from None


def _labels(values: Any, name: str, path: Path) -> tuple[str, ...]:
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
        raise CubeError(f"{path}: {name!r} must be a list of names; it is {_shown(values)}")
    if len(set(values)) < len(values):
        raise CubeError(f"{path}: {name!r} names {next(v for v in values if values.count(v) > 1)!r} twice")
    return tuple(values)


def _experiments(values: Any, labels: Mapping[str, tuple[str, ...]], path: Path) -> tuple[tuple[str, str], ...]:
    known = [set(labels["celltypes"]), set(labels["assays"])]
    if not isinstance(values, list):
        raise CubeError(f"{path}: 'experiments' must be a list of pairs; it is {_shown(values)}")
    for pair in values:
        fits = isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)
        if not fits or any(v not in of for v, of in zip(pair, known, strict=True)):
            raise CubeError(f"{path}: {_shown(pair)} is no pair of this model's cell types and assays")
    return tuple((c, a) for c, a in values)


def _size(value: Any, name: str, path: Path) -> int:
    most = MOST_LAYERS if name == "n_layers" else 2**31
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise CubeError(f"{path}: {name!r} must be a whole number from 1 to {most:,}; it is {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:80]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open an h5 file to read from it; whatever the library finds wrong with it is one error."""
    import h5py

    try:
        # No lock: models lie on file systems that are read-only, or know none.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except CubeError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CubeError(
            f"{path} cannot be read; it is no HDF5 file, or damaged, or not all of it is there ({error}). Fetch it again"
        ) from None


def _check_layers(file: h5py.File, header: Header, path: Path) -> None:
    """Raise where the h5 has weights that the json does not call for.

    Activations are not looked at: the package knows ReLU alone, and HDF5's own code for texts of any length was found to hang on a
    damaged file.
    """
    group = _member(file, WEIGHTS, path)
    if len(group) > MOST_GROUPS:
        raise CubeError(f"{path} has {len(group):,} layers, so it is no model of the published package")
    for name in set(group) - set(header.shapes):
        if len(_member(group, name, path)):
            raise CubeError(
                f"{path} has weights of a layer {name!r}, which its json ({header.n_layers} hidden layers) does not call for: the two "
                "are of different models, or not of the published package"
            )


def _weights_of(file: h5py.File, layer: str, shapes: Sequence[tuple[int, ...]], path: Path) -> list[h5py.Dataset]:
    """Find a layer's weights, kernel before bias, none of them read; raise where they are not what the json calls for."""
    found = _datasets(_member(_member(file, WEIGHTS, path), layer, path), path)
    found.sort(key=lambda dataset: -len(dataset.shape or ()))
    if [dataset.shape for dataset in found] != list(shapes):
        has, calls = (" and ".join(map(_by, s)) or "nothing" for s in ([d.shape for d in found], shapes))
        raise CubeError(
            f"{path}: layer {layer} holds {has}, but the json calls for {calls}: the two are of different models"
        )
    for dataset in found:
        _check_held(dataset, path)
    return found


def _by(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape or ())) or "a single value"


def _member(group: Any, name: str, path: Path) -> Any:
    """Follow one link, that leads to nowhere but into this file."""
    import h5py

    link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
    if link is None:
        raise CubeError(
            f"{path} has no {name!r}, so it is no model of the published package, or not all of it is there"
        )
    if not isinstance(link, h5py.HardLink):
        raise CubeError(
            f"{path}: {name!r} is a link to {getattr(link, 'filename', link.path)!r}, which is not followed"
        )
    return group[name]


def _datasets(group: Any, path: Path, depth: int = 3) -> list[h5py.Dataset]:
    import h5py

    if isinstance(group, h5py.Dataset):
        return [group]
    if not isinstance(group, h5py.Group) or len(group) > 8 or not depth:
        raise CubeError(f"{path}: a layer holds more than its weights, so it is no model of the published package")
    return [found for name in group for found in _datasets(_member(group, name, path), path, depth - 1)]


def _check_held(dataset: h5py.Dataset, path: Path) -> None:
    """Raise where a dataset is not plain numbers, all of them in this very file."""
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
        raise CubeError(f"{path}: {dataset.name} holds {dataset.dtype}, not floating-point numbers")
    if dataset.is_virtual or dataset.external:
        raise CubeError(f"{path}: {dataset.name} takes its numbers from other files, which are not followed")
    if dataset.id.get_create_plist().get_nfilters():
        raise CubeError(f"{path}: {dataset.name} is compressed; undo that with h5repack -f NONE")
    if dataset.id.get_storage_size() != dataset.nbytes:
        raise CubeError(
            f"{path}: {dataset.name} is {_by(dataset.shape)}, but the file holds {dataset.id.get_storage_size():,} of its "
            f"{dataset.nbytes:,} bytes"
        )


def _check_room(datasets: Sequence[h5py.Dataset], path: Path) -> None:
    """Raise before more is brought to memory than the file can hold: its names may all lead to one dataset."""
    size = sum(dataset.nbytes for dataset in datasets)
    if size > min(path.stat().st_size, LARGEST_NETWORK):
        raise CubeError(
            f"{path}: network and labels take {size:,} bytes, but the file has {path.stat().st_size:,}, and {LARGEST_NETWORK:,} is "
            "the most that is read: this is no model of the published package"
        )


def _values(dataset: h5py.Dataset, path: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.asarray(dataset[...], np.float32)
    if not np.isfinite(values).all():
        raise CubeError(f"{path}: {dataset.name} holds values that are not finite, so the model predicts nothing")
    return values


def write_pair(
    path: str | os.PathLike[str],
    header: Header,
    weights: Mapping[str, Sequence[Any]],
    *,
    overwrite: bool,
    progress: bool,
) -> tuple[Path, Path]:
    """Write a model as the published package saves it, without the state of its optimizer; both files are whole or absent.

    ``weights`` has arrays by layer: a table of factors, or kernel and bias. Genome tables may be lazy; rows that they lack are 0.
    """
    import h5py

    json_path, h5_path = pair_paths(path)
    if there := [str(p) for p in (json_path, h5_path) if os.path.exists(p) and not overwrite]:
        raise CubeError(f"{' and '.join(there)} is there already; give overwrite=True to replace it, or another name")
    architecture = _architecture(header)
    # Of two at once, the json of one could come to lie beside the h5 of the other.
    with only_one(json_path), replacing(json_path) as new_json, replacing(h5_path) as new_h5:
        new_json.write_text(header.to_json(), "utf-8")
        total = sum(len(weights[layer][0]) for layer in GENOME_LAYERS)
        with (
            h5py.File(new_h5, "w") as file,
            tqdm(total=total, desc=h5_path.name, unit="row", disable=not progress) as bar,
        ):
            # Bytes, not str: the h5py of that time gives str back as str, on which Keras 2 calls decode.
            file.attrs.update({ARCHITECTURE: architecture.encode(), "training_config": _training().encode()})
            file.attrs.update(_VERSIONS)
            group = file.create_group(WEIGHTS)
            group.attrs.update(_VERSIONS)
            names = [layer["name"] for layer in json.loads(architecture)["config"]["layers"]]
            group.attrs["layer_names"] = np.array(names, "S")
            for name in names:
                _write_layer(group.create_group(name), weights.get(name, ()), header.shapes.get(name, ()), bar)
    return json_path, h5_path


_VERSIONS = {"backend": b"theano", "keras_version": b"2.3.1"}


def _write_layer(group: h5py.Group, arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]], bar: Any) -> None:
    layer = group.name.rsplit("/")[-1]
    kinds = ("embeddings",) if len(shapes) == 1 else ("kernel", "bias")[: len(shapes)]
    names = [f"{layer}/{kind}" for kind in kinds]
    group.attrs["weight_names"] = np.array(names, "S") if names else np.array([])
    for name, array, shape in zip(names, arrays, shapes, strict=True):
        dataset = group.create_dataset(name, shape, np.float32)
        for first in range(0, len(array), STEP):
            piece = np.asarray(array[first : first + STEP], np.float32)
            dataset[first : first + len(piece)] = piece
            if layer in GENOME_LAYERS:
                bar.update(len(piece))


def _architecture(header: Header) -> str:
    """Describe the network as Keras 2.3 does."""
    embedded = (CELLTYPE_LAYER, ASSAY_LAYER, *GENOME_LAYERS)
    flat = [f"flatten_{i + 1}" for i in range(len(INPUTS))]
    layers = [_layer(name, "InputLayer", [], batch_input_shape=[None, 1], sparse=False) for name in INPUTS]
    for name, source in zip(embedded, INPUTS, strict=True):
        rows, factors = header.shapes[name][0]
        layers.append(_layer(name, "Embedding", [source], **_EMBEDDING, input_dim=rows, output_dim=factors))
    for name, source in zip(flat, embedded, strict=True):
        layers.append(_layer(name, "Flatten", [source], trainable=True, data_format="channels_last"))
    layers.append(_layer("concatenate_1", "Concatenate", flat, trainable=True, axis=-1))
    for name, source in zip(header.dense, ("concatenate_1", *header.dense), strict=False):
        kind = "linear" if name == "y_pred" else "relu"
        layers.append(_layer(name, "Dense", [source], **_DENSE, units=header.shapes[name][1][0], activation=kind))
    ends = {"input_layers": [[name, 0, 0] for name in INPUTS], "output_layers": [["y_pred", 0, 0]]}
    return json.dumps({"class_name": "Model", "config": {"name": "model_1", "layers": layers, **ends}})


def _layer(name: str, kind: str, sources: Sequence[str], **settings: Any) -> dict[str, Any]:
    nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
    config = {"name": name, "dtype": "float32", **settings}
    return {"name": name, "class_name": kind, "config": config, "inbound_nodes": nodes}


_EMBEDDING: Mapping[str, Any] = {
    "trainable": True,
    "batch_input_shape": [None, 1],
    "embeddings_initializer": {
        "class_name": "RandomUniform",
        "config": {"minval": -0.05, "maxval": 0.05, "seed": None},
    },
    "embeddings_regularizer": None,
    "activity_regularizer": None,
    "embeddings_constraint": None,
    "mask_zero": False,
    "input_length": 1,
}
_DENSE: Mapping[str, Any] = {
    "trainable": True,
    "use_bias": True,
    "kernel_initializer": {
        "class_name": "VarianceScaling",
        "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None},
    },
    "bias_initializer": {"class_name": "Zeros", "config": {}},
    "kernel_regularizer": None,
    "bias_regularizer": None,
    "activity_regularizer": None,
    "kernel_constraint": None,
    "bias_constraint": None,
}


def _training() -> str:
    settings = {
        "learning_rate": 0.001,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "decay": 0.0,
        "epsilon": 1e-07,
        "amsgrad": False,
    }
    optimizer = {"class_name": "Adam", "config": settings}
    unset = {"weighted_metrics": None, "sample_weight_mode": None, "loss_weights": None}
    return json.dumps({"optimizer_config": optimizer, "loss": "mse", "metrics": ["mse"], **unset})
