# GSM8K in bare equations: chain of thought against a pair, and the pair with guidance, one thread each.
# EXPECTED.md says what is compared. SOCRATIC_DATA names the folder of the data sets.
python students/make/bare.py gsm8k annotations/bare.jsonl
python students/make/guide.py annotations/bare.jsonl annotations/guided.jsonl
python students/make/renumber.py runs/renumbered.jsonl --copies 5
python students/make/bare.py runs/renumbered.jsonl runs/renumbered-bare.jsonl

# With other numbers or without? `cot` at a third of the steps, seed 0, by its valid loss.
python train.py --role cot --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 2875 --seed 0 --out runs/splitting/gsm8k-plain-0
python train.py --role cot --dataset runs/renumbered-bare.jsonl --lr 8e-3 --steps 2875 --seed 0 --out runs/splitting/gsm8k-renumbered-0

# The contrast. Equal FLOPs: what 15 epochs of `cot` cost; the pair's solver has twice the epochs of its decomposer.
# (Other numbers did not lower the valid loss: SEARCH.md. So all arms read GSM8K as it is.)
python train.py --role cot --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 8625 --seed 1 --out runs/splitting/gsm8k-cot-1
python eval.py --dataset gsm8k --method cot --students runs/splitting/gsm8k-cot-1 --out predictions/splitting/gsm8k-cot-1
python train.py --role decomposer --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 2034 --seed 1 --out runs/splitting/gsm8k-decomposer-1
python train.py --role solver --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 7088 --seed 1 --out runs/splitting/gsm8k-solver-1
python eval.py --dataset gsm8k --students runs/splitting/gsm8k-decomposer-1 runs/splitting/gsm8k-solver-1 --out predictions/splitting/gsm8k-pair-1
python train.py --role cot --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 8625 --seed 2 --out runs/splitting/gsm8k-cot-2
python eval.py --dataset gsm8k --method cot --students runs/splitting/gsm8k-cot-2 --out predictions/splitting/gsm8k-cot-2
python train.py --role decomposer --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 2034 --seed 2 --out runs/splitting/gsm8k-decomposer-2
python train.py --role solver --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 7088 --seed 2 --out runs/splitting/gsm8k-solver-2
python eval.py --dataset gsm8k --students runs/splitting/gsm8k-decomposer-2 runs/splitting/gsm8k-solver-2 --out predictions/splitting/gsm8k-pair-2
python train.py --role cot --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 8625 --seed 3 --out runs/splitting/gsm8k-cot-3
python eval.py --dataset gsm8k --method cot --students runs/splitting/gsm8k-cot-3 --out predictions/splitting/gsm8k-cot-3
python train.py --role decomposer --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 2034 --seed 3 --out runs/splitting/gsm8k-decomposer-3
python train.py --role solver --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 7088 --seed 3 --out runs/splitting/gsm8k-solver-3
python eval.py --dataset gsm8k --students runs/splitting/gsm8k-decomposer-3 runs/splitting/gsm8k-solver-3 --out predictions/splitting/gsm8k-pair-3

# Guidance: the same pair, each subquestion with the operations of its step in front. No oracles: gold has no marks.
python train.py --role decomposer --dataset gsm8k --annotations annotations/guided.jsonl --lr 8e-3 --steps 2034 --seed 1 --out runs/splitting/gsm8k-guided-decomposer-1
python train.py --role solver --dataset gsm8k --annotations annotations/guided.jsonl --lr 8e-3 --steps 7088 --seed 1 --out runs/splitting/gsm8k-guided-solver-1
python eval.py --dataset gsm8k --no-diagnose --students runs/splitting/gsm8k-guided-decomposer-1 runs/splitting/gsm8k-guided-solver-1 --out predictions/splitting/gsm8k-guided-1
python train.py --role decomposer --dataset gsm8k --annotations annotations/guided.jsonl --lr 8e-3 --steps 2034 --seed 2 --out runs/splitting/gsm8k-guided-decomposer-2
python train.py --role solver --dataset gsm8k --annotations annotations/guided.jsonl --lr 8e-3 --steps 7088 --seed 2 --out runs/splitting/gsm8k-guided-solver-2
python eval.py --dataset gsm8k --no-diagnose --students runs/splitting/gsm8k-guided-decomposer-2 runs/splitting/gsm8k-guided-solver-2 --out predictions/splitting/gsm8k-guided-2
python train.py --role decomposer --dataset gsm8k --annotations annotations/guided.jsonl --lr 8e-3 --steps 2034 --seed 3 --out runs/splitting/gsm8k-guided-decomposer-3
python train.py --role solver --dataset gsm8k --annotations annotations/guided.jsonl --lr 8e-3 --steps 7088 --seed 3 --out runs/splitting/gsm8k-guided-solver-3
python eval.py --dataset gsm8k --no-diagnose --students runs/splitting/gsm8k-guided-decomposer-3 runs/splitting/gsm8k-guided-solver-3 --out predictions/splitting/gsm8k-guided-3
for n in 1 2 3; do python students/make/guide.py predictions/splitting/gsm8k-guided-$n/gsm8k-test-socratic.jsonl; done

# Afterwards, on the valid split alone: would other numbers have been better with the full budget?
python train.py --role cot --dataset runs/renumbered-bare.jsonl --lr 8e-3 --steps 8625 --seed 1 --out runs/splitting/gsm8k-renumbered-1
python eval.py --dataset gsm8k --split valid --method cot --no-diagnose --students runs/splitting/gsm8k-renumbered-1 --out predictions/valid-renumbered-1
python eval.py --dataset gsm8k --split valid --method cot --no-diagnose --students runs/splitting/gsm8k-cot-1 --out predictions/valid-cot-1
python eval.py --compare predictions/valid-cot-1/gsm8k-valid-cot.jsonl predictions/valid-renumbered-1/gsm8k-valid-cot.jsonl
