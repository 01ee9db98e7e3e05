from hypothesis import given
from hypothesis import strategies as st

from probing.tokens.padding import padded_length


@given(st.integers(1, 5000), st.none() | st.integers(1, 5000))
def test_padding_is_little_and_never_past_the_limit(length, limit):
    padded = padded_length(length, limit)
    assert length <= padded < length + 16
    assert limit is None or padded <= max(limit, length)
    assert padded % 16 == 0 or padded == max(limit, length)
