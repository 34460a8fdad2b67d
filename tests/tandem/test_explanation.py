import pytest

from ensemblehub.schema import Verdict
from ensemblehub.tandem.explanation import explanation


def verdict(tokens, probability, sufficient=False, criterion=""):
    level = tokens if isinstance(tokens, str) else "low" if tokens else "none"
    return Verdict(level, 0 if level == tokens else tokens, probability, 0.9, sufficient, criterion)


@pytest.mark.parametrize(
    ("verdicts", "line"),
    [
        ([], None),
        (
            [verdict(0, 0.41), verdict(62, 0.934, True)],
            "stopped at 62 mentor tokens, p(sufficient) 0.93; alone the intern would have had 0.41; "
            "estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict(0, 0.95, True)],
            "answered without the mentor, p(sufficient) 0.95; estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict(20, 0.2), verdict(62, 0.3)],
            "no level sufficed, the last at 62 mentor tokens, p(sufficient) 0.30; written by a; "
            "estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict(0, 0.2)],  # and the mentor is given up
            "the intern alone did not suffice, p(sufficient) 0.20; written by a; estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict("draft", 0.37), verdict("draft", 0.5)],
            "no draft was accepted, p(sufficient) 0.50; written by a; estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict("draft", 0.95, True, "logprob")],  # no probability that it suffices
            "the draft was accepted, logprob score 0.95, 0.90 suffices; estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict(0, 0.7, criterion="entropy"), verdict(62, 0.93, True, "entropy")],
            "stopped at 62 mentor tokens, entropy score 0.93, 0.90 suffices; alone the intern would have had "
            "0.70; estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict(0, 0.7, criterion="logprob"), verdict(62, 0.93, True)],  # on two scales
            "stopped at 62 mentor tokens, p(sufficient) 0.93; estimated saving 57 % (48 to 63)",
        ),
        (
            [verdict("draft", 0.37), verdict("draft", 1, True)],
            "the draft was accepted, p(sufficient) 1.00; estimated saving 57 % (48 to 63)",
        ),
    ],
)
def test_the_line(verdicts, line):
    # 43 of 100, of 43 / 0.52 and of 43 / 0.37
    assert explanation(verdicts, "written by a", 43.0, (100.0, 43 / 0.52, 43 / 0.37)) == line


def test_a_run_that_cost_more_and_one_without_an_estimate():
    assert explanation([verdict(62, 0.3)], "", 120.0, (100.0, 80.0, 150.0)).endswith(
        "estimated saving -20 % (-50 to 20)"
    )
    assert explanation([verdict(62, 0.3)], "", 100.1, (100.0, 80.0, 150.0)).endswith("saving 0 % (-25 to 33)")
    assert (
        explanation([verdict(62, 0.3, True)], "", 120.0, None)
        == "stopped at 62 mentor tokens, p(sufficient) 0.30"
    )
