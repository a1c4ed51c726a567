# The commands of the contrast, in the order in which they were run, one thread each
# (OMP_NUM_THREADS=1). EXPECTED.md says how the budget and the learning rates are chosen.
python students/make/stories.py counted.jsonl --steps 2 3 4 5 6 --distractors 0 2

# Which budget? `cot`, seeds 0 and 1, scored on valid.
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 0 --out runs/splitting/cot-probe900-4e-3-0
python eval.py --dataset counted.jsonl --split valid --method cot --no-diagnose --students runs/splitting/cot-probe900-4e-3-0 --out predictions/splitting/cot-probe900-4e-3-0
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 1 --out runs/splitting/cot-probe900-4e-3-1
python eval.py --dataset counted.jsonl --split valid --method cot --no-diagnose --students runs/splitting/cot-probe900-4e-3-1 --out predictions/splitting/cot-probe900-4e-3-1

# The learning rate of each student, on valid, at a third of the steps of 900; seed 0.
python train.py --role cot --dataset counted.jsonl --model tiny --steps 300 --lr 2e-3 --seed 0 --out runs/splitting/cot-search900-2e-3
python train.py --role cot --dataset counted.jsonl --model tiny --steps 300 --lr 4e-3 --seed 0 --out runs/splitting/cot-search900-4e-3
python train.py --role cot --dataset counted.jsonl --model tiny --steps 300 --lr 8e-3 --seed 0 --out runs/splitting/cot-search900-8e-3
python train.py --role unified --dataset counted.jsonl --model tiny --steps 297 --lr 2e-3 --seed 0 --out runs/splitting/unified-search900-2e-3
python train.py --role unified --dataset counted.jsonl --model tiny --steps 297 --lr 4e-3 --seed 0 --out runs/splitting/unified-search900-4e-3
python train.py --role unified --dataset counted.jsonl --model tiny --steps 297 --lr 8e-3 --seed 0 --out runs/splitting/unified-search900-8e-3
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 339 --lr 2e-3 --seed 0 --out runs/splitting/decomposer-search900-2e-3
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 339 --lr 4e-3 --seed 0 --out runs/splitting/decomposer-search900-4e-3
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 339 --lr 8e-3 --seed 0 --out runs/splitting/decomposer-search900-8e-3
python train.py --role solver --dataset counted.jsonl --model nano --steps 342 --lr 2e-3 --seed 0 --out runs/splitting/solver-search900-2e-3
python train.py --role solver --dataset counted.jsonl --model nano --steps 342 --lr 4e-3 --seed 0 --out runs/splitting/solver-search900-4e-3
python train.py --role solver --dataset counted.jsonl --model nano --steps 342 --lr 8e-3 --seed 0 --out runs/splitting/solver-search900-8e-3

