# The commands of the contrast, in the order in which they were run, one thread each
# (OMP_NUM_THREADS=1). EXPECTED.md says how the budget and the learning rates are chosen.
python students/make/stories.py counted.jsonl --steps 2 3 4 5 6 --distractors 0 2

# Which budget? `cot`, seeds 0 and 1, scored on valid.
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 0 --out runs/splitting/cot-probe900-4e-3-0
python eval.py --dataset counted.jsonl --split valid --method cot --no-diagnose --students runs/splitting/cot-probe900-4e-3-0 --out predictions/splitting/cot-probe900-4e-3-0
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 1 --out runs/splitting/cot-probe900-4e-3-1
python eval.py --dataset counted.jsonl --split valid --method cot --no-diagnose --students runs/splitting/cot-probe900-4e-3-1 --out predictions/splitting/cot-probe900-4e-3-1

# The rest follows from the outcome of these. Now: probe of 900 steps at 4e-3
