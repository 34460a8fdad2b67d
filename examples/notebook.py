# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # ensemblehub in a notebook
#
# Ask, ride, bench, compare, and a strategy of your own, on the pair of models that ships with the package: no model is
# fetched and no GPU is needed. The first cell installs the package where it is missing, in Colab for example.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("ensemblehub") is None:
    # ENSEMBLEHUB_SOURCE: another source, such as "ensemblehub[eval] @ git+https://HOST/OWNER/REPO" or "FILE.whl[eval]"
    source = os.environ.get("ENSEMBLEHUB_SOURCE", "ensemblehub[eval]")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

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
from ensemblehub import builtin

folder = Path(tempfile.mkdtemp())


def command(*arguments: object) -> None:
    """Run a command of ensemblehub in `folder` and show what it prints."""
    line = [sys.executable, "-m", "ensemblehub", *map(str, arguments)]
    plain = {**os.environ, "FORCE_COLOR": ""}  # no progress bar, which Jupyter would show line by line
    print(subprocess.run(line, cwd=folder, env=plain, stdout=subprocess.PIPE, text=True, check=True).stdout)


command("bench", builtin.CONFIG, "builtin:intern", "--task", "builtin_math", "--limit", 12, "--out", "bench")

# %% [markdown]
# ## Compare
# Paired on the same questions: the difference, its interval, and how many questions would tell the two apart.

# %%
command("compare", "bench")

# %% [markdown]
# ## A strategy of your own
# `ensemblehub init` writes one that works, with its test; `validate` runs the contract's checks on it.

# %%
command("init", "strategy", "longest")
command("validate", "longest:Longest")

sys.path.insert(0, str(folder))
from longest import Longest

own = eh.Ensemble(["builtin:mentor", "builtin:intern"], aggregation=Longest(samples=1))
print(own.generate(QUESTION, max_tokens=128).text)

# %%
pair.close()
own.close()
