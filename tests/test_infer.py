"""The students read what they were trained on, a batch gives what each problem gives alone, and nothing runs on for ever."""

import io
import json
import random
import re
import sys

import pytest
import torch
from toy import PROBLEM, tiny_student

import infer
from data import Problem, Step, calculate, encode, get_tokenizer, make_stories, segments, tokenize
from gpt import GPT, GPTConfig
from infer import Student, solve

TOKENIZER = get_tokenizer("tiny")


def students(n_positions=512, seed=0, scale=6.0):
    """A decomposer, a solver and the single-student roles, with random weights strong enough to write varied text."""
    found = {}
    for i, role in enumerate(("decomposer", "solver", "unified", "cot", "answer")):
        model = tiny_student(role, seed=seed + i, n_positions=n_positions)
        with torch.no_grad():
            model.wte.weight *= scale
        found[role] = Student(role, model, TOKENIZER)
    return found


class Parrot(torch.nn.Module):
    """Stands in for a model: writes what `script(text so far)` says, token by token. It keeps all it was fed."""

    def __init__(self, script, n_positions=1024):
        super().__init__()
        self.config = tiny_student("solver", n_positions=n_positions).config
        self.wte = torch.nn.Embedding(2048, 32)
        self.script, self.fed, self.calls, self.certainty = script, [], [], 1

    def append(self, ids, cache, rows, counts):
        cache.extend(rows, counts, ids.shape[1])
        self.fed += [[] for _ in range(len(cache.lengths) - len(self.fed))]
        self.calls.append(counts)
        logits = torch.zeros(len(ids), 2048)
        for i, row in enumerate(range(len(cache.lengths))[rows] if isinstance(rows, slice) else rows):
            self.fed[row] += ids[i, :counts[i]].tolist()
            wanted = self.script(TOKENIZER.decode(self.fed[row]))
            token = TOKENIZER.eot_token if wanted is None else tokenize(wanted, TOKENIZER)[0]
            logits[i, token] = self.certainty
        return logits


def recite(problem, role):
    """A script that goes on with the dialogue of a solved problem, whatever part was read."""
    whole = "".join(part.text for part in segments(problem, role))
    return lambda so_far: whole[len(so_far):] if whole.startswith(so_far) and so_far != whole else None


def parrots(problem):
    return {role: Student(role, Parrot(recite(problem, role)), TOKENIZER)
            for role in ("decomposer", "solver", "unified", "cot", "answer")}


@pytest.mark.parametrize("method", infer.METHODS)
def test_a_student_reads_token_for_token_what_it_was_trained_on(method):
    actors = parrots(PROBLEM)
    (dialogue,) = solve([PROBLEM], actors, method)
    assert dialogue.ended == "finished"
    assert dialogue.answer == "7"
    for role in infer.METHODS[method]:
        ids, _ = encode(segments(PROBLEM, role), TOKENIZER)
        assert actors[role].model.fed[0] == ids


def test_the_dialogue_tells_who_wrote_what():
    (dialogue,) = solve([PROBLEM], parrots(PROBLEM), "socratic")
    assert [(t.speaker, t.kind, t.text) for t in dialogue.turns] == [
        ("decomposer", "Subquestion", "How many pens?"), ("decomposer", "Subquestion", "How many are left?"),
        ("solver", "Solution", "There are 3*4 = <<3*4=12>>12 pens."), ("solver", "Solution", "12-5 = <<12-5=7>>7 are left."),
        ("solver", "Answer", "7")]


def test_the_decomposer_reads_no_solution_and_nobody_the_gold_answer():
    actors = students()
    for method in infer.METHODS:
        (with_gold,) = solve([PROBLEM], actors, method)
        (without,) = solve([Problem("toy-1", PROBLEM.problem)], actors, method)
        assert with_gold.turns == without.turns


def test_the_calculator_writes_the_result_and_the_right_one():
    wrong = Problem("a", PROBLEM.problem, [Step("How many?", "3*4 = <<3*4=99>>99")], "99")

    def script(so_far):                                     # a student that cannot multiply, but copies what it reads
        found = re.search(r"<<3\*4=(\d+)>>(\d*)$", so_far)
        return found[1][len(found[2]):] + "\n" if found else recite(wrong, "solver")(so_far)

    actors = parrots(wrong) | {"solver": Student("solver", Parrot(script), TOKENIZER)}
    (dialogue,) = solve([wrong], actors)
    assert dialogue.turns[1].text == "3*4 = <<3*4=12>>12"
    (dialogue,) = solve([wrong], parrots(wrong), calculator=False)
    assert dialogue.turns[1].text == "3*4 = <<3*4=99>>99"


