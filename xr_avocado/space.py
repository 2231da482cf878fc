"""Which settings of a model a search varies, and how far: checked before anything is trained, and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xr_avocado.model.config import Config

__all__ = ["Space", "default_space"]

CONTEXT_SPACE: Mapping[str, Any] = {
    "context_units": (8, 96, "log"),
    "context_nodes": (64, 384, "log"),
    "context_assay_factors": (4, 64, "log"),
    "context_mask": (0.0, 0.9),
    "context_dropout": (0.0, 0.5),
    "context_focus": (0.0, 0.95),
    "context_learning_rate": (5e-4, 1e-2, "log"),
    "context_decay": (1e-5, 1e-1, "log"),
}
SIZES = ("celltype_factors", "assay_factors", "nodes")
FACTORS_SPACE: Mapping[str, Any] = {
    "layers": (1, 4),
    "dropout": (0.0, 0.5),
    "learning_rate": (1e-4, 1e-2, "log"),
    "genome_learning_rate": (1e-3, 1e-1, "log"),
}
FORMS = (
    'a range is (low, high) or (low, high, \'log\'), in JSON {"low": 1, "high": 8, "log": true}, and choices are a list'
)


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both among them; whole ones for a setting that is whole."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Space:
    """Settings to vary and what each may be; the others are those of ``base``."""

    base: Config
    ranges: Mapping[str, Range | tuple[Any, ...]]

    @classmethod
    def read(cls, base: Config, space: Mapping[str, Any] | None) -> Space:
        """Read what a user gave, or the default; raise ``ValueError`` where a name, a range or a choice is none."""
        if space is not None and not isinstance(space, Mapping):
            raise ValueError(f"space names settings and what each may be, as in {{'nodes': (8, 64)}}; got {space!r}")
        given = default_space(base) if space is None else dict(space)
        if not given:
            raise ValueError(f"the space is empty: name at least one setting of {', '.join(_settings(base))}")
        ranges = {name: _read(base, name, value) for name, value in given.items()}
        if twice := [name for name in ranges if "[" in name and name.split("[")[0] in ranges]:
            raise ValueError(f"{twice[0]!r} and {twice[0].split('[')[0]!r} are both in the space; give one")
        _check_parts(base, ranges)
        return cls(base, ranges)

    def to_attrs(self) -> dict[str, Any]:
        """Give the JSON form, which ``read`` takes as well."""
        return {
            name: [list(v) if isinstance(v, tuple) else v for v in r] if isinstance(r, tuple) else vars(r)
            for name, r in self.ranges.items()
        }

    def distributions(self) -> dict[str, Any]:
        """Give optuna's form."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        out: dict[str, Any] = {}
        for name, r in self.ranges.items():
            if isinstance(r, tuple):
                out[name] = CategoricalDistribution([_encoded(value) for value in r])
            elif isinstance(r.low, int) and isinstance(r.high, int):
                out[name] = IntDistribution(r.low, r.high, log=r.log)
            else:
                out[name] = FloatDistribution(r.low, r.high, log=r.log)
        return out

    def start(self) -> dict[str, Any]:
        """Give the base's own values, in optuna's form, as far as they lie in the space."""
        own = {name: _value(self.base, name) for name in self.ranges}
        return {
            name: _encoded(own[name])
            for name, r in self.ranges.items()
            if (own[name] in r if isinstance(r, tuple) else r.low <= own[name] <= r.high)
        }

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Read values back from optuna's form, in the order of the space."""
        return {name: _decoded(params[name]) for name in self.ranges}

    def config(self, params: Mapping[str, Any]) -> Config:
        """Make the configuration of a trial from values in optuna's form."""
        changes, factors = {}, list(self.base.genome_factors)
        for name, value in self.settings(params).items():
            if "[" in name:
                factors[_place(name)] = value
                changes["genome_factors"] = tuple(factors)
            else:
                changes[name] = value
        return self.base.updated(changes)


