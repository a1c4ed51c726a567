"""The budget and the scores of the contrast, counted by hand."""

import json
from pathlib import Path

import contrast
import pytest

from data import IGNORE
from gpt import GPT, SIZES

RESULTS = Path(__file__).resolve().parents[1] / "results"

def write_predictions(folder, method, outcomes, problems="a"):
    """outcomes: (steps of the problem, its distractors, steps of the dialogue, is it right?)"""
    folder.mkdir()
    settings = {"method": method, "n": len(outcomes), "problems_sha256": problems}
    rows = [{"settings": settings}]
    for i, (n_steps, n_distractors, n_ours, right) in enumerate(outcomes):
        steps = [{"question": "How many?", "solution": "3"}] * n_steps
        name = f"demo-test-{n_steps}steps-{n_distractors}distractors-{i}"
        kinds = {"cot": ["Solution"], "answer": []}.get(method, ["Subquestion", "Solution"])
        turns = [{"speaker": method, "kind": kind, "text": ""} for kind in kinds * n_ours]
        rows.append({"problem": {"id": name, "problem": "Why?", "steps": steps, "answer": "3"},
                     "turns": turns, "seed": 0, "ended": "finished",
                     "answer": "3" if right else None, "answers": [], "oracles": {}})
    (folder / "counted-test-x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder

def test_a_step_costs_its_blocks_for_every_token_read_and_the_head_for_every_learned_one():
    nano = GPT(SIZES["nano"], {"tokenizer": "tiny"})
    n_blocks = 3 * (12 * 96 * 96 + 13 * 96)    # matrices; biases and the gains of two norms
    batch = [([1] * 5, [7] * 2 + [IGNORE] * 3), ([1] * 3, [7, IGNORE, IGNORE])]
    assert contrast.flops(batch, nano) == 6 * (n_blocks * 2 * 5 + 2048 * 96 * 3)

def test_only_the_primary_set_counts_and_the_right_number_of_steps_is_read_by_method(tmp_path):
    others = [(1, 2, 1, True), (7, 2, 7, True), (3, 0, 3, True)]    # none of the primary set
    cot = [(2, 2, 2, True), (3, 2, 4, False), (4, 2, 4, False), (6, 2, 0, True), *others]
    pair = [(2, 2, 2, False), (3, 2, 3, True), (4, 2, 4, True), (6, 2, 6, True), *others]
    answer = [(n_steps, n_distractors, 0, False) for n_steps, n_distractors, _, _ in cot]
    arms = contrast.read_outcomes([write_predictions(tmp_path / "cot-11", "cot", cot),
                                   write_predictions(tmp_path / "pair-11", "socratic", pair),
                                   write_predictions(tmp_path / "answer-11", "answer", answer)])
    (tmp_path / "kept.gz").write_bytes(contrast.write_table(arms))
    assert contrast.read_table(tmp_path / "kept.gz") == arms    # nothing is lost on the way
    cot, pair = arms["cot"]["11"], arms["pair"]["11"]
    assert contrast.figures(cot, pair) == [50, 50, 50, 50]
    assert contrast.figures(pair, cot) == [75, 100, 75, 50]
    right, *unknown = contrast.figures(arms["answer"]["11"], cot)
    assert right == 0 and all(share != share for share in unknown)    # it shows no steps: nan

def test_predictions_of_other_problems_or_unfinished_ones_are_refused(tmp_path):
    one = write_predictions(tmp_path / "cot-11", "cot", [(2, 2, 2, True)])
    two = write_predictions(tmp_path / "pair-11", "socratic", [(2, 2, 2, True)], problems="b")
    with pytest.raises(SystemExit, match="pair-11.*other problems"):
        contrast.read_outcomes([one, two])

def test_p_values_and_intervals_agree_with_the_tables_of_students_t(capsys):
    for df, t in contrast.T_95.items():
        assert contrast.p_value(t, df) == pytest.approx(0.05, abs=1e-4)
    assert contrast.p_value(-4.032, 5) == pytest.approx(0.01, abs=1e-4)
    middle, half, p = contrast.interval([4.6, 10.4, 1.2, 12.2])    # 7.1, standard deviation 5.1
    assert (round(middle, 1), round(middle - half, 1), round(middle + half, 1)) == (7.1, -1.0, 15.2)
    assert 0.05 < p < 0.1
    contrast.print_differences(100, 10, 20, 30, 12, 23, 34)    # 2, 3 and 4 points: 3 +- 2.48
    assert capsys.readouterr().out.startswith("the second arm has +3.00 points, +0.52 to +5.48, p")
    assert contrast.holm(0.01, 0.04) == [0.02, 0.04] and contrast.holm(0.9, 0.03) == [0.9, 0.06]

def test_the_written_tables_and_the_picture_are_those_of_the_kept_outcomes(capsys):
    arms = contrast.read_table(RESULTS / "splitting" / "outcomes.gz")
    picture = contrast.plot(contrast.print_scores(arms))
    assert capsys.readouterr().out.strip() in (RESULTS / "README.md").read_text(encoding="utf-8")
    assert picture == (RESULTS / "splitting" / "right.svg").read_text()
    receipts = map(json.loads, (path.read_text() for path in
                                (RESULTS / "splitting").glob("counted-*.json")))
    rights = sorted(receipt["scores"]["accuracy"]["right"]["right"] for receipt in receipts)
    assert rights == sorted(sum(one.right for one in its.values())
                            for seeds in arms.values() for its in seeds.values())
