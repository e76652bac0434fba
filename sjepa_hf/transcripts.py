"""Transcripts: the text that the labels of a CTC head stand for."""

from collections.abc import Sequence

from transformers import Wav2Vec2CTCTokenizer


UNKNOWN_SIGN = "\ufffd"  # for a character that the tokenizer does not know


def silent_labels(tokenizer: Wav2Vec2CTCTokenizer) -> set[int]:
    """Labels that stand for no text, such as `<s>`: the special ones but blank, word delimiter and `<unk>`."""
    written = (tokenizer.pad_token_id, tokenizer.word_delimiter_token_id, tokenizer.unk_token_id)
    return set(tokenizer.all_special_ids).difference(written)


def with_blanks(labels: Sequence[int], tokenizer: Wav2Vec2CTCTokenizer) -> list[int]:
    """Labels of frames `(num_frames,)`, with a blank in place of each that stands for no text."""
    silent = silent_labels(tokenizer)
    return [tokenizer.pad_token_id if label in silent else label for label in labels]
