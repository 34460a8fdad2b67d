"""Statistics of answers and of judges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemblehub.errors import MissingExtraError

_Z95 = 1.959963984540054


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927).

    Not `scipy.stats.binomtest(…).proportion_ci("wilson")`, which takes whole counts only; a random mix of
    levels has fractional ones.
    """
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, _Z95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low, high = min(share, centre - half), max(share, centre + half)  # rounding must not cut the share off
    return max(0.0, low), min(1.0, high)


def clustered_interval(shares: ArrayLike, draws: int = 1) -> tuple[float, float]:
    """95 % interval of an accuracy over questions that were each answered `draws` times.

    Wilson's, with the effective number of answers p (1 - p) / var, where var is the variance of the mean over
    questions (answers to one question are a cluster; Miller 2024, arXiv:2411.00640).  That number is at least
    the number of questions and at most the number of answers.

    Args:
        shares: Share of right answers by question, of shape (questions,).
    """
    right = np.asarray(shares, float)
    n = len(right)
    share = float(right.mean()) if n else 0.0
    variance = float(right.var(ddof=1)) / n if n > 1 else 0.0
    effective = share * (1 - share) / variance if variance else float(n)
    effective = min(max(effective, n), n * draws)
    return wilson_interval(share * effective, effective)


def pass_at(k: int, n: int, right: int) -> float:
    """Probability that one of `k` answers, drawn from `n` of which `right` are right, is right.

    The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374).
    """
    return float(1 - math.comb(n - right, k) / math.comb(n, k))


def mcnemar(gains: int, losses: int) -> float:
    """Two-sided p-value of the exact McNemar test for questions that only one of two methods answers."""
    fewer, n = min(gains, losses), gains + losses
    return float(min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of `mean(a - b)`, questions drawn with replacement; a, b of shape
    (questions,).

    Not `scipy.stats.bootstrap`: it draws every resample question by question and from another random stream,
        so
    that committed intervals would change; here a multinomial draws how often each distinct difference occurs.
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    values, counts = np.unique(differences, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(differences), counts / counts.sum(), resamples)
    low, high = np.percentile(draws @ values / len(differences), [2.5, 97.5])
    return float(low), float(high)


def ratio_interval(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """95 % interval of `mean(a) / mean(b)`, a, b of shape (questions,), paired, by the delta method."""
    above, below = np.asarray(a, float), np.asarray(b, float)
    ratio = above.mean() / below.mean()
    spread = 1.96 * (above - ratio * below).std() / (below.mean() * len(below) ** 0.5)
    return float(ratio - spread), float(ratio + spread)


def calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error over `bins` bins of equal mass."""
    truth, said = np.asarray(labels, float), np.asarray(probabilities, float)
    order = np.argsort(said, kind="stable")
    gaps = [
        len(part) * abs(np.mean(truth[part]) - np.mean(said[part]))
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return float(sum(gaps) / len(order))


def judge_report(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """AUC, F1 at 0.5, Brier score beside the base rate's, calibration error in 15 equal-mass bins, n.

    AUC is NaN where only one label occurs.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import metrics
    except ImportError as error:
        raise MissingExtraError("judge reports need scikit-learn: pip install 'ensemblehub[eval]'") from error
    truth: NDArray[Any] = np.asarray(labels, int).ravel()
    guess = np.asarray(probabilities, float).ravel()
    rate = float(truth.mean())
    return {
        "n": float(len(truth)),
        "auc": float(metrics.roc_auc_score(truth, guess)) if 0 < rate < 1 else math.nan,
        "f1": float(metrics.f1_score(truth, guess >= 0.5, zero_division=0)),
        "brier": float(np.mean((guess - truth) ** 2)),
        "brier_base_rate": rate * (1 - rate),
        "calibration_error": calibration_error(truth, guess),
    }


def paper_flops(
    mentor_parameters: float, mentor_tokens: float, intern_parameters: float, intern_tokens: float
) -> float:
    """The paper's cost of one question in FLOPs: `2 (θ_L L_L + θ_S (L_L + L_S))`.

    Reconstructed from Table 1 (its lengths reproduce its TFLOPs only with the factor 2): the intern is
    charged for reading the insight once and for its own output; prompts, attention and judging are free.
    """
    return 2.0 * (mentor_parameters * mentor_tokens + intern_parameters * (mentor_tokens + intern_tokens))
