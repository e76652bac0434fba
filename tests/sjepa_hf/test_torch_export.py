"""Programs of `torch.export` are made of what other runtimes compute rightly."""

import pytest
import torch

from sjepa_hf import SJepaForCTC, SJepaForSequenceClassification, SJepaModel


MODELS = pytest.mark.parametrize(
    "front_end, model_class",
    [
        ("waveform", SJepaModel),
        ("waveform", SJepaForCTC),
        ("stem", SJepaModel),
        ("stem", SJepaForCTC),
        ("stem", SJepaForSequenceClassification),
    ],
)


@pytest.fixture
def model(front_end, model_class, make_config):
    return model_class(make_config(front_end)).eval()


def clips(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and its attention mask."""
    attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randn(attention_mask.shape), attention_mask


class Output(torch.nn.Module):
    """The output of a model alone, as a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_values, attention_mask):
        return self.model(input_values, attention_mask=attention_mask)[0]


def exported(model) -> torch.export.ExportedProgram:
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", min=720)}
    return torch.export.export(Output(model), clips(16000, 9037), dynamic_shapes=(shape, shape))


@MODELS
def test_openvino_gives_what_pytorch_gives(model):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    converted = openvino.compile_model(openvino.convert_model(exported(model)), "CPU", exact)
    for lengths in ([400], [719], [720], [16000], [16123], [16000, 9037, 450], [16123, 719]):
        input_values, attention_mask = clips(*lengths)
        with torch.no_grad():
            wanted = Output(model)(input_values, attention_mask)
        found = converted([input_values.numpy(), attention_mask.numpy()])[0]
        real = slice(None)
        if not isinstance(model, SJepaForSequenceClassification):
            frames = model.config.num_frames(torch.tensor(lengths))
            real = torch.arange(wanted.shape[1]) < frames[:, None]
        torch.testing.assert_close(torch.from_numpy(found)[real], wanted[real], atol=1e-4, rtol=0)
