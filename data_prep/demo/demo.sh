#!/bin/sh
# The whole job on synthetic data, through the command lines a user types. `make demo` calls it.
# PY: the environment's python. WEIGHTS_DIR: offline folder with ImageNet weights, or empty.
set -eu
PY=${PY:-python}
OUT=${OUT:-demo}

run() { echo "+ $*" >&2; "$@"; }

run "$PY" -m data_prep.demo out="$OUT/raw"
run "$PY" -m data_prep source="$OUT/raw" labels="$OUT/raw/labels.csv" store="$OUT/store" \
    deidentify=declared image.size=96

if "$PY" -m medcls.fetch model=resnet18 ${WEIGHTS_DIR:+weights_dir="$WEIGHTS_DIR"}; then
    echo "demo: fine-tuning from ImageNet weights" >&2
    RUN="$OUT/run-finetune"
    run "$PY" -m medcls.train experiment=demo_finetune store="$OUT/store" run="$RUN" \
        ${WEIGHTS_DIR:+weights_dir="$WEIGHTS_DIR"}
else
    echo "demo: no ImageNet weights here (the line above says where they would go): training from scratch" >&2
    RUN="$OUT/run-scratch"
    run "$PY" -m medcls.train experiment=demo store="$OUT/store" run="$RUN"
fi
run "$PY" -m medcls.evaluate run="$RUN" split=test