def test_what_the_calculator_cannot_compute_is_left_to_the_student():
    odd = Problem("a", PROBLEM.problem, [Step("How many?", "x = <<3*x=4>>4"), Step("And?", "<<1/0=5>>5")], "5")
    (dialogue,) = solve([odd], parrots(odd))
    assert [t.text for t in dialogue.turns if t.kind == "Solution"] == ["x = <<3*x=4>>4", "<<1/0=5>>5"]


@pytest.mark.parametrize("method", infer.METHODS)
def test_a_batch_gives_what_each_problem_gives_alone(method):
    actors, problems = students(), make_stories("demo", "valid", 9)
    for actor in actors.values():
        actor.model.double()
    for temperature in (0.0, 1.0):
        alone = [solve([p], actors, method, temperature=temperature)[0] for p in problems]
        for batch_size in (3, 64):
            together = solve(problems, actors, method, batch_size, temperature)
            assert [d.to_json() for d in together] == [d.to_json() for d in alone]
    assert len({str(d.turns) for d in alone}) > 1, "they all wrote the same: this would not notice a mix-up"


def test_a_dialogue_written_with_the_cache_is_the_one_written_without():
    """An oracle: the same greedy turn, every token from a fresh pass over the whole text."""
    actors = students()
    for seed, problem in enumerate(make_stories("demo", "valid", 4)):
        student = actors[("unified", "cot")[seed % 2]]
        student.model.double()
        (dialogue,) = solve([problem], actors, student.role, calculator=False)
        ids, text = tokenize(f"Problem: {problem.problem}\n", TOKENIZER), b""
        for _ in range(infer.MAX_TURN):
            token = student.model(torch.tensor([ids])).argmax(-1)[0, -1].item()
            if token == TOKENIZER.eot_token or b"\n" in TOKENIZER.decode_single_token_bytes(token):
                break
            text += TOKENIZER.decode_single_token_bytes(token)
            ids.append(token)
        assert dialogue.turns[0].text == text.decode(errors="replace").strip()


def test_drawn_dialogues_depend_on_the_seed_and_the_problem_and_not_on_the_batch():
    actors, problems = students(scale=1.0), make_stories("demo", "valid", 6)
    for actor in actors.values():
        actor.model.double()
    options = {"method": "cot", "temperature": 1.0}
    one = solve(problems, actors, **options, seed=1)
    assert [d.turns for d in one] == [solve([p], actors, **options, seed=1)[0].turns for p in problems]
    assert [d.turns for d in one] != [d.turns for d in solve(problems, actors, **options, seed=2)]


def test_drawing_follows_the_probabilities():
    job = type("Job", (), {"rng": random.Random(0)})()
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    counts = torch.zeros(3)
    for _ in range(6000):
        counts[infer.choose(logits, [job], 0.5)[0]] += 1
    assert torch.allclose(counts / 6000, (logits[0] / 0.5).softmax(-1), atol=0.02)


# ---------------------------------------------------------------- bounds: ended and said, never an exception

def for_ever(text):
    return lambda so_far: text


def test_a_decomposer_that_never_stops_is_stopped_after_16_subquestions():
    endless = Parrot(lambda s: "Subquestion: Why?\n"[len(s) - len(s.rpartition("\n")[0]) - 1:] or "\n")
    actors = parrots(PROBLEM) | {"decomposer": Student("decomposer", endless, TOKENIZER)}
    (dialogue,) = solve([PROBLEM], actors)
    assert sum(t.kind == "Subquestion" for t in dialogue.turns) == infer.MAX_QUESTIONS == 16
    assert "16 turns" in dialogue.ended


def test_a_turn_that_never_ends_is_cut():
    actors = parrots(PROBLEM) | {"answer": Student("answer", Parrot(for_ever(" a")), TOKENIZER)}
    (dialogue,) = solve([PROBLEM], actors, "answer")
    assert f"{infer.MAX_TURN} tokens" in dialogue.ended and dialogue.answer is None


@pytest.mark.parametrize("method", infer.METHODS)
def test_a_dialogue_that_outgrows_the_context_is_ended(method):
    actors = students(n_positions=48)
    long, short = Problem("long", "word " * 5000), Problem("short", "Ben had 5.")
    first, second = solve([long, short], actors, method)
    assert "outgrew" in first.ended and first.answer is None
    assert second.to_json() == solve([short], actors, method)[0].to_json()


