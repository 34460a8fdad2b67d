"""Where a text states its answer: every kind of mark, what is no mark, and time."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ensemblehub.answers.equality import equal_answers, final_answer, last_boxed
from ensemblehub.lab.tasks.gsm8k import GSM8K

STATED = [
    "The correct answer is 73",
    "The correct answer is: **73**",
    "Final answer: 73",
    "FINAL ANSWER: **73**",
    "Answer is 73",
    "**Answer:** 73",
    "**Answer**: 73.",
    "**Answer: 73**",
    "**The answer is 73.**",
    "### Answer: 73",
    "answer：73",
    "## Final Answer\n\n**73**",
    "**Answer**\n\n73",
    "Final Answer:\n73",
    "Thus the answer is\n\n$$\n73\n$$\n",
    "The answer is:\n\n\\[ 73 \\]\n\nI hope it is correct.",
    "the final answer is \\(73\\).",
    "The answer is $73$!",
    "The answer is 73!",
    "The answer is 73.",
    "The answer is 73?",
    "The answer is ***73***.",
    "The answer is `73`.",
    "<answer>73</answer>",
    "<answer>\n\\(73\\)\n</answer>",
    "<ANSWER>73 apples</ANSWER>",
    "<answer>73",
    "A: 73",
    "Q: x?\n**A:** 73",
    "She makes 9 * 2 = $<<9*2=18>>18.\nA: 73",
    "A: $73",
    "#### 73",
    "####73",
    "#### $73.00",
    "the answer is <<70+3=73>>73.",
    "the answer is 5 ... #### 73",
    "#### 5\nThe answer is 73.",
    "\\boxed{5} No: the answer is 73.",
    "The answer is 5. \\boxed{73}",
    "A: 5\n<answer>73</answer>",
    "<answer>5</answer>\n#### 73",
    "The answer is 73, since 70 + 3 = 73.",
    "The answer is 70 + 3 = 73.",
    "The answer is $x = 73$.",
    "The answer is therefore 73.",
    "My final answer is 73",
    "ans: 73",
    "Answer = 73",
    "Answer → 73",
    "The answer to this problem is 73.",
    "The answer, rounded to an integer, is 73.",
    "The answer should be 73.",
    "The answer is equal to 73.",
    "The answer is 73<|im_end|>",
    "The answer is 73</s>",
    "The answer is 73\n\nQ: And then?",
    "\\boxed{73}\n\nI checked: the answer is correct.",
    "\\boxed{73}\n#### Why\nIt is so.",
    "Put it in \\boxed{}. The answer is 73",
    "\\boxed{73} is what goes into \\boxed{}.",
    "The answer is \\$73.",
    "The answer is $73.",
    "The answer is 73 miles per hour.",
    "Answer: She has 73 apples.",
    "Answer: **She has 73 apples.**",
    "Answer: She makes **$73** every 2 days.",
    '{"answer": "73"}',
    "The final answer is 73. This is because 5 + 68 = 73.",
    "Answer: (B) 73",
    "The answer is $\\textbf{(B) }73$.",
    "Final result: 73",
    "The answer is 73 (seventy-three).",
    "\\boxed{\\text{73 apples}}",
    "<think>the answer is 5</think>Answer: 73",
]
NOT_STATED = [
    "73",
    "= 73.",
    "So we get 73",
    "The answer is not 73.",
    "The answer isn't 73.",
    "If the answer is 73, we are wrong.",
    "The answer is less than 73.",
    "The answer is between 73 and 75.",
    "Is the answer 73?",
    "A = 73",
    "A. 73",
    "A) 73",
    "Area: 73",
    "A: 73\nB: 74\nC: 75",
    "A: 5\nB: 73",
    "#### Step 73",
    "#### 73. Compute the sum",
    "\\boxed{73",
    "boxed{73}",
    "answers 73",
    "The answer is -73",
    "The answer is .73",
    "The answer is 7.3",
    "The answer is 73x",
    "The answer is 73 or 74",
    "The answer is 73/2",
    "The answer is (73, 2)",
    "The answer is 2 * 73",
    "The answer is $73!$.",
    "Answer: Tom has 73 apples. He eats 2.",
    "\\boxed{73} or \\boxed{74}",
    "\\boxed{73}. The answer is 74.",
    "#### 73\n#### 74",
    "<answer></answer> 73",
]


@pytest.mark.parametrize("text", STATED)
def test_an_answer_is_read_in_the_forms_that_models_use(text):
    assert equal_answers("73", final_answer(text))


@pytest.mark.parametrize("text", NOT_STATED)
def test_what_is_no_answer_is_not_read_as_one(text):
    assert final_answer(text) is None or not equal_answers("73", final_answer(text))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is .5", ".5"),
        ("The answer is .5.", ".5"),
        ("The answer is -.5.", "-.5"),
        ("The answer is **.5**.", ".5"),
        ("The answer is $.5$", ".5"),
        ("#### .5", ".5"),
        ("A: -.5", "-.5"),
        ("The answer is 1.", "1"),
        ("The answer is 5! = 120.", "5! = 120"),
        ("The answer is $5!$.", "5!"),
        ("The answer is (C).", "(C)"),
        ("The answer is option B.", "B"),
        ("The answer is even.", "even"),
        ("The answer is Evelyn.", "Evelyn"),
        ("The answers are 3 and 4.", "3 and 4"),
        ("The answer is $3$ or $-3$.", "$3$ or $-3$"),
        ("The answer is {1, 2}.", "{1, 2}"),
        ("The answer is [1, 2).", "[1, 2)"),
        ("The answer is 2*3.", "2*3"),
        ("The answer is 4/3 ≈ 1.33.", "4/3 ≈ 1.33"),
        ("The answer is $-\\frac{1}{2}$.", "-\\frac{1}{2}"),
        ("The answer is", None),
        ("The answer is in the box.", None),
        ("A: Let's think step by step. There are 5.", None),
    ],
)
def test_an_answer_is_read_whole(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("$y=\\boxed{-7}$ or $y=\\boxed{7}$.", "-7, 7"),
        ("$\\boxed{2}$, $\\boxed{3}$, and $\\boxed{5}$.", "2, 3, 5"),
        ("$\\boxed{3}$ cm or $\\boxed{4}$ cm", "3, 4"),
        ("\\boxed{60}^\\circ \\text{ or } \\boxed{120}^\\circ", "60, 120"),
        ("$(x,y)=\\boxed{(1,2)}$ and $(x,y) = \\boxed{(2,1)}$", "(1,2), (2,1)"),
        ("\\[x_1=\\boxed{2},\\quad x_2=\\boxed{3}\\]", "x_1 = 2, x_2 = 3"),
        ("\\(\\boxed 3\\) and \\(\\boxed 4\\)", "3, 4"),
        ("\\boxed{7} or \\boxed{7}", "7"),
        ("$2x = \\boxed{6}, x = \\boxed{3}$", "3"),
        ("\\boxed{5}, so \\boxed{7}", "7"),
        ("\\boxed{5} and so $x = \\boxed{7}$", "7"),
        ("\\boxed{7} no, \\boxed{8}", "8"),
        ("so \\boxed{2}. And \\boxed{3}", "3"),
        ("\\boxed{5} apples. Then we get \\boxed{7}", "7"),
    ],
)
def test_several_boxes_are_one_answer_where_they_are_joined(text, boxed):
    assert last_boxed(text) == boxed


def test_two_boxes_are_a_set_and_one_of_them_is_not_enough():
    gold = last_boxed("so $y=\\boxed{-7}$ or $y=\\boxed{7}$.")
    for right in (
        "\\boxed{7, -7}",
        "\\boxed{\\pm 7}",
        "$y = \\boxed{7}$ or $y = \\boxed{-7}$",
        "The answer is 7 or -7.",
    ):
        assert equal_answers(gold, final_answer(right))
    for wrong in ("\\boxed{7}", "\\boxed{-7}", "\\boxed{7} or \\boxed{8}", "\\boxed{7, -7, 0}"):
        assert not equal_answers(gold, final_answer(wrong))
    twice = last_boxed("$\\boxed{15\\frac{39}{40}},$ or $\\boxed{\\frac{639}{40}}$ inches.")  # of MATH-500
    assert equal_answers("\\frac{639}{40}", twice)


def test_gsm8k_s_own_labelled_solutions_are_read(tmp_path):
    """Their form, as published with GSM8K."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"question": "How much?", "answer": "16 - 3 - 4 = <<16-3-4=9>>9\\n9 * 2 = $<<9*2=18>>18\\n#### 18"}\n'
    )
    task = GSM8K(data=path)
    (item,) = task.items("test")
    right = "She has 9 eggs for sale so 2 * 9 = $<<2*9=18>>18 per day\nA: 18"
    assert task.grade(item, right).correct
    assert not task.grade(item, right.replace("A: 18", "A: 26")).correct
    assert task.grade(item, right.split("A:")[0]).reason == "no boxed answer"


HOSTILE = [
    "\\boxed{",
    "{",
    "}",
    "\\boxed ",
    "\\boxed{1},",
    "\\boxed{} ",
    "$",
    "\\",
    "9",
    "the answer is ",
    "answer to ",
    "final answer\n",
    "#### ",
    "<answer>",
    "A:\n",
    "\n",
    " ",
    "**",
    "<<",
    "\\frac{1}{",
    "½",
    "(",
    "\ud800",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_anything_takes_time_in_proportion(unit):
    text = unit * (1_000_000 // len(unit))
    started = time.process_time()
    equal_answers("73", final_answer(f"The answer is:{text}\\boxed{{{text}") or "")
    assert time.process_time() - started < 5  # of two megabytes about 0.6; quadratic ones took minutes


@example(["the answer is ", "answer", "**", "9", "\\boxed{} ", "**"])
@given(
    st.lists(
        st.sampled_from([*HOSTILE, "\\boxed{1}", " or ", "answer", " is ", ":", "A", "#", ".", "x=", "1"]),
        max_size=40,
    )
)
def test_finding_never_fails(parts):
    text = "".join(parts)
    answer = final_answer(text)
    assert answer is None or answer == answer.strip() != ""