def default_space(base: Config) -> dict[str, Any]:
    """Give the ranges searched by default: those of the part of the model that imputes.

    With a context term, its sizes, rates, decay, dropout and how it hides tracks, in ranges around the defaults.
    Without one, the seven structural settings of Schreiber et al. 2020 (factors of cell types, of assays and of each of three
    scales of the genome, layers, nodes), each size from an eighth of the model's own to twice that, beside both
    learning rates and dropout.

    Examples
    --------
    >>> from xr_avocado.model.config import PRESETS
    >>> default_space(PRESETS["paper"])["genome_factors[2]"]
    (5, 90, 'log')
    """
    if base.context:
        return dict(CONTEXT_SPACE)
    names = [*SIZES, *(f"genome_factors[{i}]" for i in range(len(base.genome_factors)))]
    own = {name: _value(base, name) for name in names}
    return {name: (max(1, size // 8), 2 * size, "log") for name, size in own.items()} | dict(FACTORS_SPACE)


def _settings(base: Config) -> list[str]:
    return sorted([f.name for f in fields(base)] + [f"genome_factors[{i}]" for i in range(len(base.genome_factors))])


def _place(name: str) -> int:
    return int(name.split("[")[1].rstrip("]"))


def _value(base: Config, name: str) -> Any:
    return base.genome_factors[_place(name)] if "[" in name else getattr(base, name)


def _read(base: Config, name: str, given: Any) -> Range | tuple[Any, ...]:
    if name not in _settings(base):
        raise ValueError(f"{name!r} is not a model setting; there are {', '.join(_settings(base))}")
    from xr_avocado.model.config import typed

    own = _value(base, name)
    values: Range | tuple[Any, ...]
    if isinstance(given, list):
        if isinstance(own, tuple) and not all(isinstance(value, list | tuple) for value in given):
            raise ValueError(f"{name} is a list of whole numbers, and its choices a list of such lists; got {given!r}")
        values = ends = tuple(typed(name, value, own) for value in given)
        if len(set(values)) != len(values) or len(values) < 2:
            raise ValueError(f"{name}: choices are at least two different values; got {given!r}")
    else:
        values = _range(name, given, own)
        ends = (values.low, values.high)
    for value in ends:
        try:
            Space(base, {name: (value,)}).config({name: _encoded(value)})
        except ValueError as error:
            raise ValueError(f"{name} cannot be {value!r}: {error}") from None
    return values


def _range(name: str, given: Any, own: Any) -> Range:
    from xr_avocado.model.config import typed

    if isinstance(given, Mapping) and {"low", "high"} <= set(given) <= {"low", "high", "log"}:
        given = (given["low"], given["high"], *(["log"] if given.get("log") else []))
    if not isinstance(given, tuple) or len(given) not in (2, 3) or (len(given) == 3 and given[2] != "log"):
        raise ValueError(f"{name}: {FORMS}; got {given!r}")
    if isinstance(own, bool | tuple):
        raise ValueError(f"{name} has no range, so give a list of choices; got {given!r}")
    low, high = (typed(name, bound, own) for bound in given[:2])
    log = len(given) == 3
    if not low < high or (log and low <= 0):
        raise ValueError(
            f"{name}: low must be below high{', and above 0 on a log scale' if log else ''}; got {given!r}"
        )
    return Range(low, high, log)


def _encoded(value: Any) -> Any:
    # Optuna keeps no sequences as choices.
    return json.dumps(value) if isinstance(value, tuple) else value


def _decoded(value: Any) -> Any:
    return tuple(json.loads(value)) if isinstance(value, str) else value


def _check_parts(base: Config, ranges: Mapping[str, Any]) -> None:
    """Raise where a setting belongs to the part of the model that does not impute: no score would depend on it."""
    if "context" in ranges:
        return
    for name in ranges:
        if base.context and not name.startswith("context_") and name != "epochs":
            raise ValueError(
                f"{name} is a setting of the factors, which do not impute where there is a context term: search "
                "settings that start with context_, or a model of factors alone, with fit={'preset': 'paper'} "
                "or fit={'config': {'context': False}}"
            )
        if not base.context and name.startswith("context_"):
            raise ValueError(f"{name} is a setting of the context term, and this model has none: leave it out")
