#!/usr/bin/env bash
# A decomposer and a solver from scratch, side by side on one GPU, in MINUTES minutes.
#
# Before, on any machine; then runs/gpu holds all that is needed (16 MB), and nothing is fetched:
#
#   mkdir -p runs/gpu/gsm8k && cp data/gsm8k/train_socratic.jsonl runs/gpu/gsm8k
#   python students/make/stories.py runs/gpu/world.jsonl.gz --level world --train 60000 --seed 27
#   python students/make/more.py runs/gpu/more.jsonl paraphrases.jsonl
#   gzip -9 runs/gpu/more.jsonl
#
# On the machine with the GPU, in the root of the repository, with runs/gpu in its place:
#
#   OUT=results bash students/make/gpu.sh
#
# Writes OUT/decomposer and OUT/solver: config.json, log.jsonl and model.safetensors, in half
# precision; if that is over 15 MiB, in parts .00 and .01 that `cat` joins. A rehearsal on a CPU:
#
#   DEVICE=cpu MINUTES=5 SPARE=150 BATCH=1024 DECOMPOSER='32 2 2' SOLVER='32 2 2' \
#       FLAGS='--limit 500' OUT=/tmp/results bash students/make/gpu.sh

MINUTES=${MINUTES:-9}               # of the whole script
SPARE=${SPARE:-25}                  # seconds of them, for ten validations and the copies
DECOMPOSER=${DECOMPOSER:-160 8 5}   # channels, layers, heads
SOLVER=${SOLVER:-160 8 5}
BATCH=${BATCH:-32768}               # tokens of a step
LR=${LR:-4e-3}                      # at its peak
DEVICE=${DEVICE:-cuda}
DATA=${DATA:-runs/gpu}
OUT=${OUT:-runs/gpu-out}
PYTHON=${PYTHON:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mixture="$DATA/world.jsonl.gz demo gsm8k gsm8k $DATA/more.jsonl.gz $DATA/more.jsonl.gz"
export SOCRATIC_DATA=$DATA

stop() {    # WHY: the end, before there is anything to copy
    echo "$1" >&2
    tail -n 12 "$work"/*.txt >&2 2>/dev/null
    kill $(jobs -p) 2>/dev/null
    exit 1
}

seconds_left() { echo $((MINUTES * 60 - SECONDS)); }

train() {    # NAME ROLE STEPS: the folder NAME-ROLE, and NAME-ROLE.txt, what is printed meanwhile
    exec timeout $(($(seconds_left) - 5)) "$PYTHON" train.py --role "$2" --dataset $mixture \
        --model "$work/fresh-$2" $([ "$2" = decomposer ] && echo --learn-all) --steps "$3" \
        --batch-tokens "$BATCH" --lr "$LR" --device "$DEVICE" --dtype bf16 $FLAGS \
        --out "$work/$1-$2" > "$work/$1-$2.txt" 2>&1
}

fresh() {    # ROLE CHANNELS LAYERS HEADS
    "$PYTHON" students/make/fresh.py "$work/fresh-$1" --role "$1" --n-embd "$2" --n-layer "$3" \
        --n-head "$4"
}

# What is missing is found now, not after minutes.
mkdir -p "$OUT/decomposer" "$OUT/solver" || stop "$OUT cannot be written."
ls "$DATA"/{world.jsonl.gz,more.jsonl.gz,gsm8k/train_socratic.jsonl} || stop "Data are missing."
"$PYTHON" -c "import torch; torch.zeros(1, device='$DEVICE')" || stop "There is no $DEVICE."
fresh decomposer $DECOMPOSER && fresh solver $SOLVER || stop "There is nothing to begin with."

# How fast is a step while both train? The slower one loads for longer, so both go on until each
# has done 50 steps; the last 20 count. What does not belong to a step (loading) is measured too.
begin=$SECONDS
train try decomposer 999999 & train try solver 999999 &
has_begun() { grep -qs "^step  *50/" "$work/try-$1.txt"; }
until has_begun decomposer && has_begun solver; do
    [ "$(jobs -rp | wc -l)" = 2 ] || stop "The first steps failed, or there was no time for them."
    sleep 0.2
done
kill $(jobs -p)
tried=$((SECONDS - begin))
wait

cat > "$work/steps.py" <<'END'
import re, sys
path, batch, tried, left = sys.argv[1], *map(int, sys.argv[2:])
found = re.findall(r"^step +(\d+)/.* ([\d,]+) tok/s", open(path).read(), re.MULTILINE)
*_, before, _, last = [int(n) * batch / int(speed.replace(",", "")) for n, speed in found]
step, rest = (last - before) / 20, tried - last
print(int(0.95 * (left - rest) / step))
print(f"{path}: {step:.3f} s a step, {rest:.0f} s besides, {left} s left", file=sys.stderr)
END
steps() {    # ROLE: how many steps there is time for
    "$PYTHON" "$work/steps.py" "$work/try-$1.txt" "$BATCH" $tried $(($(seconds_left) - SPARE))
}
n_decomposer=$(steps decomposer) n_solver=$(steps solver)
echo "steps: decomposer $n_decomposer, solver $n_solver"
[ "$n_decomposer" -gt 0 ] && [ "$n_solver" -gt 0 ] || stop "There is no time left."

train run decomposer "$n_decomposer" & first=$!
train run solver "$n_solver" & second=$!
wait $first; code=$?
wait $second || code=1

# A training that was stopped half-way has still saved the best student so far.
for role in decomposer solver; do
    echo "== $role"; tail -n 5 "$work/run-$role.txt"
    cp "$work/run-$role/config.json" "$work/run-$role/log.jsonl" "$OUT/$role" || code=1
    weights=$work/run-$role/model.safetensors
    if [ "$(stat -c %s "$weights")" -le $((15 << 20)) ]; then
        cp "$weights" "$OUT/$role"
    else
        split -b 15M -d "$weights" "$OUT/$role/model.safetensors."
    fi
done
ls -l "$OUT"/*
echo "$SECONDS seconds in all"
exit $code
