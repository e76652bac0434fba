"""What the prediction at hidden frames knows of the phone there, by distance to the nearest visible frame."""

import torch
from tqdm.auto import tqdm

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.frame_features import FRAME_FEATURES
from sjepa_hf.scores import markdown_table
from sjepa_hf.soft_targets import soft_target_divergence
from training.data.labelled import LabelledClips
from training.data.masking import FARTHEST, SpanMask, distance_to_visible
from training.evaluation.phone_information import JointCounts, of_other_clips


DRAWS = 10  # masks of each clip
TARGETS = "targets themselves"


@torch.inference_mode()
def knowledge_at_hidden_frames(
    model: SJepaForPreTraining,
    clips: LabelledClips,
    phones: list[torch.Tensor],
    num_phones: int,
    mask: SpanMask,
    seed: int,
) -> list[dict]:
    """
    Phone information of the prediction (a share of the phones' entropy), and its KL in nats from the targets.

    Args:
        model: a pretraining checkpoint, on its device. Where its mixture is over layers of the encoder
            (`config.mixture_features`), or over unknown features, the EMA encoder that targets were read from is not
            in it: then there is neither KL nor the row of the targets.
        clips: those that are aligned.
        phones: for each clip the numbers of its frames' phones, integers `(<= num_frames,)`; later frames are not
            counted.
        num_phones: how many there are.
        mask: how frames are hidden, `DRAWS` times in each clip.
        seed: of the masks.

    Returns:
        A row for each distance that occurs (`frames`, counted once for each mask, `soft`, `hard`, `soft_chance`,
        `hard_chance`, see [`Information`], and `kl` or None), one for visible frames where nothing is masked, and one
        for the targets themselves.
    """
    device, components = model.device, model.mixture.num_components
    has_targets = model.config.mixture_features in FRAME_FEATURES
    names = [*(f"{d}{' or more' if d == FARTHEST else ''}" for d in range(1, FARTHEST + 1)), "nothing hidden", TARGETS]
    counts = {name: JointCounts(num_phones, components) for name in names}
    others = of_other_clips(phones)
    divergences, generator = dict.fromkeys(names, 0.0), torch.Generator().manual_seed(seed)
    for index in tqdm(range(len(phones)), desc="hidden frames", leave=False, disable=None):
        audio, expected = torch.from_numpy(clips[index]["input_values"])[None].to(device), phones[index]
        elsewhere = others[index]
        count = model.config.num_frames(audio.shape[1])
        real = torch.arange(count) < len(expected)
        targets = None
        if has_targets:
            targets = model.unit_posteriors(audio)[0].float().cpu()
            counts[TARGETS].add(expected, elsewhere, targets[real])
        logits = model(audio).logits[0].float().cpu()
        predictions = [("nothing hidden", logits, real)]
        masks = mask(torch.full((DRAWS,), count), count, generator)
        distances = distance_to_visible(~masks)
        for hidden, distance in zip(masks, distances, strict=True):
            logits = model(audio, mask_time_indices=hidden[None].to(device)).logits[0].float().cpu()
            predictions += [(name, logits, (distance == d) & real) for d, name in enumerate(names[:FARTHEST], 1)]
        for name, logits, chosen in predictions:
            counted = chosen[: len(expected)]
            counts[name].add(expected[counted], elsewhere[counted], logits[chosen].softmax(-1))
            if has_targets:
                divergences[name] += soft_target_divergence(logits[chosen], targets[chosen]).sum().item()
    rows = []
    for name, table in counts.items():
        if frames := int(table.hard.sum()):
            figures = table.result()._asdict()
            shares = {share: figures[share] for share in ("soft", "hard", "soft_chance", "hard_chance")}
            kl = divergences[name] / frames if has_targets else None
            rows.append({"distance": name, "frames": frames, **shares, "kl": kl})
    return rows


def hidden_frame_table(rows: list[dict]) -> str:
    """Markdown; in brackets what chance gives."""
    lines = []
    for row in rows:
        kl = "" if row["kl"] is None else f"{row['kl']:.2f}"
        shares = [f"{row[name]:.3f} ({row[f'{name}_chance']:.3f})" for name in ("soft", "hard")]
        lines.append([row["distance"], f"{row['frames']:,}", *shares, kl])
    return markdown_table(["distance to the nearest visible frame", "frames", "soft", "hard", "KL, nats"], lines)
