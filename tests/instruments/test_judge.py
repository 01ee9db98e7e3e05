import shlex
import sys
import time

import pytest

from probing.errors import DataInvalid, UsageError
from probing.instruments.judge import Judge

START = "import json, sys, time\nfor line in sys.stdin:\n row = json.loads(line)\n"
REPLY = " print(json.dumps({{'id': {id}, 'verdict': {verdict}}}), flush=True)"


def command(tmp_path, body):
    """A judge in Python: what it does with each ``row``."""
    file = tmp_path / "judge.py"
    file.write_text(START + body)
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(file))}"


def test_verdicts_come_back_in_order(tmp_path):
    said = "'refusal' if row['answer'].startswith('No') else 'other'"
    with Judge(command(tmp_path, REPLY.format(id="row['id']", verdict=said)), 20.0) as judge:
        found = [judge.ask(str(number), "Prompt\n\u2028", text) for number, text in enumerate(["No.", "Yes.", "No"])]
    assert found == ["refusal", "other", "refusal"]
    assert judge._process.returncode == 0


BAD = {
    "no JSON": (" print('refusal', flush=True)", "wrote no JSON: 'refusal'"),
    "another row": (REPLY.format(id="'x'", verdict="'refusal'"), "answered something else"),
    "a list": (" print([1], flush=True)", "answered something else"),
    "no such verdict": (REPLY.format(id="row['id']", verdict="'maybe'"), "gave the verdict 'maybe'"),
    "dies": (" sys.exit(3)", r"ended \(status 3\) before it answered"),
    "hangs": (" time.sleep(60)", "did not answer within 1 seconds"),
    "half a line": (" sys.stdout.write('{'); sys.stdout.flush(); time.sleep(60)", "did not answer within"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_judge_that_fails_is_named(tmp_path, case):
    body, said = BAD[case]
    began, seconds = time.monotonic(), 1.0 if "did not answer" in said else 20.0
    with pytest.raises(DataInvalid, match=said) as error, Judge(command(tmp_path, body), seconds) as judge:
        judge.ask("7", "p", "a")
    assert "the judge '" in str(error.value)
    assert "row '7'" in str(error.value)
    assert judge._process.returncode is not None
    assert time.monotonic() - began < 20


def test_no_such_program():
    for wrong in ("no-such-program-here", "", "'"):
        with pytest.raises(UsageError, match="cannot be started"):
            Judge(wrong, 1.0)
