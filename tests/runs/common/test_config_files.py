import pytest

from probing.errors import UsageError
from probing.runs.common.config_files import check_argument, check_config_file

BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
WRONG = {
    "anchors": (BOMB, "line 1: anchors and references are not taken"),
    "a key twice": ("model: a\ndata: b\nmodel: c\n", "line 3: 'model' stands there twice"),
    "a key spelled in two ways": ("batch_tokens: 1\nbatch-tokens: 2\n", "line 2: 'batch-tokens' stands there twice"),
    "nested lists": ("places: " + "[" * 100_000, "line 1: nested too deeply"),
    "nested objects": ("{a: " * 100_000, "line 1: nested too deeply"),
    "a list": ("- model\n- data\n", "line 1: expected options, one a line"),
    "a word": ("model\n", "line 1: expected options"),
    "a key that is a list": ("[a, b]: c\n", "line 1: a key must be the name of an option"),
    "broken": ("model: [a\n", "broken YAML"),
    "a control character": ("model: \x00\n", "special characters are not allowed"),
    "large": ("#" * (1 << 20) + "\nmodel: a", "larger than 1 MiB"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_file_of_options_is_refused(tmp_path, case):
    text, message = WRONG[case]
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"c.yaml.*{message}"):
        check_config_file(str(tmp_path / "c.yaml"))


def test_a_file_of_options(tmp_path):
    (tmp_path / "c.yaml").write_text("model: bundled\nplaces: [resid_post:1, final_norm]\nmax-length: 64\n")
    check_config_file(str(tmp_path / "c.yaml"))
    with pytest.raises(UsageError, match="no such file"):
        check_config_file(str(tmp_path / "d.yaml"))
    (tmp_path / "d.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(UsageError, match="is no text"):
        check_config_file(str(tmp_path / "d.yaml"))


def test_an_argument_that_would_end_the_process():
    check_argument("--places=[a, b]")
    with pytest.raises(UsageError, match="opening brackets"):
        check_argument("[" * 100_000)
