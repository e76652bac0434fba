"""Word and character error rate of transcripts."""

import evaluate
import jiwer
from datasets import Features, Value


class ErrorRate(evaluate.Metric):
    """Errors of all utterances over units of all references: long utterances weigh more than short ones."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="https://github.com/jitsi/jiwer",
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )


class Wer(ErrorRate):
    """Word error rate: (substitutions + deletions + insertions) / words of the references, at least one."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        if not any(reference.split() for reference in references):
            raise ValueError("`wer` needs a reference with at least one word.")
        return {"wer": float(jiwer.wer(list(references), list(predictions)))}


class Cer(ErrorRate):
    """Character error rate: the same over characters, spaces between words among them."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        if not any(reference.strip() for reference in references):
            raise ValueError("`cer` needs a reference with at least one character.")
        return {"cer": float(jiwer.cer(list(references), list(predictions)))}
