# shellcheck shell=bash
# Sourced by the sbatch files beside it. PYTHON: the environment's python, or a container's, such as
# PYTHON="apptainer exec --nv medcls.sif python". MEDCLS_SLURM: this folder, where jobs are submitted from elsewhere.

# Runs a command as a job step, hands the batch script's signals on to it, and puts the job back into the queue
# where it exits 75 (interrupted: run me again). Any other code is the job's.
run_and_requeue() {
    local code step most="${MEDCLS_MOST_REQUEUES:-100}"
    # Several words, as of a container's command.
    # shellcheck disable=SC2086
    srun --kill-on-bad-exit=0 $1 "${@:2}" &
    step=$!
    trap 'kill -USR1 "$step" 2>/dev/null' USR1
    trap 'kill -TERM "$step" 2>/dev/null' TERM
    # A signal ends wait and not the step: wait for it again.
    while
        wait "$step"
        code=$?
        kill -0 "$step" 2>/dev/null
    do :; done
    wait "$step" 2>/dev/null || code=$?
    trap - USR1 TERM
    if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$most" ]; then
        echo "exit 75: back into the queue (requeue ${SLURM_RESTART_COUNT:-0} of $most)" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
