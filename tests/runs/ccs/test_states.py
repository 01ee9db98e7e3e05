from probing.runs.ccs.states import FormStates
from probing.types import Problem

KNOWN = frozenset(f"{pair}#{form}" for pair in "ab" for form in ("A1", "A0", "N1", "N0", "marker:A1"))
PROBLEMS = {
    problem.id: problem
    for problem in (
        Problem("a#N0", "too_long", "9 tokens"),
        Problem("a#A0", "refused", "no"),
        Problem("b#marker:N1", "empty_text", "nothing"),
    )
}
FORMS = FormStates(None, {}, KNOWN, PROBLEMS, "the last token")


def test_the_problem_of_a_pair_is_that_of_its_first_form():
    assert FORMS.problem("a") == Problem("a", "refused", "A0: no")
    assert FORMS.problem("b") is None
    assert FORMS.problem("b", "marker:") == Problem("b", "empty_text", "marker:N1: nothing")


def test_a_variant_is_there_when_all_of_its_forms_are():
    assert FORMS.has(["a", "b"], "")
    assert not FORMS.has(["a"], "marker:")
    assert not FORMS.has(["a", "c"], "")
