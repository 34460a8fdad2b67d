#!/usr/bin/env bash
# DeepSeek-R1-Distill-Qwen-32B and 7B on HumanEval, judged by the classifier trained on math and by one trained on code.
# `PAIR=builtin bash scripts/mentor_guided/exp_homo_humaneval.sh` runs it offline on the models that ship; flags go to `ensemblehub paper`.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" transfer deepseek humaneval "$@"
