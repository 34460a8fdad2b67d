#!/usr/bin/env bash
# Measures Qwen2.5-Coder-Instruct 1.5B and 0.5B (Q4_K_M GGUF), alone and together: all of results/qwen_coder/.
#
#   DATA=FOLDER scripts/qwen_coder.sh [STEP...]
#
# STEP is one of (default: all, in this order)
#   published   both models with the makers' prompts, on HumanEval and MBPP+, to compare with their figures
#   words       candidate words for insights, on training questions of MBPP
#   judges      collects MBPP's training and calibration questions; trains and calibrates judges on them
#   mbpp        Tandem on MBPP's test questions: fixed levels, random mix, oracle and the judges
#   mbpp_plus   the same answers by EvalPlus's tests, where it has the question (224 of 500); no model is called
#   humaneval   the same on HumanEval, the judges unchanged
#   gsm8k       the same on GSM8K
#   drafts      the same three with the intern's draft first, which is judged by its log-probability; the mentor is not asked again
#   judged      the same on MBPP, where a trained judge that also reads the question judges the draft
#   advise      what `ensemblehub advise` recommends on the three, from what was collected
#   toolkit     every other way to combine the two, on the first test questions of MBPP
#   rivals      every rival of Tandem at three settings, live, on the first questions of the three
#   guest       the token-level ways across vocabularies, with SmolLM2-135M
#   dry_run     a pilot of 20 questions of `published`, and what it predicts beside that whole run
#   board       all of them as one page, board.html
#
# Steps take the first N questions of a split in its seeded order; N=COUNT overrides the numbers below, and a larger
# one extends what is there.  DATA holds humaneval.jsonl, mbpp.jsonl, MbppPlus-v0.1.0.jsonl, gsm8k_train.jsonl and
# gsm8k_test.jsonl in their public forms.  The models are fetched by `ensemblehub pull qwen-coder`, or lie in
# PAIR_FOLDER.  A core reads some 40 and writes some 30 tokens a second on the 1.5B, so a step takes an hour: interrupt
# it whenever you like, the same command goes on.  PYTHON names the interpreter.
set -euo pipefail
: "${DATA:?names the folder of the benchmarks}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi; fi
out=results/qwen_coder
params=ensemble.output_aggregation_params

hub() { "$PYTHON" -m ensemblehub "$@"; }

bench() { # CELLS FOLDER TASK FILE COUNT [flags]
    hub bench "$out/$1.yaml" --out "$out/$2" --task "$3" --data "$DATA/$4" --limit "${N:-$5}" --prompt official --reuse "${@:6}"
}

tandem() { # COMMAND [flags]
    hub "$1" -c "$out/tandem.yaml" --data "$DATA/mbpp.jsonl" "${@:2}"
}

judge() { # FOLDER KIND [settings]: train and calibrate
    local settings=(-s "$params.judge=$out/judges/$1" -s "experiment.judge=$2" "${@:3}")
    tandem train "${settings[@]}" && tandem calibrate "${settings[@]}"
}

replay() { # report of what was collected, with every judge, or those in JUDGES
    local judges=()
    for name in ${JUDGES:-logistic mlp entropy perplexity insight_first intern_or_mentor}; do judges+=(--replay "$out/judges/$name"); done
    tandem report "${judges[@]}" "$@"
}

moved() { # TASK SPLIT FILE COUNT [flags]: another benchmark, the judges unchanged
    local there=(--dataset "$1" --data "$3" --split "$2" -s "experiment.results=$out/tandem_$1" "${@:5}")
    tandem collect "${there[@]}" --limit "$4"
    replay "${there[@]}"
}

drafted() { # FOLDER CRITERION TASK SPLIT FILE COUNT [flags]: what was collected, with the intern's drafts, into FOLDER_TASK
    local there=(--dataset "$3" --data "$5" --split "$4" -s "experiment.results=$out/$1_$3" -s "$params.draft=$2" "${@:7}")
    mkdir -p "$out/$1_$3"
    cp -rn "$out/tandem_$3/collected" "$out/$1_$3/"
    tandem collect "${there[@]}" --limit "$6"
    [ "$4" = calibration ] || JUDGES=$(cd "$out/judges" && echo "$1" "$1"_*) replay "${there[@]}"
}

drafts() { # FOLDER CRITERION NAME BUDGET: thresholds on MBPP's calibration questions, then its test questions
    drafted "$1" "$2" mbpp calibration "$DATA/mbpp.jsonl" "${N:-90}"
    local at=(-s "experiment.results=$out/$1_mbpp" -s "$params.draft=$2") mentor=(-s "$params.effort=none" -s "$params.fallback=mentor")
    judge "$1" logistic "${at[@]}"
    judge "$1_$3" logistic "${at[@]}" -s "experiment.aim=budget:$4"
    judge "$1_or_mentor" logistic "${at[@]}" "${mentor[@]}" -s experiment.aim=budget:0.8
    judge "$1_or_mentor_90" logistic "${at[@]}" "${mentor[@]}" -s experiment.aim=budget:0.9
    drafted "$1" "$2" mbpp test "$DATA/mbpp.jsonl" "${N:-500}"
}

