"""The simulation of pools of servers: worked by hand, and against the cases that were measured."""

import json
from pathlib import Path
from random import Random

import pytest
import simpy

from benchmarks.pools import (
    Question,
    Server,
    Speed,
    Tandem,
    closed_loop,
    least_loaded,
    open_loop,
    prefix_aware,
)

KEPT = json.loads((Path(__file__).parents[1] / "results/scale/pool_cases.json").read_text())
SPEED = Speed(((1, 0.1), (3, 0.2)), read=0.01)
ONE = Question(prompt=10, mentor_prompt=20, checkpoints=(4, 6), closing=1, answer=5, rest=50)


def pool(env, count=1, rows=8, cache=1000):
    return [Server(env, SPEED, rows, cache, simpy.Resource(env)) for _ in range(count)]


def run(at_once=1, questions=(ONE,), **options):
    env = simpy.Environment()
    tandem = Tandem(env, pool(env), pool(env), **options)
    return tandem, closed_loop(tandem, questions, at_once)


def test_a_pass_takes_longer_with_more_rows():
    assert [SPEED.write(rows) for rows in (1, 2, 3, 5)] == pytest.approx([0.1, 0.15, 0.2, 0.3])


def test_a_question_alone_takes_what_its_passes_take():
    """A pass that only reads takes a step besides its tokens, as its first prediction does."""
    tandem, (seconds,) = run(pauses=True)
    reads = (0.1 + 10 * 0.01) + (0.1 + 4 * 0.01) + (0.1 + 2 * 0.01)  # the question, 4 and 2 tokens of insight
    mentor = (0.1 + 20 * 0.01) + 6 * 0.1
    answer = (0.1 + 1 * 0.01) + 5 * 0.1  # the rest is cached
    assert seconds == pytest.approx(reads + mentor + answer)
    assert (tandem.mentors[0].wrote, tandem.interns[0].wrote) == (6, 5)


def test_a_mentor_that_is_not_stopped_writes_its_whole_answer_and_delays_nobody_alone():
    stopped, first = run(early_stop=True)
    whole, second = run(early_stop=False)
    whole.env.run()
    assert first == second
    assert 6 <= stopped.mentors[0].wrote < 20  # it writes on while the intern reads
    assert whole.mentors[0].wrote == 56


def test_rows_share_passes_up_to_the_limit_of_a_server():
    env = simpy.Environment()
    (server,) = pool(env, rows=2)
    question = Question(10, 0, (), 1, 10, alone=False)
    together = closed_loop(Tandem(env, [], [server]), [question] * 4, 4)
    assert together[0] == together[1] < together[2] == together[3]
    assert server.wrote == 40


def test_prefix_aware_routing_reads_a_question_once():
    read = {}
    for route in (least_loaded, prefix_aware):
        env = simpy.Environment()
        tandem = Tandem(env, pool(env), pool(env, 8), route=route, pauses=True)
        closed_loop(tandem, [ONE] * 20, 1)
        read[route] = sum(server.read for server in tandem.interns)
    assert read[prefix_aware] == 20 * (10 + 6 + 1)
    assert read[least_loaded] > 1.5 * read[prefix_aware]


def test_a_small_cache_forgets_and_a_busy_server_is_avoided():
    env = simpy.Environment()
    first, second = pool(env, 2, rows=4, cache=30)
    closed_loop(Tandem(env, [], [first]), [Question(20, 0, (), 1, 5)] * 3, 1)
    assert (first.known(0), first.known(2)) == (0, 26)
    assert prefix_aware([first, second], 2, None) is first
    first.load = 5
    assert prefix_aware([first, second], 2, Random(0)) is second


def test_an_overloaded_pool_makes_questions_wait():
    waits = []
    for rate in (0.1, 2.0):
        env = simpy.Environment()
        took = open_loop(
            Tandem(env, pool(env), pool(env)), lambda random: (random.random(), ONE), rate, 200.0
        )
        waits.append(sum(took) / len(took))
    assert waits[1] > 2 * waits[0]


@pytest.mark.parametrize("case", KEPT["cases"], ids=lambda case: f"{case['at_once']} at once")
def test_the_measured_cases_are_reproduced_within_15_percent(case):
    from benchmarks.pool_cases import WITHIN, figures, simulated

    speeds = {name: Speed(tuple(map(tuple, kept.pop("steps"))), **kept) for name, kept in speeds_of()}
    asked = [Question(**{**each, "checkpoints": tuple(each["checkpoints"])}) for each in KEPT["questions"]]
    found = figures(simulated(speeds, KEPT["judging"], asked, case["at_once"]))
    for name, ours in case["measured"].items():
        assert found[name] == pytest.approx(ours, rel=WITHIN), name


def speeds_of():
    return [(name, dict(kept)) for name, kept in KEPT["speeds"].items()]
