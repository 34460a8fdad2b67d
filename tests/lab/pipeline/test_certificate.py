"""Certificates by hand, against MAPIE, and in a simulation whose risk is known."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy")

from ensemblehub.errors import ConfigError
from ensemblehub.lab.pipeline import calibration
from ensemblehub.lab.pipeline.cascade import Outcomes
from ensemblehub.lab.pipeline.cascade import replay as cascade
from ensemblehub.lab.pipeline.certificate import (
    Promise,
    Settings,
    betting_p_values,
    certified,
    fewest,
    kept,
    needed,
    p_values,
)
from ensemblehub.lab.pipeline.certificate_path import along, path_of
from ensemblehub.tandem.certificate import percent

# Four questions, three settings that lose 0, 1 and 2 of them and gain 0, 0 and 1.
HAND = Settings(
    mentor_correct=np.array([1, 1, 1, 0], bool),
    mentor_cost=np.full(4, 10.0),
    correct=np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]], bool),
    cost=np.tile([12.0, 5.0, 2.0], (4, 1)),
)


def made(n, losses, shares, gains=None):
    """Settings on n questions that lose and gain given numbers of them at given costs."""
    gains = gains or [0] * len(losses)
    half = n // 2  # the mentor is right on the first half
    correct = np.zeros((n, len(losses)), bool)
    for index, (lost, gained) in enumerate(zip(losses, gains, strict=True)):
        correct[lost:half, index] = True
        correct[half : half + gained, index] = True
    return Settings(np.arange(n) < half, np.ones(n), correct, np.tile(shares, (n, 1)))


# Losses and tests by hand


def test_losses_by_hand():
    assert HAND.losses("lost-correct").tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert HAND.losses("net").tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, -1]]
    assert HAND.shares.tolist() == [1.2, 0.5, 0.2]


def test_binomial_p_values_by_hand():
    # at a rate of 1/2: none of 4 lost 1/16, at most one 5/16, at most two 11/16
    assert p_values(HAND.losses("lost-correct"), Promise(0.5)) == pytest.approx([1 / 16, 5 / 16, 11 / 16])


def test_the_path_ends_at_the_first_setting_that_fails():
    losses = made(1000, [0, 9, 40, 5], [0.9, 0.6, 0.5, 0.4]).losses("lost-correct")
    assert (
        kept(losses, Promise(0.02)) == 2
    )  # 9 of 1,000 have a p-value of 0.005, 40 fail; what follows is not tested
    assert kept(losses, Promise(0.02, 0.999)) == 1  # 0.98 ** 1000 alone is below 0.001


def test_cost_decides_among_the_certified():
    assert certified(made(1000, [0, 5, 9], [0.9, 0.5, 0.7]), Promise(0.02)) == 1


def test_capital_by_hand():
    # The first bet is min(sqrt(2 ln 2 / (1 · 0.25)), 0.75 / 0.5) = 1.5 on 0.5 − loss: 1.75 after a loss of 0.
    assert betting_p_values(np.array([[0.0]]), 0.5, 0.5) == pytest.approx([1 / 1.75])
    assert betting_p_values(np.array([[1.0]]), 0.5, 0.5) == pytest.approx([1.0])


def test_gains_make_up_for_losses_only_where_that_is_promised():
    settings = made(2000, [40], [0.5], gains=[60])
    assert certified(settings, Promise(0.01, loss="net")) == 0
    with pytest.raises(ConfigError, match="no number of questions"):
        certified(settings, Promise(0.01))


# Refusals


@pytest.mark.parametrize(("max_loss", "confidence"), [(0.02, 0.95), (0.05, 0.9), (0.001, 0.99)])
def test_the_fewest_questions_that_certify_anything(max_loss, confidence):
    # (1 − max_loss) ** n must not exceed 1 − confidence
    fewest = math.ceil(math.log(1 - confidence) / math.log(1 - max_loss))
    found = needed(np.zeros(50), Promise(max_loss, confidence))
    assert fewest <= found <= fewest * 1.002
    assert kept(np.zeros((found, 1)), Promise(max_loss, confidence)) == 1
    assert kept(np.zeros((fewest - 1, 1)), Promise(max_loss, confidence)) == 0


def test_too_little_data_is_refused_with_the_number_that_would_do():
    few = made(100, [0, 1], [1.1, 0.5])
    with pytest.raises(
        ConfigError, match=r"100 questions are too few for 2\.00%.* 1\.00%.* about 590 would do"
    ) as error:
        certified(few, Promise(0.02))
    assert "\n" not in str(error.value)
    assert certified(made(600, [0, 6], [1.1, 0.5]), Promise(0.02)) == 1


def test_a_refusal_does_not_round_the_promise():
    with pytest.raises(ConfigError, match=r" too few for 2\.545% with 99\.95% confidence where 0\.00% "):
        certified(made(100, [0, 0], [1.1, 0.5]), Promise(0.02545, 0.9995))
    with pytest.raises(ConfigError, match=r"; no number of questions would certify 0\.04%"):
        certified(made(1000, [0, 500], [1.1, 0.5]), Promise(0.0004))
    assert str(Promise(0.0254, 0.9999999)) == "lost-correct at most 0.0254 with confidence 0.9999999"
    assert str(Promise(0.03)) == "lost-correct at most 0.03 with confidence 0.95"


@pytest.mark.parametrize(
    ("share", "decimals", "said"),
    [
        (0.03, 1, "3.0%"),
        (0.03, 2, "3.00%"),
        (0.95, 0, "95%"),
        (0.9, 0, "90%"),
        (0.999, 0, "99.9%"),
        (0.0254, 1, "2.54%"),
        (0.028, 1, "2.8%"),  # 100 * 0.028 is 2.8000000000000003
        (0.0004, 1, "0.04%"),
        (1e-07, 1, "0.00001%"),
        (np.float64(0.29), 1, "29.0%"),
    ],
)
def test_a_promise_is_printed_with_all_of_its_digits(share, decimals, said):
    assert percent(share, decimals) == said


def test_as_many_net_questions_as_named_certify_about_every_second_time():
    random = np.random.default_rng(5)
    drawn = random.choice([-1.0, 0, 1], (4000, 200), p=[0.03, 0.93, 0.04])
    size = needed(drawn[:, 0], Promise(0.03, loss="net"))
    share = np.mean(betting_p_values(drawn[:size], 0.03, 0.05) <= 0.05)
    assert 0.3 < share < 0.9


def test_a_refusal_names_more_questions_than_there_were():
    settings, named = made(1000, [40], [0.5], [30]), []
    for seed in range(40):  # the order of the questions decides whether the bets win
        order = np.random.default_rng(seed).permutation(1000)
        drawn = Settings(**{name: table[order] for name, table in vars(settings).items()})
        try:
            certified(drawn, Promise(0.03, loss="net"))
        except ConfigError as error:
            named.append(int(re.search(r"about ([\d,]+) would do", str(error))[1].replace(",", "")))
    assert 5 < len(named) < 40
    assert 1000 < min(named) <= max(named) < 3000


@pytest.mark.parametrize(
    ("max_loss", "confidence", "least"), [(0.05, 0.95, 59), (0.5, 0.75, 2), (0.02, 0.95, 149)]
)
def test_fewer_questions_than_the_fewest_certify_nothing(max_loss, confidence, least):
    promise = Promise(max_loss, confidence)
    assert fewest(promise) == least
    assert kept(np.zeros((least, 1)), promise) == 1
    assert kept(np.zeros((least - 1, 1)), promise) == 0
    net = Promise(max_loss, confidence, "net")
    assert kept(np.full((fewest(net) - 1, 1), -1.0), net) == 0  # though each is gained


@pytest.mark.parametrize(("loss", "low"), [("lost-correct", r"1\.79"), ("net", r"0\.00")])
def test_one_loss_in_ten_does_not_tell_that_no_number_would_do(loss, low):
    said = rf"lose 10\.00% .* \({low}% to .*, n = 10\); so few questions do not tell whether more would certify 5"
    with pytest.raises(ConfigError, match=said):
        certified(made(10, [1], [0.5]), Promise(0.05, loss=loss))
    with pytest.raises(ConfigError, match="no number of questions would certify 5"):
        certified(made(100, [12], [0.5]), Promise(0.05, loss=loss))  # 7.0 to 19.8 %


def test_what_costs_as_much_as_the_mentor_is_no_use():
    with pytest.raises(ConfigError, match="nothing to certify"):
        certified(made(1000, [0], [1.3]), Promise(0.02))


@pytest.mark.parametrize(
    "options", [{"max_loss": 0.0}, {"max_loss": 1.0}, {"max_loss": 0.1, "confidence": 1.0}]
)
def test_promises_that_cannot_be(options):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Promise(**options)
    with pytest.raises(ConfigError, match="did you mean 'net'"):
        Promise(0.1, loss="nett")


# Against MAPIE


def test_p_values_and_settings_are_those_of_mapie():
    control = pytest.importorskip("mapie.risk_control.fwer_control").control_fwer
    reference = pytest.importorskip("mapie.risk_control.methods").compute_hoeffding_bentkus_p_value
    random = np.random.default_rng(1)
    for n in (200, 1000, 4096):
        losses = (random.random((n, 12)) < np.linspace(0.002, 0.04, 12)).astype(float)
        ours = p_values(losses, Promise(0.03, 0.9))
        # Shares of a power of two are exact; of others, MAPIE counts one loss more where n · (k / n) is above k.
        theirs = reference(losses.mean(axis=0), n, 0.03, binary=True)[:, 0]
        if n == 4096:
            assert ours == pytest.approx(theirs)
        assert (ours <= theirs + 1e-12).all()
        assert kept(losses, Promise(0.03, 0.9)) == len(control(ours, 0.1, "fixed_sequence"))


# Simulations of known risk


@pytest.mark.parametrize(("loss", "gain"), [("lost-correct", 0.0), ("net", 0.03)])
def test_the_promise_is_broken_as_rarely_as_it_says(loss, gain):
    """Settings of known risk, from below to above the promise: the chosen one is above in at most 10 % of draws."""
    random = np.random.default_rng(0)
    risks, promise = np.linspace(0.005, 0.06, 23), Promise(0.03, 0.9, loss)
    uniform = random.random((1000, 600))
    broken = powerless = 0
    for draw in uniform:
        lost = (draw[:, None] < risks + gain).astype(float)  # nested, as along a path
        losses = lost - (draw[:, None] > 1 - gain)
        last = kept(losses, promise) - 1
        broken += last >= 0 and risks[last] > 0.03
        powerless += last < 0
    error = 3 * math.sqrt(0.1 * 0.9 / 1000)
    assert broken / 1000 <= 0.1 + error
    if loss == "lost-correct":  # exact: what is not used of the 10 % is the step of the path and of the count
        assert broken / 1000 > 0.03
        assert powerless < 50


# Paths


def synthetic(n, seed, fallback="mentor"):
    random = np.random.default_rng(seed)
    ease = random.normal(0, 1.2, (n, 1)) + 0.5 * np.arange(2)
    reached = np.cumsum(random.uniform(5, 10, (n, 2)), axis=1)
    return Outcomes(
        probabilities=1 / (1 + np.exp(-ease)),
        correct=random.random((n, 2)) < 1 / (1 + np.exp(-ease)),
        cost=reached + random.uniform(1, 5, (n, 2)),
        judging=np.ones((n, 2)),
        reached=reached,
        mentor_correct=random.random(n) < 0.8,
        mentor_cost=random.uniform(80, 120, n),
        visited=np.ones((n, 2), bool),
        fallback=fallback,
    )


@pytest.mark.parametrize("loss", ["lost-correct", "net"])
@pytest.mark.parametrize("fallback", ["mentor", "best"])
def test_a_path_is_every_trade_of_loss_against_cost_on_the_training_questions(loss, fallback):
    training = synthetic(80, 3, fallback)
    path = path_of(training, loss)
    settings = along(training, path)
    losses, shares = settings.losses(loss).mean(axis=0), settings.shares
    assert (np.diff(losses) > 0).all()
    assert (np.diff(shares) < 0).all()
    grids = [calibration.candidates(column) for column in training.heard.T]
    for thresholds in np.stack(np.meshgrid(*grids), -1).reshape(-1, 2):
        other = along(training, np.array([[thresholds, [0, 0]]]))
        better = (losses <= other.losses(loss).mean() + 1e-9) & (shares <= other.shares + 1e-9)
        assert better.any()
    if fallback == "mentor" and loss == "lost-correct":
        assert losses[0] == 0  # the safe end: the mentor answers


def test_settings_are_replays():
    outcomes = synthetic(30, 4)
    path = np.array([[[0.9, 0.8], [0, 0]], [[0.5, 0.2], [0.3, 0]]])
    settings = along(outcomes, path)
    for index, (thresholds, below) in enumerate(path):
        run = cascade(outcomes.giving_up(below), thresholds)
        assert settings.correct[:, index].tolist() == run.correct.tolist()
        assert settings.cost[:, index].tolist() == run.cost.tolist()


def test_certified_thresholds_keep_their_promise_on_fresh_questions():
    path = path_of(synthetic(400, 0), "lost-correct")
    fresh = along(synthetic(20_000, 1), path)
    risk, promise = fresh.losses("lost-correct").mean(axis=0), Promise(0.05)
    chosen = [certified(along(synthetic(1500, seed), path), promise) for seed in range(2, 42)]
    assert (risk[chosen] > 0.05).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 40)
    assert fresh.shares[chosen].mean() < 0.95
    assert replace(promise, confidence=0.5).error == 0.5


def chosen_of_three(n, seed):
    """A learned selection among three models: nothing is spent on those that are passed over."""
    random = np.random.default_rng(seed)
    ease = random.normal(0, 2, (n, 1)) + np.array([0.0, 1.0, 2.5])
    correct = random.random((n, 3)) < 1 / (1 + np.exp(-ease))
    cost = np.tile([1.0, 4.0, 20.0], (n, 1))
    return Outcomes(
        probabilities=1 / (1 + np.exp(-ease)),
        correct=correct,
        cost=cost,
        judging=np.full((n, 3), 0.1),
        reached=np.zeros((n, 3)),
        mentor_correct=correct[:, -1],
        mentor_cost=cost[:, -1],
        visited=np.ones((n, 3), bool),
    )


def test_a_selection_is_certified_like_a_tandem():
    path = path_of(chosen_of_three(800, 0), "lost-correct")
    settings = along(chosen_of_three(1500, 1), path)
    assert not settings.losses("lost-correct")[:, 0].any()  # the safe end: always the most expensive
    at = certified(settings, Promise(0.05))
    fresh = along(chosen_of_three(20_000, 2), path)
    assert fresh.losses("lost-correct")[:, at].mean() <= 0.05
    assert fresh.shares[at] < 0.9
