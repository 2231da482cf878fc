"""What a model is made of and how it is trained: sizes, scales, rates; the presets; the default for a panel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

__all__ = ["PRESETS", "Config", "config_for", "typed"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and training settings of a model; every verb that trains takes one as ``config=``.

    Parameters
    ----------
    celltype_factors, assay_factors
        Length of a cell type's and an assay's vector.
    scales
        Widths, in bins, of the multi-scale genome bins, finest first; each divides the next.
    genome_factors
        Length of the vector of a genome bin, one entry a scale.
    layers, nodes
        Number of hidden ReLU layers, and units in each.
    average
        Add the average activity of the assay (over the other observed cell types, per bin) to the network's output.
    dropout
        Dropout rate after each hidden layer.
    epochs
        Passes over the positions, at most (the context term has a number of samples to see per epoch instead).
    tracks_per_position
        Observed tracks drawn for a block of positions when it is visited.
    batch
        Samples (position x track) of a step.
    learning_rate
        Adam's, for the network and the cell type and assay factors; it decays along a half cosine over the epochs.
    genome_learning_rate
        Row-wise Adam's, for the genome factors: a row moves once an epoch, so it needs 5 to 50 times the network's.
    weight_decay, genome_decay
        Decoupled decay (as AdamW) of network weights and of genome factors, per step.
    factor_scale
        Factors start uniform in +- this.
    patience
        Epochs without a better validation score after which training stops; 0 trains all epochs.
    context
        Train a context term, and let it impute: average activity plus a network that reads the bin's other observed tracks.
    context_scales
        Widths, in bins, of the blocks that the context term sees each track averaged over, three mixed to a smooth window.
    context_units, context_nodes, context_heads
        Units that read a track, units of its hidden layers, and attention heads over cell types.
    context_assay_factors
        Length of its vector of an assay. A cell type has none: it is what its tracks are.
    context_samples, context_batch
        Targets (bin x track) each of them sees per epoch, at most as many as there are, and bins of a step, at most.
    context_mask, context_targets
        Largest share of the tracks hidden at a bin, and how many of these are predicted, at most.
    context_members
        Networks trained one after the other, from initial values and draws of their own; their mean is the prediction.
    context_celltypes
        Cell types that a step reads, at most; prediction reads all.
    context_dropout
        Dropout rate of its hidden layers.
    context_stretch
        Factor on what it predicts, in standard units: what was learnt on pairs of cell type and assay that were observed is too timid on
        those that were not.
    context_focus
        How much bins with signal are preferred in training, from 0 (not at all) to 1; errors are weighted back.
    context_learning_rate, context_decay
        AdamW's, for the context term.

    Notes
    -----
    The defaults of the class are the sizes of Schreiber et al. 2020 (doi:10.1186/s13059-020-1977-6), section 4.3.
    """

    celltype_factors: int = 32
    assay_factors: int = 256
    scales: tuple[int, ...] = (1, 10, 200)
    genome_factors: tuple[int, ...] = (25, 40, 45)
    layers: int = 2
    nodes: int = 2048
    average: bool = False
    dropout: float = 0.0
    epochs: int = 12
    tracks_per_position: int = 8
    batch: int = 40_000
    learning_rate: float = 1e-3
    genome_learning_rate: float = 1e-2
    weight_decay: float = 0.0
    genome_decay: float = 0.0
    factor_scale: float = 0.05
    patience: int = 3
    context: bool = True
    context_scales: tuple[int, ...] = (1, 4, 20, 200)
    context_units: int = 32
    context_nodes: int = 128
    context_heads: int = 4
    context_assay_factors: int = 16
    context_members: int = 3
    context_samples: int = 225_000
    context_batch: int = 512
    context_mask: float = 0.1
    context_targets: int = 16
    context_celltypes: int = 16
    context_dropout: float = 0.4
    context_stretch: float = 1.1
    context_focus: float = 0.7
    context_learning_rate: float = 2e-3
    context_decay: float = 1e-3

    def __repr__(self) -> str:
        changed = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(changed)})"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr style='font-weight:{'normal' if getattr(self, f.name) == f.default else 'bold'}'>"
            f"<td style='text-align:left'>{f.name}</td><td style='text-align:left'>{getattr(self, f.name)!r}</td></tr>"
            for f in fields(self)
        )
        return f"<table><tr><th>setting</th><th>value (bold: not the paper's size or the default)</th></tr>{''.join(rows)}</table>"

    def __post_init__(self) -> None:
        for f in fields(self):
            typed(f.name, getattr(self, f.name), f.default)
        object.__setattr__(self, "scales", tuple(int(s) for s in self.scales))
        object.__setattr__(self, "genome_factors", tuple(int(f) for f in self.genome_factors))
        object.__setattr__(self, "context_scales", tuple(int(s) for s in self.context_scales))
        if len(self.scales) != len(self.genome_factors):
            raise ValueError(f"one length of genome factors a scale: got scales={self.scales}, {self.genome_factors=}")
        if (
            not self.scales
            or self.scales[0] != 1
            or any(b % a or a == b for a, b in zip(self.scales, self.scales[1:], strict=False))
        ):
            raise ValueError(
                f"scales start at 1 bin and each divides the next, larger one, e.g. (1, 10, 200); got {self.scales}"
            )
        if self.context and any(self.block % scale for scale in self.context_scales):
            raise ValueError(
                f"each of context_scales divides the block of {self.block} bins; got {self.context_scales}"
            )
        if self.context and self.context_scales[:1] != (1,):
            raise ValueError(f"context_scales start at 1 bin; got {self.context_scales}")
        for name in (
            "celltype_factors",
            "assay_factors",
            "layers",
            "nodes",
            "epochs",
            "tracks_per_position",
            "batch",
            "context_members",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)!r}")
        for name in ("learning_rate", "genome_learning_rate", "factor_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)!r}")
        for name in ("dropout", "context_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)!r}")

    @property
    def inputs(self) -> int:
        """Length of the concatenated factors that the first layer reads."""
        return self.celltype_factors + self.assay_factors + sum(self.genome_factors)

    @property
    def block(self) -> int:
        """Bins of a block, the unit of training: the coarsest scale, or as many of its bins as reach 200."""
        return self.scales[-1] * max(1, 200 // self.scales[-1])

    def to_attrs(self) -> dict[str, Any]:
        """Give the JSON form that a fitted cube holds."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Config:
        """Read the JSON form back."""
        return cls().updated(attrs)

    def updated(self, changes: Mapping[str, Any]) -> Config:
        """Return a copy with some settings changed; an unknown name is an error that lists the known ones."""
        known = {field.name for field in fields(self)}
        if unknown := set(changes) - known:
            raise ValueError(f"{sorted(unknown)[0]!r} is not a model setting; there are {', '.join(sorted(known))}")
        return replace(self, **changes)


def typed(name: str, value: Any, own: Any) -> Any:
    """Return a setting's value as the type of one that it may have; raise where it is of another kind."""
    if isinstance(own, bool):
        if isinstance(value, bool):
            return value
        raise ValueError(f"{name} is true or false; got {value!r}")
    if isinstance(own, tuple):
        if isinstance(value, list | tuple) and all(isinstance(v, Integral) and not isinstance(v, bool) for v in value):
            return tuple(int(v) for v in value)
        raise ValueError(f"{name} is a list of whole numbers; got {value!r}")
    kind, words = (Integral, "a whole number") if isinstance(own, int) else (Real, "a number")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name} is {words}; got {value!r}")
    return type(own)(value)


PRESETS: Mapping[str, Config] = {
    # The reference implementation where paper and code disagree: no dropout, rate 1e-3, factors +-0.05, one track a position.
    # Its dense Adam moves every genome row at every step, some 32 rates a visit; the row-wise one here moves it at most one.
    "paper": Config(context=False, tracks_per_position=1, epochs=800, genome_learning_rate=1e-2, patience=0),
    "small": Config(
        celltype_factors=32, assay_factors=24, genome_factors=(5, 20, 30), layers=1, nodes=64, context=False, epochs=15
    ),
}


def config_for(n_experiments: int) -> Config:
    """Choose sizes for a panel: small panels cannot feed the paper's network, and over-fit its genome factors."""
    if n_experiments < 60:
        return Config(celltype_factors=16, assay_factors=16, genome_factors=(8, 16, 24), layers=2, nodes=64)
    if n_experiments < 400:
        return Config(celltype_factors=32, assay_factors=32, genome_factors=(16, 24, 32), layers=2, nodes=256)
    return Config()