def test_a_turn_that_outgrows_the_context_is_kept_as_far_as_it_came():
    actors = parrots(PROBLEM) | {"cot": Student("cot", Parrot(for_ever(" a"), n_positions=64), TOKENIZER)}
    (dialogue,) = solve([PROBLEM], actors, "cot")
    assert "outgrew" in dialogue.ended and dialogue.turns[0].text.startswith("a a a")


def test_several_dialogues_of_a_problem_are_those_of_successive_seeds(monkeypatch):
    actors, problems = students(scale=1.0), make_stories("demo", "valid", 3)
    for actor in actors.values():
        actor.model.double()
    options = {"method": "cot", "temperature": 1.0}
    alone = [[solve([p], actors, **options, seed=seed)[0].turns for seed in (5, 6)] for p in problems]
    assert all(first != second for first, second in alone)
    monkeypatch.setattr(infer, "vote", lambda dialogues: [dialogue.turns for dialogue in dialogues])
    assert solve(problems, actors, **options, seed=5, n_samples=2) == alone


def test_the_first_of_several_dialogues_with_the_most_frequent_answer_is_elected():
    for answers, n in (([None, "8", "7", None, "7", None], 2), ([None, None], 0), (["7", "8", "8", None, None, None], 1),
                       (["9", "8", "8", "9"], 0)):    # of two with as many votes, the first drawn
        dialogues = [infer.Dialogue(PROBLEM, "cot", answer=answer) for answer in answers]
        elected = infer.vote(dialogues)
        assert elected is dialogues[n] and elected.answers == answers


def test_odd_problems_are_solved_like_any_other():
    texts = ["🙂" * 20, "-5 and −5", "a\u2028b", "<<3*4=", "Answer: 7", "<|endoftext|>", "\u202eright to left", "0"]
    for dialogue in solve([Problem(str(i), t) for i, t in enumerate(texts)], students(), "unified"):
        json.dumps(dialogue.to_json())


# ---------------------------------------------------------------- the command

@pytest.fixture
def folders(tmp_path):
    """Students with one word each: the decomposer only ever writes the end token, the others only a newline."""
    for role in ("decomposer", "solver", "cot"):
        model, (newline,) = tiny_student(role), TOKENIZER.encode_ordinary("\n")
        with torch.no_grad():
            model.ln_f.weight.zero_()
            model.ln_f.bias.copy_(100 * model.wte.weight[TOKENIZER.eot_token if role == "decomposer" else newline])
        model.save_pretrained(tmp_path / role)
    return [str(tmp_path / "decomposer"), str(tmp_path / "solver")]


def command(*argv, capsys, monkeypatch=None, stdin=None):
    if stdin is not None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    infer.main(infer.parse_args(list(argv)))
    return capsys.readouterr()


def test_the_command_prints_who_writes_what(folders, capsys):
    dialogue = ["", "Problem: Ben had 5 pens.", "decomposer | ", "solver     | Solution:", "solver     | Answer:"]
    out = command("Ben had 5 pens.", "--samples", "1", "--students", *folders, capsys=capsys)
    assert out.out.splitlines() == [*dialogue, "= none found"]
    out = command("Ben had 5 pens.", "--students", *folders, capsys=capsys)
    assert out.out.splitlines() == [*dialogue, "= none found"], "the first of several"
    assert "solver     | " in out.err and folders[0].rpartition("/")[2] in out.err


def test_an_emoji_split_over_tokens_is_printed_whole(capsys):
    screen, emoji = infer.Screen(), "🙂".encode()
    for piece in (b"Hi ", emoji[:1], emoji[1:3], emoji[3:], b"\n"):
        screen.show("solver", piece)
    assert capsys.readouterr().out == "solver     | Hi 🙂\n"


def test_an_explanation_shows_what_each_student_is_given_and_between_which_tokens_it_chose():
    pieces, actors = [], parrots(PROBLEM)
    solve([PROBLEM], actors, explain=True, on_text=lambda _, *piece: pieces.append(piece))
    given = b"".join(piece for speaker, piece in pieces if speaker == "context").decode().replace("\n\n", "\n")
    whole = "".join(part.text for part in segments(PROBLEM, "decomposer")[:1]) * 2    # both students read the problem
    assert given.startswith(whole + "Subquestion:") and given.endswith("Solution:\nAnswer:")
    notes = [piece.decode() for speaker, piece in pieces if speaker == "note"]
    assert "= the calculator: 12>>" in notes
    (note,) = [note for note in notes if note.startswith("? after 'Answer:'")]
    assert re.fullmatch(r"\? after 'Answer:': ' ' 0%, '.*' 0%, '.*' 0%", note)    # a parrot is never sure
    actors = parrots(PROBLEM)
    for actor in actors.values():
        actor.model.certainty = 100
    pieces.clear()
    solve([PROBLEM], actors, explain=True, on_text=lambda _, *piece: pieces.append(piece))
    assert {piece[:1] for speaker, piece in pieces if speaker == "note"} == {b"="}


