import pytest

from sjepa_hf.transcripts import silent_labels, with_blanks
from training.finetuning.text import build_tokenizer


@pytest.fixture
def tokenizer():
    return build_tokenizer(["AB"])  # <pad>, <s>, </s>, <unk>, |, A, B


def test_signs_of_begin_and_end_are_no_text(tokenizer):
    assert silent_labels(tokenizer) == {1, 2}


def test_a_blank_in_their_place_keeps_equal_letters_apart(tokenizer):
    labels = with_blanks([1, 5, 1, 5, 5, 3, 4, 6, 2], tokenizer)
    assert labels == [0, 5, 0, 5, 5, 3, 4, 6, 0] and tokenizer.decode(labels) == "AA<unk> B"
