"""The arithmetic of SUPERB's heads and scores in `training.superb` against S3PRL's classes, weights copied.

    /path/to/s3prl/bin/python -m benchmarks.s3prl.heads

Features and answers are random; every line is the largest difference seen.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from benchmarks.s3prl.toolkit import without_torchaudio
from sjepa_hf.command import CommandParser, command
from training.evaluation.superb.diarization import diarization_error_rate
from training.evaluation.superb.heads import CtcHead, DiarizationHead, LayerSum, PooledHead, XVectorHead
from training.evaluation.superb.labels import score
from training.evaluation.superb.query_by_example import query_scores
from training.evaluation.superb.verification import equal_error_rate


LENGTHS = (120, 70, 99)  # frames of three clips of two layers of eight dimensions


def features() -> tuple[list[Tensor], Tensor, Tensor]:
    """Layers of each clip, their averages as S3PRL's heads are given them, padded, and the clips' lengths."""
    clips = [torch.randn(2, length, 8) for length in LENGTHS]
    return clips, pad_sequence([clip.mean(0) for clip in clips], batch_first=True), torch.tensor(LENGTHS)


def pooled() -> float:
    from s3prl.downstream.model import UtteranceLevel

    clips, frames, lengths = features()
    head, theirs = PooledHead(LayerSum(2), 8, [5]), UtteranceLevel(256, 5)
    theirs.post_net.linear.load_state_dict(head.classifier.state_dict())
    (logits,) = head.logits([clip.mean(1) for clip in clips])
    return float((logits - theirs(head.projector(frames), lengths)[0]).abs().max())


def recurrent_ctc() -> float:
    from s3prl.downstream.asr.model import RNNs

    clips, frames, lengths = features()
    head = CtcHead(LayerSum(2), 8, 7, recurrent=True, units=16).eval()
    twice = {"dim": [16] * 2, "dropout": [0.2] * 2, "layer_norm": [False] * 2, "proj": [False] * 2}
    theirs = RNNs(16, 7, 320, module="LSTM", bidirection=True, sample_rate=[1, 1], sample_style="concat", **twice)
    for n, layer in enumerate(theirs.eval().rnns):
        names = {name.replace("_l0", f"_l{n}"): value for name, value in layer.layer.named_parameters()}
        for name, value in names.items():
            value.data = getattr(head.rnn, name).data
    theirs.linear.load_state_dict(head.classifier.state_dict())
    ours, wanted = head.logits(clips)[0], theirs(head.projector(frames), lengths)[0]
    return max(float((a[:n] - b[:n]).abs().max()) for a, b, n in zip(ours, wanted, LENGTHS))


def diarization() -> tuple[float, float]:
    """Loss, and error rate of each clip."""
    from s3prl.downstream.diarization.model import Model
    from s3prl.downstream.diarization.utils import calc_diarization_error, pit_loss

    clips, frames, lengths = features()
    targets = [torch.randint(2, (length, 2)).float() for length in LENGTHS]
    head, theirs = DiarizationHead(LayerSum(2), 8, units=16), Model(8, 2, 1, 16)
    theirs.rnn.load_state_dict(head.rnn.state_dict())
    theirs.linear.load_state_dict(head.classifier.state_dict())
    loss = pit_loss(theirs(frames), pad_sequence(targets, batch_first=True), lengths)[0]
    worst = 0.0
    for logits, target in zip(head.predict(clips), targets):
        rates = []
        for order in ([0, 1], [1, 0]):
            counts = calc_diarization_error(logits[None], target[None][:, :, order], torch.tensor([len(target)]))
            rates.append(sum(counts[-3:]) / counts[-4])
        worst = max(worst, abs(min(rates) - diarization_error_rate([(logits > 0).numpy()], [target.numpy()])))
    return float((head.loss(clips, targets) - loss).abs()), worst


def x_vectors() -> tuple[float, float, float]:
    """Embeddings, loss, and equal error rate of 50 lists."""
    from s3prl.downstream.sv_voxceleb1.model import AMSoftmaxLoss, Model
    from s3prl.downstream.sv_voxceleb1.utils import EER

    head = XVectorHead(LayerSum(2), 8, 5).eval()
    hparams = {"agg_dim": 1500, "dropout_p": 0.0, "batch_norm": False}
    model = Model(512, 1500, "SP", "XVector", "UtteranceExtractor", hparams).eval()
    layers = [layer for layer in head.frame_layers if isinstance(layer, nn.Conv1d)]
    for theirs, ours in zip(model.framelevel_feature_extractor.module, layers):
        theirs.kernel.weight.data = ours.weight.data.transpose(1, 2).reshape(ours.out_channels, -1)
        theirs.kernel.bias.data = ours.bias.data
    model.utterancelevel_feature_extractor.linear1.load_state_dict(head.embedding.state_dict())
    model.utterancelevel_feature_extractor.linear2.load_state_dict(head.last.state_dict())
    objective = AMSoftmaxLoss(512, 5)
    objective.W.data = head.speakers.data.T.clone()
    clips, speakers = [torch.randn(2, 90, 8) for _ in range(4)], torch.tensor([0, 3, 1, 4])
    frames, mask = head.projector(torch.stack([clip.mean(0) for clip in clips])), torch.zeros(4, 76)
    embeddings = normalize(model.inference(frames, mask), dim=-1) - torch.stack(head.predict(clips))
    losses = objective(model(frames, mask), speakers) - head.loss(clips, [speaker[None] for speaker in speakers])
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(50):
        targets = rng.random(300) < 0.5
        scores = rng.standard_normal(300) + targets
        worst = max(worst, abs(equal_error_rate(scores, targets) - EER(targets.astype(int), scores)[0]))
    return float(embeddings.abs().max()), float(losses.abs()), worst


def search() -> float:
    """Scores of 30 documents."""
    from s3prl.downstream.quesst14_dtw.expert import cosine_exp, match

    rng = np.random.default_rng(0)
    query, *documents = (rng.standard_normal((n, 16)) for n in (25, *rng.integers(20, 80, 30)))
    settings = {"step_pattern": "asymmetric", "keep_internals": False, "distance_only": False}
    settings |= {"open_begin": True, "open_end": True}
    costs = np.array([match(query, x, "query", "document", cosine_exp, True, settings)[2] for x in documents])
    first, *others = (normalize(torch.from_numpy(x), dim=-1) for x in (query, *documents))
    ours = query_scores(first, others)
    return float(np.abs(np.asarray(ours) - (costs - costs.mean()) / costs.std()).max())


def slots() -> tuple[float, float]:
    """Slot type F1 and slot value CER of 150 noisy answers, one at a time."""
    from s3prl.downstream.ctc.metric import slot_type_f1, slot_value_cer

    rng, worst = np.random.default_rng(0), [0.0, 0.0]
    words = ["B-x", "E-x", "B-y", "E-y", "TEA", "BIG", "A"]
    for _ in range(150):
        right = f"B-x {' '.join(rng.choice(words[4:], 2))} E-x A B-y BIG E-y".split()
        answer = [word for word in right if rng.random() > 0.2]
        for _ in range(int(rng.integers(3))):
            answer.insert(int(rng.integers(len(answer) + 1)), str(rng.choice(words)))
        texts = [" ".join(answer)], [" ".join(right)]
        ours = score(("slot_type_f1", "slot_value_cer"), *texts)
        theirs = slot_type_f1(*texts), slot_value_cer(*texts)
        worst = [max(old, abs(a - b)) for old, a, b in zip(worst, ours.values(), theirs)]
    return tuple(worst)


@command
def main(argv: list[str] | None = None) -> None:
    CommandParser(__doc__).parse_args(argv)
    without_torchaudio()
    torch.manual_seed(0)
    print(f"ks, ic, sid, er: logits {pooled():.1e}")
    print(f"asr, sf: logits {recurrent_ctc():.1e}")
    print("sd: loss {:.1e}, error rate {:.1e}".format(*diarization()))
    print("asv: embeddings {:.1e}, loss {:.1e}, equal error rate {:.1e}".format(*x_vectors()))
    print(f"qbe: scores {search():.1e}")
    print("sf: slot type F1 {:.1e}, slot value CER {:.1e}".format(*slots()))


if __name__ == "__main__":
    main()