def test_the_screen_prints_the_explanation_below_the_turn_and_only_if_asked(folders, capsys):
    out = command("Ben had 5 pens.", "--explain", "--students", *folders, capsys=capsys).out.splitlines()
    given = ["           < Problem: Ben had 5 pens."]
    assert out[2:5] == [*given, "decomposer | ", *given] and out[5:7] == ["           < Subquestion: ", "           < Solution:"]
    assert out[-2:] == ["solver     | Answer:", "= none found"]


def test_problems_come_from_a_file_or_standard_input_and_leave_as_json(folders, capsys, monkeypatch, tmp_path):
    (tmp_path / "problems.txt").write_text("Ben had 5 pens.\n\n" + PROBLEM.to_json() + "\n", encoding="utf-8")
    out = command("--file", str(tmp_path / "problems.txt"), "--json", "--students", *folders, capsys=capsys).out
    records = [json.loads(line) for line in out.splitlines()]
    (tmp_path / "marked.txt").write_text(PROBLEM.to_json() + "\n", encoding="utf-8-sig")
    marked = command("--file", str(tmp_path / "marked.txt"), "--json", "--students", *folders, capsys=capsys).out
    assert json.loads(marked)["problem"] == PROBLEM.problem, "a byte order mark hides no record"
    assert [r["problem"] for r in records] == ["Ben had 5 pens.", PROBLEM.problem] and "turns" in records[0]
    piped = command("--json", "--students", *folders, capsys=capsys, monkeypatch=monkeypatch, stdin="Ben had 5 pens.\n").out
    assert json.loads(piped)["turns"] == records[0]["turns"]


@pytest.mark.parametrize("argv, words", [
    ([""], "no problem to solve"), ([" \n"], "no problem to solve"), (["--file", "nowhere.txt"], "nowhere.txt does not exist"),
    (["x", "--students", "nowhere"], "nowhere"), (["x", "--dataset", "gsm8k", "--model", "gpt2"], "python train.py --role solver --dataset gsm8k --model gpt2"),
    (["x", "--method", "cot"], "python train.py --role cot"),
    (["x", "--students", str(infer.HERE / "students" / "solver"), str(infer.HERE / "students" / "solver")], "Named: solver, solver. Missing: decomposer"),
])
def test_a_slip_is_told_in_one_message_with_the_next_command(argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=re.escape(words)):
        infer.main(infer.parse_args(argv))


def test_a_problem_on_the_command_line_is_always_plain_text(folders, capsys):
    """A test that guards past bugs: a problem that begins with a brace, or is no UTF-8, ended in a traceback."""
    for text, read in (('{"id": 3}', '{"id": 3}'), ("3 pens \udcff", "3 pens ?")):
        infer.main(infer.parse_args([text, "--json", "--students", *folders]))
        assert json.loads(capsys.readouterr().out)["problem"] == read


def test_a_record_that_is_broken_is_named_with_its_line(folders, tmp_path):
    (tmp_path / "p.jsonl").write_text('Ben had 5.\n{"id": "x"}\n')
    with pytest.raises(SystemExit, match=r"p\.jsonl:2: a record: the key 'problem' is missing"):
        infer.main(infer.parse_args(["--file", str(tmp_path / "p.jsonl"), "--students", *folders]))


def test_students_are_never_mixed(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="Named: cot, decomposer. Missing: solver"):
        infer.find_students("socratic", [str(tmp_path / "cot"), folders[0]])
    embedded = infer.find_students("socratic")
    assert {folder.parent.name for folder in embedded.values()} == {"students"}
    tiny_student("decomposer").save_pretrained("runs/demo-tiny-decomposer")
    assert infer.find_students("socratic") == embedded, "half a pair is not used"
    tiny_student("solver").save_pretrained("runs/demo-tiny-solver")
    assert {folder.parent.name for folder in infer.find_students("socratic").values()} == {"runs"}


