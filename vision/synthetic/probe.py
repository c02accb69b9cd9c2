"""Does a pasted edge give a made picture away? A small classifier that sees nothing but edges is asked.

If made pictures could be told from real ones, or their boxes found, by the rim of what was pasted, a policy could learn
that instead of the object. So the probe compares two sets with the same kinds of backgrounds: pictures as the source
places objects, and pictures as the data server makes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vision.synthetic.records import Result
from vision.synthetic.validity import grey

FOLDS = 5


def edge_features(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What the rim of an object looks like (6,): mean and spread of the luma steps across its edge, of those just
    outside it and just inside it, each in shares of the picture's own spread of luma."""
    from scipy.ndimage import binary_dilation, binary_erosion

    luma = grey(picture)
    across_y, across_x = np.abs(np.diff(luma, axis=0)), np.abs(np.diff(luma, axis=1))
    outer, inner = binary_dilation(mask, iterations=2), binary_erosion(mask)

    def steps(region: NDArray[np.bool_], edge: bool) -> NDArray[np.float64]:
        """Luma steps between neighbours: over the edge of a region, or within it."""
        differ_y, differ_x = region[1:] != region[:-1], region[:, 1:] != region[:, :-1]
        if edge:
            return np.concatenate([across_y[differ_y], across_x[differ_x]])
        both_y, both_x = region[1:] & region[:-1], region[:, 1:] & region[:, :-1]
        return np.concatenate([across_y[both_y], across_x[both_x]])

    parts = [steps(mask, edge=True), steps(outer & ~mask, edge=False), steps(inner, edge=False)]
    scale = luma.std() + 1e-6
    found = [(part.mean(), part.std()) if len(part) else (0.0, 0.0) for part in parts]
    return np.array(found).ravel() / scale


def edges_told_apart(results: Sequence[Result], seed: int = 0) -> dict[str, float]:
    """Area under the ROC curve (0.5: not at all, 1: always) with which logistic regression tells made pictures from
    pictures that the source itself places on backgrounds of the same words, by `edge_features`, in cross-validation.
    Beside it that of shuffled labels, which says what chance looks like at this size.

    Raises:
        ValueError: there are fewer than 20 pictures.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from vision.backdrops import background

    pictures = [result for result in results if result.picture is not None]
    if len(pictures) < 20:
        raise ValueError(f"the probe has {len(pictures)} made pictures: give at least 20")
    rows, labels, chance = [], [], np.random.default_rng(seed)
    for number, result in enumerate(pictures):
        request = result.request
        if number % 2:  # each object is on one side only, so that objects say nothing
            rows.append(edge_features(np.asarray(result.picture), request.mask))
            labels.append(1)
        else:
            behind = background(request.description, len(request.mask), chance)
            placed = np.where(request.mask[..., None], request.foreground, behind)
            rows.append(edge_features(placed, request.mask))
            labels.append(0)
    features, truth = np.stack(rows), np.array(labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    def told(answers: NDArray[np.int_]) -> float:
        scores = cross_val_predict(model, features, answers, cv=FOLDS, method="predict_proba")[:, 1]
        return round(float(roc_auc_score(answers, scores)), 4)

    return {"pictures": float(len(truth)), "auc": told(truth), "auc_shuffled": told(chance.permutation(truth))}
