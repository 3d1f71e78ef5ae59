"""Metrics by group: scikit-learn's where it has the same number, gaps, thresholds from validation, intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from cfaug.errors import DataError, UsageError
from cfaug.judge.fairness import (
    choose_threshold,
    expected_calibration_error,
    gaps,
    group_metrics,
    label_metrics,
    metrics,
)


def drawn(n: int, seed: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, p, rng.choice(["a", "b"], n)


@settings(max_examples=20)
@given(st.integers(10, 200), st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_two_classes_are_those_of_scikit_learn(n: int, seed: int, threshold: float) -> None:
    truth, p, _ = drawn(n, seed)
    found, said = metrics(truth, p, threshold), p[:, 1] >= threshold
    assert found["auroc"] == pytest.approx(theirs.roc_auc_score(truth, p[:, 1]))
    assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(truth, said))
    tn, fp, fn, tp = theirs.confusion_matrix(truth, said).ravel()
    assert found["tpr"] == pytest.approx(tp / (tp + fn))
    assert found["fpr"] == pytest.approx(fp / (fp + tn))


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_many_classes_are_one_against_the_rest(seed: int) -> None:
    truth, p, _ = drawn(120, seed, 4)
    found = metrics(truth, p)
    assert found["auroc"] == pytest.approx(theirs.roc_auc_score(truth, p, multi_class="ovr", average="macro"))
    assert found["tpr"] == pytest.approx(theirs.recall_score(truth, p.argmax(1), average="macro"))


def test_calibration_of_what_is_known() -> None:
    sure = np.array([[0.1, 0.9]] * 10)
    assert expected_calibration_error(np.array([1] * 9 + [0]), sure) == pytest.approx(0.0)
    assert expected_calibration_error(np.array([1] * 5 + [0] * 5), sure) == pytest.approx(0.4)
    assert expected_calibration_error(
        np.array([1] * 9 + [0] + [1] * 10), np.concatenate([sure, [[0.0, 1.0]] * 10])
    ) == pytest.approx(0.0)


def test_groups_gaps_and_equalised_odds() -> None:
    truth = np.array([0, 0, 1, 1] * 2)
    p = np.array([0.1, 0.2, 0.8, 0.9, 0.6, 0.2, 0.8, 0.3])
    found = group_metrics(truth, np.stack([1 - p, p], 1), ["a"] * 4 + ["b"] * 4, draws=20)
    assert list(found) == ["all", "a", "b"]
    assert found["a"]["tpr"][0] == 1
    assert found["b"]["tpr"][0] == found["b"]["fpr"][0] == 0.5
    between = gaps(found)
    assert between["tpr"] == between["fpr"] == between["equalised_odds"] == 0.5


def test_a_group_of_one_class_has_no_rates() -> None:
    found = group_metrics(
        [0, 1, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]], ["a", "a", "b", "b"], draws=20
    )
    assert found["b"]["auroc"] is None
    assert found["b"]["ece"] is not None
    assert gaps(found)["auroc"] is None
    assert gaps(found)["equalised_odds"] is None


def test_intervals_hold_the_estimate_and_narrow_with_n() -> None:
    widths = []
    for n in (60, 1000):
        truth, p, groups = drawn(n, 3)
        estimate, low, high = group_metrics(truth, p, groups)["all"]["auroc"]
        assert low <= estimate <= high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_a_threshold_is_chosen_on_validation() -> None:
    truth, scores = np.array([0, 0, 0, 1, 1]), np.array([0.05, 0.1, 0.15, 0.2, 0.3])
    cut = choose_threshold(truth, scores)
    assert 0.15 < cut <= 0.2
    assert metrics(truth, np.stack([1 - scores, scores], 1), cut)["balanced_accuracy"] == 1
    with pytest.raises(DataError, match="both classes"):
        choose_threshold([1, 1], [0.2, 0.3])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="expected targets"):
        group_metrics([0, 1], [[0.5, 0.5]], ["a", "b"])
    with pytest.raises(UsageError, match="threshold"):
        group_metrics([0, 1], [[0.5, 0.5]] * 2, ["a", "b"], threshold=1.5)


def test_several_labels_have_a_table_each() -> None:
    rng = np.random.default_rng(7)
    groups = np.array(["a", "b"])[rng.integers(0, 2, 300)]
    truth = {name: rng.integers(0, 2, 300).astype(float) for name in ("edema", "fracture")}
    truth["edema"][:20] = np.nan  # not known
    said = {name: np.clip(0.3 * np.nan_to_num(one) + 0.7 * rng.random(300), 0, 1) for name, one in truth.items()}
    found = label_metrics(truth, said, groups, {"fracture": 0.6}, draws=20)
    known = np.arange(20, 300)
    assert found["edema"]["all"]["n"] == 280
    assert found["edema"]["all"]["auroc"][0] == pytest.approx(
        theirs.roc_auc_score(truth["edema"][known], said["edema"][known]), abs=1e-6
    )
    inside = groups == "b"
    assert found["fracture"]["b"]["tpr"][0] == pytest.approx(
        (said["fracture"][inside & (truth["fracture"] == 1)] >= 0.6).mean(), abs=1e-6
    )
    with pytest.raises(UsageError, match="expected probabilities of the labels edema, fracture, got edema"):
        label_metrics(truth, {"edema": said["edema"]}, groups)
