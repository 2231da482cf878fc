"""The classifiers of the paper's downstream tasks: trained on some rows, stopped or tuned, and asked for a score of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["Convention", "Logistic", "Trees", "device_for"]

Convention = Literal["paper", "today"]
ROUNDS = 5_000
PATIENCE = 20
STRENGTHS = np.logspace(-4, 4, 10)
INNER_FOLDS = 3


@dataclass(frozen=True)
class Trees:
    """XGBoost: at most 5,000 trees of depth 6, no more once 20 rounds in a row did not improve on the validation rows.

    What is to improve is the area under their curve of precision and recall, since that is what is scored; the paper does not say. ``"paper"``
    is xgboost 0.7, which it used: a rate of 0.1, exact splits, a base score of 0.5, and predictions with all trees grown, the last 20
    included. ``"today"`` is what xgboost does now if nothing is set (0.3, splits by histograms, a base score from the labels), and
    predicts with the best round.
    """

    convention: Convention = "paper"
    device: str = "cpu"
    seed: int = 0

    def scores(
        self, x: np.ndarray, y: np.ndarray, train: np.ndarray, valid: np.ndarray, test: np.ndarray, inner: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Score the test rows; and how many trees they are scored with."""
        import xgboost

        settings = {"objective": "binary:logistic", "eval_metric": "aucpr", "max_depth": 6}
        settings |= {"nthread": 1, "device": self.device, "seed": self.seed}
        if self.convention == "paper":
            settings |= {"eta": 0.1, "tree_method": "exact", "base_score": 0.5}
        of_train, of_valid, of_test = (xgboost.DMatrix(x[rows], y[rows], nthread=1) for rows in (train, valid, test))
        model = xgboost.train(
            settings,
            of_train,
            ROUNDS,
            evals=[(of_valid, "validation")],
            early_stopping_rounds=PATIENCE,
            verbose_eval=False,
        )
        trees = model.num_boosted_rounds() if self.convention == "paper" else model.best_iteration + 1
        return model.predict(of_test, iteration_range=(0, trees)), {"trees": trees}


@dataclass(frozen=True)
class Logistic:
    """Logistic regression: the best of 10 values of C from 1e-4 to 1e4 by inner 3-fold cross-validation, then all training rows.

    ``"paper"`` chooses by accuracy and leaves columns as they are, as scikit-learn's ``LogisticRegressionCV()`` did. ``"today"`` brings
    columns to unit variance first and chooses by average precision. A column's mean stands in for missing values.
    """

    convention: Convention = "paper"
    seed: int = 0

    def scores(
        self, x: np.ndarray, y: np.ndarray, train: np.ndarray, valid: np.ndarray, test: np.ndarray, inner: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Score the test rows; and the C chosen. ``inner`` are its folds, as rows of ``train``; by default stratified ones."""
        from sklearn.impute import SimpleImputer
        from sklearn.model_selection import StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scale = "passthrough" if self.convention == "paper" else StandardScaler()
        prepare = make_pipeline(SimpleImputer(keep_empty_features=True), scale)
        folds = StratifiedKFold(INNER_FOLDS).split(x[train], y[train]) if inner is None else inner
        quality = [self._qualities(prepare, x[train], y[train], *fold) for fold in folds]
        # As scikit-learn does, the weakest of those that are equally good; a fold without positives says nothing.
        best = float(STRENGTHS[np.nanmean(quality, axis=0).argmax()])
        model = self._model(best).fit(prepare.fit_transform(x[train]), y[train])
        return model.predict_proba(prepare.transform(x[test]))[:, 1], {"C": best}

    def _model(self, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=strength, max_iter=1_000, warm_start=True, random_state=self.seed)

    def _qualities(
        self, prepare: Any, x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray
    ) -> list[float]:
        """How good each C is on an inner fold; each starts from the coefficients of the one before."""
        from sklearn.metrics import average_precision_score

        if y[train].min() == y[train].max() or (self.convention == "today" and not y[test].any()):
            return [np.nan] * len(STRENGTHS)
        model, of_train = self._model(1.0), prepare.fit_transform(x[train])
        of_test, found = prepare.transform(x[test]), []
        for strength in STRENGTHS:
            model.set_params(C=strength).fit(of_train, y[train])
            if self.convention == "paper":
                found.append(float((model.predict(of_test) == y[test]).mean()))
            else:
                found.append(float(average_precision_score(y[test], model.decision_function(of_test))))
        return found


def device_for(device: str | None, convention: Convention) -> str:
    """Settle where XGBoost runs: the GPU where there is one that it was built for, unless splits are to be exact.

    Raises
    ------
    ValueError
        Where a GPU is asked for that is not there, or for exact splits.
    """
    if convention == "paper" and device not in (None, "cpu"):
        raise ValueError(
            f"xgboost has no exact splits on {device!r}; leave device out, or take convention='today', which has splits by histograms"
        )
    if device == "cpu" or convention == "paper":
        return "cpu"
    there = _has_gpu()
    if device is not None and not there:
        raise ValueError(f"device {device!r}: xgboost finds no CUDA device here; leave device out to use the CPU")
    return device or ("cuda" if there else "cpu")


def _has_gpu() -> bool:
    import torch
    import xgboost

    return bool(xgboost.build_info().get("USE_CUDA")) and torch.cuda.is_available()
