"""What other libraries put around single modules of an encoder: adapters, pruning, offloading, hooks, torch.func."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune

from sjepa_hf import SJepaForSequenceClassification, SJepaModel


FRONT_ENDS = ("waveform", "log_mel")
CONVOLUTIONS = {
    "front end": r".*feature_extractor.*conv",
    "first layer": r".*conv_layers\.0\.conv",
    "positions": r".*pos_conv_embed\.conv",
}


@pytest.fixture
def batch(padded_batch):
    return dict(zip(("input_values", "attention_mask"), padded_batch))


def features(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).last_hidden_state


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`", "ignore:LoRA adapter added to ConvNd")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_adapters_of_convolutions_are_heard_and_merge(targets, dtype, make_config, batch):
    """Of positions, too, in groups so narrow that they are convolved in fp32 on a CPU."""
    model = SJepaModel(make_config()).to(dtype)
    assert model.encoder.pos_conv_embed.conv.in_channels // model.encoder.pos_conv_embed.conv.groups % 16
    before = features(model, batch)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    expected = features(adapted, batch)
    assert (expected - before).abs().max() > 0.05
    adapted.train()(**batch).last_hidden_state[:, :, :5].square().mean().backward()
    learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert learning and all(parameter.grad.abs().max() > 0 for parameter in learning)
    if targets == CONVOLUTIONS["positions"]:
        return  # PEFT merges no convolution in groups
    merged = features(adapted.merge_and_unload(), batch)
    torch.testing.assert_close(merged, expected, atol=1e-4 if dtype == torch.float32 else 0.2, rtol=0)


def test_pruned_convolutions_learn_and_stay_pruned(make_config, batch):
    model = SJepaModel(make_config()).train()
    convolutions = [layer.conv for layer in model.feature_extractor.conv_layers]
    for conv in convolutions:
        prune.l1_unstructured(conv, "weight", 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [conv.weight_orig.clone() for conv in convolutions]
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).last_hidden_state[:, :, :5].square().mean().backward()
        optimizer.step()
    assert not any(conv.weight_orig.equal(old) for conv, old in zip(convolutions, before))
    expected = features(model, batch)
    for conv in convolutions:
        prune.remove(conv, "weight")
        assert (conv.weight == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(features(model, batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("to_disk", [False, True])
def test_offloaded_weights_are_there_when_they_are_read(to_disk, front_end, make_config, batch, tmp_path):
    model = SJepaModel(make_config(front_end))
    expected = features(model, batch)
    device = torch.device("cpu")
    model = disk_offload(model, str(tmp_path), device) if to_disk else cpu_offload(model, device)
    assert next(model.parameters()).is_meta
    torch.testing.assert_close(features(model, batch), expected, atol=1e-5, rtol=0)


def test_hooks_on_convolutions_are_called(make_config, batch):
    model = SJepaModel(make_config())
    expected, called = features(model, batch), []
    hooked = [layer.conv for layer in model.feature_extractor.conv_layers]
    hooked += [model.feature_extractor.conv_layers[0].layer_norm, model.encoder.pos_conv_embed.conv]
    hooks = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in hooked]
    torch.testing.assert_close(features(model, batch), expected, atol=1e-5, rtol=0)
    assert len(called) == len(hooked) and set(called) == set(hooked)
    for hook in hooks:
        hook.remove()
    assert features(model, batch).equal(expected) and len(called) == len(hooked)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_gradients_of_single_clips_by_torch_func(front_end, masked, make_config, batch):
    """As differential privacy and influence functions take them; whole batches are a mean over clips."""
    model = SJepaForSequenceClassification(
        make_config(front_end, num_labels=4, classifier_proj_size=8, attn_implementation="eager")
    ).eval()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers, clips = dict(model.named_buffers()), batch["input_values"]
    masks = batch["attention_mask"] if masked else torch.ones_like(batch["attention_mask"])

    def loss(weights, clip, mask, label):
        inputs = {"input_values": clip[None], "labels": label[None]} | (
            {"attention_mask": mask[None]} if masked else {}
        )
        return functional_call(model, (weights, buffers), (), inputs).loss

    labels = torch.tensor([1, 3, 0])
    found = vmap(grad(loss), (None, 0, 0, 0))(weights, clips, masks, labels)
    for i, (clip, mask, label) in enumerate(zip(clips, masks, labels)):
        alone = torch.autograd.grad(
            model(clip[None], mask[None], labels=label[None]).loss, list(model.parameters()), allow_unused=True
        )
        for name, expected in zip(weights, alone):
            if expected is not None:
                torch.testing.assert_close(found[name][i], expected, atol=1e-5, rtol=1e-3, msg=name)