# The contrast: six seeds. Equal FLOPs: what `cot` costs at 900 steps.
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 11 --out runs/splitting/cot-11
python eval.py --dataset counted.jsonl --split test --method cot --no-diagnose --students runs/splitting/cot-11 --out predictions/splitting/cot-11
python train.py --role unified --dataset counted.jsonl --model tiny --steps 892 --lr 8e-3 --seed 11 --out runs/splitting/unified-11
python eval.py --dataset counted.jsonl --split test --method unified --no-diagnose --students runs/splitting/unified-11 --out predictions/splitting/unified-11
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 1018 --lr 8e-3 --seed 11 --out runs/splitting/decomposer-11
python train.py --role solver --dataset counted.jsonl --model nano --steps 1025 --lr 8e-3 --seed 11 --out runs/splitting/solver-11
python eval.py --dataset counted.jsonl --split test --method socratic --no-diagnose --students runs/splitting/decomposer-11 runs/splitting/solver-11 --out predictions/splitting/pair-11
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 12 --out runs/splitting/cot-12
python eval.py --dataset counted.jsonl --split test --method cot --no-diagnose --students runs/splitting/cot-12 --out predictions/splitting/cot-12
python train.py --role unified --dataset counted.jsonl --model tiny --steps 892 --lr 8e-3 --seed 12 --out runs/splitting/unified-12
python eval.py --dataset counted.jsonl --split test --method unified --no-diagnose --students runs/splitting/unified-12 --out predictions/splitting/unified-12
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 1018 --lr 8e-3 --seed 12 --out runs/splitting/decomposer-12
python train.py --role solver --dataset counted.jsonl --model nano --steps 1025 --lr 8e-3 --seed 12 --out runs/splitting/solver-12
python eval.py --dataset counted.jsonl --split test --method socratic --no-diagnose --students runs/splitting/decomposer-12 runs/splitting/solver-12 --out predictions/splitting/pair-12
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 13 --out runs/splitting/cot-13
python eval.py --dataset counted.jsonl --split test --method cot --no-diagnose --students runs/splitting/cot-13 --out predictions/splitting/cot-13
python train.py --role unified --dataset counted.jsonl --model tiny --steps 892 --lr 8e-3 --seed 13 --out runs/splitting/unified-13
python eval.py --dataset counted.jsonl --split test --method unified --no-diagnose --students runs/splitting/unified-13 --out predictions/splitting/unified-13
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 1018 --lr 8e-3 --seed 13 --out runs/splitting/decomposer-13
python train.py --role solver --dataset counted.jsonl --model nano --steps 1025 --lr 8e-3 --seed 13 --out runs/splitting/solver-13
python eval.py --dataset counted.jsonl --split test --method socratic --no-diagnose --students runs/splitting/decomposer-13 runs/splitting/solver-13 --out predictions/splitting/pair-13
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 14 --out runs/splitting/cot-14
python eval.py --dataset counted.jsonl --split test --method cot --no-diagnose --students runs/splitting/cot-14 --out predictions/splitting/cot-14
python train.py --role unified --dataset counted.jsonl --model tiny --steps 892 --lr 8e-3 --seed 14 --out runs/splitting/unified-14
python eval.py --dataset counted.jsonl --split test --method unified --no-diagnose --students runs/splitting/unified-14 --out predictions/splitting/unified-14
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 1018 --lr 8e-3 --seed 14 --out runs/splitting/decomposer-14
python train.py --role solver --dataset counted.jsonl --model nano --steps 1025 --lr 8e-3 --seed 14 --out runs/splitting/solver-14
python eval.py --dataset counted.jsonl --split test --method socratic --no-diagnose --students runs/splitting/decomposer-14 runs/splitting/solver-14 --out predictions/splitting/pair-14
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 15 --out runs/splitting/cot-15
python eval.py --dataset counted.jsonl --split test --method cot --no-diagnose --students runs/splitting/cot-15 --out predictions/splitting/cot-15
python train.py --role unified --dataset counted.jsonl --model tiny --steps 892 --lr 8e-3 --seed 15 --out runs/splitting/unified-15
python eval.py --dataset counted.jsonl --split test --method unified --no-diagnose --students runs/splitting/unified-15 --out predictions/splitting/unified-15
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 1018 --lr 8e-3 --seed 15 --out runs/splitting/decomposer-15
python train.py --role solver --dataset counted.jsonl --model nano --steps 1025 --lr 8e-3 --seed 15 --out runs/splitting/solver-15
python eval.py --dataset counted.jsonl --split test --method socratic --no-diagnose --students runs/splitting/decomposer-15 runs/splitting/solver-15 --out predictions/splitting/pair-15
python train.py --role cot --dataset counted.jsonl --model tiny --steps 900 --lr 4e-3 --seed 16 --out runs/splitting/cot-16
python eval.py --dataset counted.jsonl --split test --method cot --no-diagnose --students runs/splitting/cot-16 --out predictions/splitting/cot-16
python train.py --role unified --dataset counted.jsonl --model tiny --steps 892 --lr 8e-3 --seed 16 --out runs/splitting/unified-16
python eval.py --dataset counted.jsonl --split test --method unified --no-diagnose --students runs/splitting/unified-16 --out predictions/splitting/unified-16
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 1018 --lr 8e-3 --seed 16 --out runs/splitting/decomposer-16
python train.py --role solver --dataset counted.jsonl --model nano --steps 1025 --lr 8e-3 --seed 16 --out runs/splitting/solver-16
python eval.py --dataset counted.jsonl --split test --method socratic --no-diagnose --students runs/splitting/decomposer-16 runs/splitting/solver-16 --out predictions/splitting/pair-16

# Without a verdict: the floor, and twice the budget.
python train.py --role answer --dataset counted.jsonl --model tiny --steps 1044 --lr 4e-3 --seed 11 --out runs/splitting/answer-11
python eval.py --dataset counted.jsonl --split test --method answer --no-diagnose --students runs/splitting/answer-11 --out predictions/splitting/answer-11
python train.py --role cot --dataset counted.jsonl --model tiny --steps 1800 --lr 4e-3 --seed 11 --out runs/splitting/cot-twice-11
python eval.py --dataset counted.jsonl --split test --method cot --no-diagnose --students runs/splitting/cot-twice-11 --out predictions/splitting/cot-twice-11
python train.py --role unified --dataset counted.jsonl --model tiny --steps 1784 --lr 8e-3 --seed 11 --out runs/splitting/unified-twice-11
python eval.py --dataset counted.jsonl --split test --method unified --no-diagnose --students runs/splitting/unified-twice-11 --out predictions/splitting/unified-twice-11
python train.py --role decomposer --dataset counted.jsonl --model nano --steps 2036 --lr 8e-3 --seed 11 --out runs/splitting/decomposer-twice-11
python train.py --role solver --dataset counted.jsonl --model nano --steps 2050 --lr 8e-3 --seed 11 --out runs/splitting/solver-twice-11
python eval.py --dataset counted.jsonl --split test --method socratic --no-diagnose --students runs/splitting/decomposer-twice-11 runs/splitting/solver-twice-11 --out predictions/splitting/pair-twice-11