advise() { # TASK SPLIT FILE COUNT [flags]: the most accurate at the mentor's cost, and the cheapest within 1.5 points, in cost/
    local folder=$out/advise_$1
    local asked=(hub advise -c "$out/tandem.yaml" --task "$1" --data "$3" --split "$2" --n "$4" --all --samples 0 \
        --collected "$out/draft_$1/collected" "${@:5}")
    "${asked[@]}" --aim accuracy --out "$folder"
    mkdir -p "$folder/cost"
    mv "$folder/recorded.jsonl" "$folder/cost/"
    "${asked[@]}" --aim cost --out "$folder/cost"
    mv "$folder/cost/recorded.jsonl" "$folder/"
    gzip --best --no-name --force "$folder/recorded.jsonl"
}

rivals() { # CELLS FOLDER TASK FILE COUNT [flags]: paired to the mentor and to a fixed level, the best on MBPP
    bench "$@"
    local base
    for base in mentor tandem,_32_tokens; do
        hub compare --mixes "$out/$2/answers/$base.jsonl" "$out/$2" > "$out/$2/against_$base.md"
    done
    gzip --best --no-name --force "$out/$2"/answers/*.jsonl
}

[ $# -gt 0 ] || set -- published words judges mbpp mbpp_plus humaneval gsm8k drafts judged advise toolkit rivals guest dry_run board
for step; do
    case "$step" in
        published)
            bench published published_humaneval humaneval humaneval.jsonl 164 --split all
            # the published 1.5B figures are shares of all 399 functions, those of the 0.5B of the 378 of version 0.2.0
            bench published published_mbpp mbpp_plus MbppPlus-v0.1.0.jsonl 399 --split v0.1.0
            ;;
        words) bench words words mbpp mbpp.jsonl 30 --split train ;;
        judges)
            tandem collect --split train --limit "${N:-374}"
            tandem collect --split calibration --limit "${N:-90}"
            for kind in logistic mlp entropy perplexity; do judge "$kind" "$kind"; done
            judge insight_first logistic -s "$params.start_with_intern=false"
            judge intern_or_mentor logistic -s "$params.effort=none" -s "$params.fallback=mentor"
            ;;
        mbpp)
            tandem collect --split test --limit "${N:-500}"
            replay
            ;;
        mbpp_plus)
            "$PYTHON" -m benchmarks.regrade "$out"/tandem_mbpp/collected "$out"/tandem_mbpp_plus/collected \
                --task mbpp_plus --data "$DATA/MbppPlus-v0.1.0.jsonl" --workers 2
            replay --dataset mbpp_plus --data "$DATA/MbppPlus-v0.1.0.jsonl" -s "experiment.results=$out/tandem_mbpp_plus"
            ;;
        humaneval) moved humaneval all "$DATA/humaneval.jsonl" "${N:-164}" ;;
        gsm8k) moved gsm8k test "$DATA/gsm8k_test.jsonl" "${N:-400}" --prompt plain ;; # the profile of MBPP is one of code
        drafts)
            drafts draft logprob half 0.5
            drafted draft logprob humaneval all "$DATA/humaneval.jsonl" "${N:-164}"
            drafted draft logprob gsm8k test "$DATA/gsm8k_test.jsonl" "${N:-400}" --prompt plain
            ;;
        judged)
            "$PYTHON" -m ensemblehub.lab.judges.drafts "$out/tandem.yaml" "$out/judges/of_drafts" --task mbpp --data "$DATA/mbpp.jsonl" \
                --limit "${N:-374}" --question
            drafts judged "$out/judges/of_drafts" budget_70 0.7 # nothing keeps half: the judge reads the question
            ;;
        advise)
            advise mbpp test "$DATA/mbpp.jsonl" "${N:-500}"
            advise humaneval all "$DATA/humaneval.jsonl" "${N:-164}"
            advise gsm8k test "$DATA/gsm8k_test.jsonl" "${N:-400}" --prompt plain
            ;;
        toolkit) bench cells toolkit mbpp mbpp.jsonl 8 ;;
        rivals)
            rivals rivals rivals mbpp mbpp.jsonl 24
            rivals rivals rivals_humaneval humaneval humaneval.jsonl 24 --split all
            rivals rivals_gsm8k rivals_gsm8k gsm8k gsm8k_test.jsonl 24 --prompt plain
            ;;
        guest) bench guest guest mbpp mbpp.jsonl 8 ;;
        dry_run)
            hub bench "$out/published.yaml" --out "$out/dry_run_mbpp" --task mbpp_plus --data "$DATA/MbppPlus-v0.1.0.jsonl" \
                --split v0.1.0 --prompt official --dry-run 20
            "$PYTHON" -m benchmarks.dry_run "$out/published_mbpp" "$out/dry_run_mbpp" --pilot 20 > "$out/dry_run_mbpp/dry_run.md"
            ;;
        board) hub board "$out"/{published_humaneval,published_mbpp,words,toolkit,rivals,guest} --out board.html ;;
        *) echo "no such step: $step" >&2; exit 2 ;;
    esac
done