def test_the_embedded_students_solve_the_story_of_the_readme(capsys):
    story = "Ava had 3 boxes with 4 pens in each. Ava gave 5 of the pens to Ben. How many pens did Ava have left?"
    (dialogue,) = solve([Problem("readme", story)], infer.load_students(infer.find_students("socratic")))
    assert dialogue.answer == "7"
    assert all(calculate(a) == b for turn in dialogue.turns for a, b in re.findall(r"<<(.*?)=(.*?)>>", turn.text))


def test_a_cue_is_read_in_one_go_and_everything_else_one_token_a_step():
    student = Student("solver", Parrot(recite(PROBLEM, "solver")), TOKENIZER)
    solve([PROBLEM], parrots(PROBLEM) | {"solver": student})
    cues = infer.make_cues(PROBLEM, "solver", [Step(step.question) for step in PROBLEM.steps])
    n_read = [sum(len(tokenize(text, TOKENIZER)) for text in cue) + (i > 0) for i, cue in enumerate(cues)]
    assert [n for (n,) in student.model.calls if n > 1] == n_read and len(cues) == 3
    assert sum(n for (n,) in student.model.calls) == len(encode(segments(PROBLEM, "solver"), TOKENIZER)[0])


def test_gold_solutions_are_read_and_only_the_rest_is_written():
    (dialogue,) = solve([PROBLEM], parrots(PROBLEM), given=[PROBLEM.steps])
    assert [(turn.speaker, turn.kind, turn.text) for turn in dialogue.turns] == [("solver", "Answer", "7")]
    half = [PROBLEM.steps[0], Step(PROBLEM.steps[1].question)]
    (dialogue,) = solve([PROBLEM], parrots(PROBLEM), given=[half])
    assert [turn.text for turn in dialogue.turns] == ["12-5 = <<12-5=7>>7 are left.", "7"]


def test_a_turn_without_a_label_is_what_the_role_usually_writes():
    script = Parrot(lambda so_far: "How many?\n"[len(so_far.rpartition("left?\n")[2]):] or None)
    (dialogue,) = solve([PROBLEM], parrots(PROBLEM) | {"decomposer": Student("decomposer", script, TOKENIZER)})
    assert dialogue.texts("Subquestion")[0] == "How many?" and not dialogue.turns[0].kind == "Solution"
    for text in ("Answer", "Answers: 12", "Solution"):    # a label has a colon
        script = Parrot(recite(PROBLEM, "cot"))
        script.script = lambda so_far, text=text: f"{text}\n"[len(so_far.rpartition("left?\n")[2]):] or None
        (dialogue,) = solve([PROBLEM], parrots(PROBLEM) | {"cot": Student("cot", script, TOKENIZER)}, "cot")
        assert [(turn.kind, turn.text) for turn in dialogue.turns[:1]] == [("Solution", text)] and dialogue.answer is None


def test_a_solver_that_writes_the_end_token_early_is_given_the_next_cue():
    actors = parrots(PROBLEM) | {"solver": Student("solver", Parrot(lambda so_far: None), TOKENIZER)}
    (dialogue,) = solve([PROBLEM], actors)
    assert [turn.kind for turn in dialogue.turns][2:] == ["Solution", "Solution", "Answer"]
    assert "pens?\nSolution:\nSubquestion: How many are" in TOKENIZER.decode(actors["solver"].model.fed[0])


def test_ids_beyond_the_tokenizers_are_never_written_and_too_few_are_one_clear_line(tmp_path):
    torch.manual_seed(0)
    wide = GPT(GPTConfig(vocab_size=2100, n_positions=1024, n_embd=16, n_layer=1, n_head=2), {"role": "cot", "tokenizer": "tiny"})
    with torch.no_grad():
        wide.ln_f.bias.fill_(1.0)
        wide.wte.weight[2048:] = 5.0    # by far the likeliest
    wide.save_pretrained(tmp_path / "wide")
    students = infer.load_students({"cot": tmp_path / "wide"}, "cpu")
    for temperature in (0.0, 1.0):
        (dialogue,) = infer.solve([Problem("x", "Who?")], students, "cot", temperature=temperature)
        assert dialogue.turns, "only ids of the tokenizer can be decoded"
    GPT(GPTConfig(vocab_size=2000, n_positions=64, n_embd=16, n_layer=1, n_head=2), {"tokenizer": "tiny"}).save_pretrained(tmp_path / "few")
    with pytest.raises(SystemExit, match="2,000 tokens does not fit the tokenizer tiny with 2,048"):
        infer.load_students({"cot": tmp_path / "few"}, "cpu")
