"""S-JEPA checkpoints as an upstream of S3PRL (https://github.com/s3prl/s3prl), the toolkit of the SUPERB benchmark.

    mkdir S3PRL/s3prl/upstream/sjepa && cp hubconf.py S3PRL/s3prl/upstream/sjepa/
    echo "from s3prl.upstream.sjepa.hubconf import *" >> S3PRL/s3prl/hub.py
    cd S3PRL/s3prl && python run_downstream.py -m train -n NAME -u sjepa_custom -k CHECKPOINT -d asr

CHECKPOINT is a directory or a name on the Hub; sjepa_hf need not be installed. S3PRL 0.4.18 itself wants a torchaudio
that still has `sox_effects` and `set_audio_backend` (2.8 or older), and two names that huggingface_hub no longer has:
those get a stand-in here, since `s3prl.hub`, which imports this file, is what S3PRL imports first. To resume or
evaluate (`-e`), it reads checkpoints of its own that torch opens only with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.
"""

import huggingface_hub
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel


__all__ = ["sjepa_custom"]  # what `s3prl.hub` lists


class Removed:
    """Stands in for what S3PRL imports to publish models; publishing them with it is not possible."""

    def __getattr__(self, *_, **__):
        raise RuntimeError("This huggingface_hub cannot publish in S3PRL's way: leave out --push_to_hf_hub and --hub.")

    __call__ = __getattr__


for name in ("HfFolder", "Repository"):
    if not hasattr(huggingface_hub, name):
        setattr(huggingface_hub, name, Removed())


class UpstreamExpert(nn.Module):
    """
    Args:
        ckpt (`str`): directory or Hub name of a checkpoint, of any head.
    """

    def __init__(self, ckpt: str, *args, **kwargs):
        super().__init__()
        self.model = AutoModel.from_pretrained(ckpt, trust_remote_code=True)

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples between two frames."""
        return self.model.config.inputs_to_logits_ratio

    def forward(self, wavs: list[torch.Tensor]) -> dict[str, tuple[torch.Tensor, ...]]:
        """Waveforms `(num_samples,)` at 16 kHz -> every layer `(batch_size, sequence_length, hidden_size)`."""
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        waveforms = pad_sequence(list(wavs), batch_first=True)  # [B, S]
        attention_mask = (torch.arange(waveforms.shape[1], device=lengths.device) < lengths[:, None]).long()
        outputs = self.model(waveforms, attention_mask=attention_mask, output_hidden_states=True)
        return {"hidden_states": outputs.hidden_states, "last_hidden_state": outputs.last_hidden_state}


def sjepa_custom(ckpt: str, *args, **kwargs) -> UpstreamExpert:
    """The upstream on a checkpoint (`-k`)."""
    return UpstreamExpert(ckpt, *args, **kwargs)
