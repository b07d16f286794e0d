#!/bin/sh
# The whole job in three dimensions on synthetic heads, through the command lines a user types. `make demo3d` calls it.
# PY: the environment's python.
set -eu
PY=${PY:-python}
OUT=${OUT:-demo3d}
SIZE='image.size=[48,48,48]'

run() { echo "+ $*" >&2; "$@"; }

run "$PY" -m data_prep.demo3d out="$OUT/raw"
for DOMAIN in source target; do
    run "$PY" -m data_prep source="$OUT/raw/$DOMAIN" labels="$OUT/raw/$DOMAIN/labels.csv" store="$OUT/$DOMAIN" \
        deidentify=declared image=mr_volume "$SIZE" image.spacing_mm=4 image.fit=crop 'columns=[site]'
done
run "$PY" -m medcls.pretrain pretraining=demo3d store="$OUT/source" run="$OUT/run-pretrained"
run "$PY" -m medcls.train experiment=demo3d store="$OUT/target" run="$OUT/run-finetune" \
    model.weights="$OUT/run-pretrained"
run "$PY" -m medcls.evaluate run="$OUT/run-finetune" split=test 'subgroups=[site,sex]' 'shortcuts=[site]'
echo "the study of Hosseini-Asl on these heads, scratch, frozen and fine-tuned in folds: docs/alzheimer.md" >&2
