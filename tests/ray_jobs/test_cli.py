"""What the command line answers to mistakes: one screen with got / wanted / fix, and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from ray_jobs.cli import COMMANDS, main


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_user_error(code, err, *parts):
    assert code == 2
    assert err.startswith("got:")
    for part in ("wanted:", "fix:", *parts):
        assert part in err
    assert err.count("\n") <= 12, "one screen"


def test_help_imports_nothing_heavy():
    """The bound is on imports, which are the cause; the time itself is printed by benchmarks/help_time.py."""
    code = (
        "import sys; from ray_jobs.cli import main; main(['--help']);"
        "heavy = {'torch', 'ray', 'transformers', 'deepspeed', 'datasets', 'pyarrow', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


def test_help_answers_in_under_a_second():
    best = min(_seconds([sys.executable, "-m", "ray_jobs.cli", "--help"]) for _ in range(3))
    assert best < 1.0


def _seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return time.perf_counter() - start


def test_a_typo_in_a_key_names_the_nearest(capsys):
    code, _, err = run(capsys, "train", "demo", "train.learning_rat=1e-4")
    assert_user_error(code, err, "train.learning_rat", "did you mean 'train.learning_rate'?")


def test_a_key_in_the_wrong_section_is_found(capsys):
    code, _, err = run(capsys, "train", "demo", "learning_rate=1e-4")
    assert_user_error(code, err, "did you mean 'train.learning_rate'?")


def test_a_value_of_the_wrong_kind(capsys):
    code, _, err = run(capsys, "train", "demo", "train.num_epochs=many")
    assert_user_error(code, err, "train.num_epochs", "'many'")


def test_a_missing_recipe_file(capsys):
    code, _, err = run(capsys, "train", "no/such.yaml")
    assert_user_error(code, err, "no/such.yaml")


def test_a_wrong_task_name(capsys, tmp_path):
    code, _, err = run(capsys, "prepare", "demo", "task=vigo", f"ray.storage_path={tmp_path}")
    assert_user_error(code, err, "vigo", "viggo")


def test_a_missing_data_file(capsys, tmp_path):
    code, _, err = run(capsys, "prepare", "demo", "data.source=no/such.csv", f"ray.storage_path={tmp_path}")
    assert_user_error(code, err, "no/such.csv")


def test_an_unreadable_csv_row_is_named(capsys, tmp_path):
    file = tmp_path / "train.csv"
    file.write_text('mr,ref\n"inform(name[a])","A is a game."\n"inform(name[b])"\n')
    code, _, err = run(capsys, "prepare", "demo", f"data.source={file}", f"ray.storage_path={tmp_path}")
    assert_user_error(code, err, "train.csv", "3")


def test_a_deepspeed_name_that_does_not_exist(capsys, tmp_path):
    from fulltune import config
    from fulltune.engine import settings
    from ray_jobs import recipes
    from tasks.base import UserError

    with pytest.raises(UserError, match="zero2"):
        settings.base(config.load(recipes.path("demo"), ["deepspeed=zero22"]))
    with pytest.raises(UserError, match="max_grad_norm"):
        settings.base(config.load(recipes.path("demo"), ["deepspeed={gradient_clipping: 1.0}"]))


def test_print_config_and_schema(capsys):
    code, out, _ = run(capsys, "train", "demo", "--print-config", "train.learning_rate=1e-4")
    assert code == 0
    assert "learning_rate: 0.0001" in out
    code, out, _ = run(capsys, "train", "demo", "--json-schema")
    assert code == 0
    assert json.loads(out)["properties"]["train"]


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_score_prints_one_json_object(capsys, tmp_path):
    references, predictions = tmp_path / "test.csv", tmp_path / "predictions.jsonl"
    references.write_text('mr,ref\n"inform(name[Dusk])","Dusk is a game."\n"inform(name[Dawn])","Dawn is a game."\n')
    rows = [{"id": "viggo-test-0", "completion": "inform(name[Dusk])"}, {"id": "viggo-test-1", "completion": "no idea"}]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run(
        capsys, "score", "--task", "viggo", "--references", str(references), "--predictions", str(predictions), "--json"
    )
    assert code == 0
    result = json.loads(out)
    assert result["n"] == 2
    assert result["metrics"]["exact"]["mean"] == 0.5
    assert result["errors"] == {"not_a_function": 1}


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_score_says_each_warning_once_and_counts_what_it_is_about(capsys, tmp_path, as_json):
    references, predictions = tmp_path / "test.csv", tmp_path / "predictions.jsonl"
    references.write_text('mr,ref\n"inform(name[Dusk])","Dusk is a game."\n')
    rows = [{"id": "viggo-test-0", "completion": "inform(na", "finish_reason": "length"}] * 2
    predictions.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "other", "completion": "x"}]))
    command = ["score", "--task", "viggo", "--references", str(references), "--predictions", str(predictions)]
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *command, *as_json], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("repeat an id") == 1
    assert done.stderr.count("not in the references") == 1
    if as_json:
        found = json.loads(done.stdout)
        assert (found["duplicates"], found["unknown"], found["truncated"], found["missing"]) == (1, 1, 1, 0)
