# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # ensemblehub in a notebook
#
# Ask, ride, bench, compare, and a strategy of your own, on the pair of models that ships with the package: nothing is
# fetched and no GPU is needed. This file is a notebook in jupytext's percent format; `jupytext --to ipynb
# examples/notebook.py` makes the `.ipynb`, which Colab opens with *File, Upload notebook*. In Colab, run this first:
# `!pip install -q 'ensemblehub[eval]'` (or the URL of the repository with `git+`).

# %%
import tempfile
from pathlib import Path

import ensemblehub as eh

QUESTION = "There are 8 bowls. There are 3 more mugs than bowls. How many mugs are there?"

# %% [markdown]
# ## Ask
# The mentor writes an insight until the judge finds it sufficient; the intern answers. Every token is counted.

# %%
pair = eh.Ensemble.tandem(mentor="builtin:mentor", intern="builtin:intern")
result = pair.generate(QUESTION, max_tokens=256)
print(result.text)
print("insight:", result.insight)
print(f"{result.usage.cost.completion_tokens} tokens, {result.usage.cost.flops / 1e6:.0f} MFLOPs")

# %% [markdown]
# ## Ride
# The same live: pieces with their author, and the judge's verdicts between them.

# %%
for event in pair.stream(QUESTION, max_tokens=256):
    if event.type == "verdict":
        print(f"\n[{event.level}: {event.probability:.2f} -> {'enough' if event.sufficient else 'go on'}]")
    elif isinstance(event, eh.Piece):
        print(event.text, end="")

# %% [markdown]
# ## Bench
# Any number of configurations on a benchmark, graded, with an interval; a run that was killed goes on. The same as
# `ensemblehub bench FILE builtin:intern --task builtin_math --limit 12` in a shell.

# %%
from ensemblehub import builtin, cli

folder = Path(tempfile.mkdtemp())
limit = ["--task", "builtin_math", "--limit", "12", "--out", str(folder / "bench")]
cli.main(["bench", str(builtin.CONFIG), "builtin:intern", *limit])

# %% [markdown]
# ## Compare
# Paired on the same questions: the difference, its interval, and how many questions would tell the two apart.

# %%
cli.main(["compare", str(folder / "bench")])

# %% [markdown]
# ## A strategy of your own
# `ensemblehub init` writes one that works, with its test; `validate` runs the contract's checks on it.

# %%
import os
import sys

os.chdir(folder)
sys.path.insert(0, str(folder))
cli.main(["init", "strategy", "longest"])

from ensemblehub.lab.contracts.validation import validate

outcomes = validate("longest:Longest")
print(
    *(f"{'ok    ' if outcome.passed else 'FAILED'} {outcome.check.title}" for outcome in outcomes), sep="\n"
)

from longest import Longest

own = eh.Ensemble(["builtin:mentor", "builtin:intern"], aggregation=Longest(samples=1))
print(own.generate(QUESTION, max_tokens=128).text)

# %%
pair.close()
own.close()
