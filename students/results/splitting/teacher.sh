# A small decomposer for a large solver: Qwen2.5-Coder-1.5B-Instruct (4 bits) on the first 200 test problems of GSM8K,
# one greedy reply each. By chain of thought; with subquestions of its own, of the embedded decomposer, and of the data set.
ASK="--tries 1 --workers 6 --teacher qwen --base-url http://127.0.0.1:8099"
# (The best decomposer: the right number of subquestions on GSM8K's valid split, of the 512 problems as the data set has them:
#  python eval.py --dataset gsm8k --split valid --no-diagnose --students DECOMPOSER students/solver --out predictions/valid-NAME)
python eval.py --dataset gsm8k --limit 200 --no-diagnose --students students/decomposer students/solver --out predictions/planned
python students/make/planned.py files predictions/planned/*.jsonl teacher
python annotate.py --dataset teacher/plain.jsonl --mode cot $ASK --out teacher/cot.jsonl
python annotate.py --dataset teacher/plain.jsonl --mode socratic $ASK --out teacher/own.jsonl
python annotate.py --dataset teacher/decomposed.jsonl --mode socratic-gt $ASK --out teacher/student.jsonl
python annotate.py --dataset teacher/gold.jsonl --mode socratic-gt $ASK --out teacher/data.jsonl
python students/make/planned.py score teacher/plain.jsonl teacher/*.replies.jsonl
