#!/bin/sh
# Whether pretraining helps where few patients are labelled: synthetic heads of a small size, an autoencoder on those without
# labels, and a learning curve on the others (docs/results/pretraining3d.md). `make curve3d` calls it; broken off, it goes on.
# PY: the environment's python.
set -eu
PY=${PY:-python}
OUT=${OUT:-curve3d}

run() { echo "+ $*" >&2; "$@"; }

run "$PY" -m data_prep.demo3d out="$OUT/raw" num_source=400 num_target=300 seed=1
for DOMAIN in source target; do
    # Without labels nobody is held out for a test.
    TEST=0.4
    test "$DOMAIN" = target || TEST=0
    run "$PY" -m data_prep source="$OUT/raw/$DOMAIN" labels="$OUT/raw/$DOMAIN/labels.csv" store="$OUT/$DOMAIN" \
        deidentify=declared image=mr_volume 'image.size=[32,32,32]' image.spacing_mm=6 image.fit=crop 'columns=[site]' \
        split.test="$TEST" split.val=0.1
done
run "$PY" -m medcls.pretrain store="$OUT/source" run="$OUT/run-pretrained" corruption=inpaint trainer.epochs=20 \
    trainer.batch_size=8
run "$PY" -m medcls.compare comparison=labels_3d store="$OUT/target" out="$OUT/comparison" \
    extra="[model.weights=$OUT/run-pretrained]"
