# A small decomposer for a large solver: Qwen2.5-Coder-1.5B-Instruct (4 bits, llama.cpp's server with 16 slots) on the first
# 200 test problems of GSM8K, one greedy reply each. By chain of thought; with subquestions of its own, of our best decomposer,
# and of the data set.
# The best decomposer has the right number of subquestions most often on GSM8K's valid split, 512 problems as the data set has them:
#     python eval.py --dataset gsm8k --split valid --no-diagnose --students DECOMPOSER students/solver --out predictions/valid-NAME
# The embedded one has it in 150, those of gsm8k.sh in 148, 167 and 146 (seeds 1 to 3).
ASK="--tries 1 --workers 16 --teacher qwen --base-url http://127.0.0.1:8099"
python eval.py --dataset gsm8k --limit 200 --no-diagnose --students runs/splitting/gsm8k-decomposer-2 students/solver --out predictions/planned
python students/make/planned.py files predictions/planned/*.jsonl teacher
python annotate.py --dataset teacher/plain.jsonl --mode cot $ASK --out teacher/cot.jsonl
python annotate.py --dataset teacher/plain.jsonl --mode socratic $ASK --out teacher/own.jsonl
python annotate.py --dataset teacher/decomposed.jsonl --mode socratic-gt $ASK --out teacher/student.jsonl
python annotate.py --dataset teacher/gold.jsonl --mode socratic-gt $ASK --out teacher/data.jsonl
python students/make/planned.py score teacher/plain.jsonl teacher/*.replies.jsonl
# The replies are kept beside this file, compressed, and the records whose subquestions are the decomposer's.
