"""Convert a checkpoint of the authors' released code into one of this package.

    python -m sjepa_hf.convert_original portable_step100000.pt sjepa-base/ [--num_attention_heads 12]

Sizes are read off the tensors; the number of attention heads is not in them. The released predictor adds `E y` to its
output `y = P x`; both are linear, and become one: `(1 + E) P`.
"""

import re
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from .command import CommandParser, command, first_line
from .configuration_sjepa import SJepaConfig
from .feature_extraction import feature_extractor
from .modeling_sjepa_pretraining import SJepaForPreTraining
from .opening import why
from .saving import written_aside


# Released name (a regular expression) -> ours. Order matters: the first match counts.
RENAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"sjepa.feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.0\.1\.", r"sjepa.feature_extractor.conv_layers.0.layer_norm."),
    (r"post_extract_proj\.", r"sjepa.feature_projection.projection."),
    (r"layer_norm\.", r"sjepa.feature_projection.layer_norm."),
    (r"pos_conv\.conv\.", r"sjepa.encoder.pos_conv_embed.conv."),
    (r"encoder_layer_norm\.", r"sjepa.encoder.layer_norm."),
    (r"layers\.(\d+)\.([qkv]|out)_proj\.", r"sjepa.encoder.layers.\1.attention.\2_proj."),
    (r"layers\.(\d+)\.self_attn_layer_norm\.", r"sjepa.encoder.layers.\1.layer_norm."),
    (r"layers\.(\d+)\.final_layer_norm\.", r"sjepa.encoder.layers.\1.final_layer_norm."),
    (r"layers\.(\d+)\.fc1\.", r"sjepa.encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"layers\.(\d+)\.fc2\.", r"sjepa.encoder.layers.\1.feed_forward.output_dense."),
    (r"predictor\.mask_token$", r"predictor.mask_token"),
    (r"predictor\.pos_embed\.", r"predictor.position_embeddings."),
    (r"predictor\.layers\.(\d+)\.self_attn\.out_proj\.", r"predictor.layers.\1.attention.out_proj."),
    (r"predictor\.layers\.(\d+)\.norm1\.", r"predictor.layers.\1.layer_norm."),
    (r"predictor\.layers\.(\d+)\.norm2\.", r"predictor.layers.\1.final_layer_norm."),
    (r"predictor\.layers\.(\d+)\.linear1\.", r"predictor.layers.\1.feed_forward.intermediate_dense."),
    (r"predictor\.layers\.(\d+)\.linear2\.", r"predictor.layers.\1.feed_forward.output_dense."),
    (r"cluster_head\.([02])\.", r"cluster_head.layers.\1."),
    (r"cluster_head\.4\.", r"cluster_head.output."),
)

MIXTURE = ("gmm_weights", "gmm_means", "gmm_variances")


def read_checkpoint(path: str | Path) -> dict:
    """
    Read a released checkpoint without running anything in it.

    Returns:
        `dict` with `online` (a state dict) and, where the file has them, `ema_encoder` and `gmm_weights`, `gmm_means`
        and `gmm_variances`.

    Raises:
        ValueError: where the file is absent, is no checkpoint or holds no S-JEPA encoder.
    """
    path = Path(path)
    if path.is_dir():
        opens = (path / "config.json").is_file()
        way_out = "AutoModel opens it as it is" if opens else "name the checkpoint file in it"
        raise ValueError(f"{path} is a directory: {way_out}.")
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    try:
        loaded = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {first_line(error)}") from error
    checkpoint = loaded if isinstance(loaded, dict) and "online" in loaded else {"online": loaded}
    online = checkpoint["online"]
    if not isinstance(online, dict) or "post_extract_proj.weight" not in online:
        raise ValueError(f"{path} holds no encoder of the released code (`post_extract_proj.weight` is missing).")
    return checkpoint


def check_state_dict(where: str, tensors: object) -> None:
    """Raise a ValueError unless `tensors` is a dict of names to finite, dense floating point tensors."""
    if not isinstance(tensors, dict):
        raise ValueError(f"{where} is of type {type(tensors).__name__}, not a dict of tensors.")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{where} has {name!r} among its names, which is not text.")
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"`{name}` of {where} is of type {type(tensor).__name__}, not a tensor.")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"`{name}` of {where} is not a tensor of floating point numbers ({tensor.dtype}, {tensor.layout})."
            )
        if not tensor.float().isfinite().all():
            raise ValueError(f"`{name}` of {where} holds NaN or infinite numbers.")


def check_shape(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless there is a tensor of this name and shape."""
    if name not in tensors:
        raise ValueError(f"The checkpoint lacks `{name}`.")
    if tensors[name].shape != shape:
        raise ValueError(f"`{name}` has shape {tuple(tensors[name].shape)}, but {tuple(shape)} goes with the others.")


def mixture_of(loaded: dict) -> dict[str, torch.Tensor]:
    """The checkpoint's mixture under our names; nothing where it has none. Raises a ValueError if it is none."""
    mixture = {name.replace("gmm_", "mixture."): loaded[name] for name in MIXTURE if name in loaded}
    if not mixture:
        return {}
    check_state_dict("the mixture (gmm_*)", {name: loaded[name] for name in MIXTURE if name in loaded})
    if missing := [name for name in MIXTURE if name not in loaded]:
        raise ValueError(f"The checkpoint has a mixture without {', '.join(missing)}.")
    if loaded["gmm_means"].ndim != 2:
        raise ValueError(
            f"`gmm_means` has shape {tuple(loaded['gmm_means'].shape)}, but must be (components, features)."
        )
    if (loaded["gmm_variances"] <= 0).any():
        raise ValueError("`gmm_variances` holds numbers that are not positive.")
    if (loaded["gmm_weights"] < 0).any() or not 0.99 < loaded["gmm_weights"].sum() < 1.01:
        raise ValueError("`gmm_weights` must be at least 0 and sum to 1.")
    return mixture


def convert_state_dict(released: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Weights under our names, from those under the released names.

    Raises:
        ValueError: for a tensor of a name that the released code does not have, or several predictor experts.
    """
    converted = {}
    if any(name.startswith("predictor.expert_projs.1.") for name in released):
        raise ValueError("The checkpoint has several predictor experts (`expert_projs`); only one can be folded in.")
    for name, tensor in released.items():
        if name.startswith(("predictor.proj.", "predictor.expert_projs.")):
            continue
        packed = re.fullmatch(r"(predictor\.layers\.\d+)\.self_attn\.in_proj_(weight|bias)", name)
        if packed:
            if tensor.ndim == 0 or len(tensor) % 3:
                raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}: it must hold query, key and value.")
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{packed[1]}.attention.{part}_proj.{packed[2]}"] = chunk.clone()
            continue
        for pattern, replacement in RENAMES:
            if re.match(pattern, name):
                converted[re.sub(pattern, replacement, name, count=1)] = tensor
                break
        else:
            raise ValueError(f"`{name}` is not a tensor of the released code.")
    if any(name.startswith(("predictor.proj.", "predictor.expert_projs.")) for name in released):
        linear = ["predictor.proj"]
        if any(name.startswith("predictor.expert_projs.") for name in released):
            linear.append("predictor.expert_projs.0")
        size = len(released["post_extract_proj.weight"])
        for name in linear:
            check_shape(released, f"{name}.weight", (size, size))
            check_shape(released, f"{name}.bias", (size,))
        weight, bias = released["predictor.proj.weight"].double(), released["predictor.proj.bias"].double()
        if len(linear) == 2:
            expert = released["predictor.expert_projs.0.weight"].double()
            bias = bias + expert @ bias + released["predictor.expert_projs.0.bias"].double()
            weight = weight + expert @ weight
        dtype = torch.promote_types(released["predictor.proj.weight"].dtype, torch.float32)
        converted["predictor.projection.weight"] = weight.to(dtype)
        converted["predictor.projection.bias"] = bias.to(dtype)
    return converted


def count_layers(released: dict[str, torch.Tensor], prefix: str) -> int:
    """Layers under `prefix`, which must be numbered from 0 without a gap."""
    numbers = {match[1] for name in released if (match := re.match(rf"{re.escape(prefix)}(\d{{1,9}})\.", name))}
    if numbers != {str(i) for i in range(len(numbers))}:
        raise ValueError(
            f"The layers `{prefix}*` are not numbered from 0 without a gap: {', '.join(sorted(numbers))}."
        )
    return len(numbers)


def infer_config(released: dict[str, torch.Tensor], num_attention_heads: int | None, mixture_size: int | None):
    """
    [`SJepaConfig`] of a released state dict. Heads default to 64 dimensions each, as in the published base model.
    """
    needed = {  # and their dimensions
        "post_extract_proj.weight": 2,
        "layers.0.fc1.weight": 2,
        "pos_conv.conv.parametrizations.weight.original1": 3,
        "predictor.layers.0.linear1.weight": 2,
        "predictor.pos_embed.weight": 2,
        "cluster_head.4.weight": 2,
    }
    if missing := [name for name in needed if name not in released]:
        raise ValueError(f"The checkpoint lacks {', '.join(missing)}: encoder, predictor and head belong together.")
    for name, dimensions in needed.items():
        if released[name].ndim != dimensions or 0 in released[name].shape:
            raise ValueError(
                f"`{name}` has shape {tuple(released[name].shape)}: it must have {dimensions} dimensions."
            )
    hidden_size, conv_dim = released["post_extract_proj.weight"].shape
    num_components = released["cluster_head.4.weight"].shape[0]
    direction = released["pos_conv.conv.parametrizations.weight.original1"]  # [H, H / groups, kernel]
    if num_attention_heads is None:
        num_attention_heads = max(hidden_size // 64, 1)
    return SJepaConfig(
        hidden_size=hidden_size,
        num_hidden_layers=count_layers(released, "layers."),
        num_attention_heads=num_attention_heads,
        intermediate_size=released["layers.0.fc1.weight"].shape[0],
        conv_dim=[conv_dim] * 7,
        num_conv_pos_embeddings=direction.shape[2],
        num_conv_pos_embedding_groups=hidden_size // direction.shape[1],
        predictor_num_attention_heads=8,
        predictor_intermediate_size=released["predictor.layers.0.linear1.weight"].shape[0],
        predictor_num_hidden_layers=count_layers(released, "predictor.layers."),
        predictor_max_positions=released["predictor.pos_embed.weight"].shape[0],
        num_mixture_components=num_components,
        mixture_feature_size=mixture_size,
    )


def convert(
    checkpoint: str | Path, output_dir: str | Path, num_attention_heads: int | None = None, use_ema: bool = False
) -> SJepaForPreTraining:
    """
    Convert a released checkpoint into a directory that `AutoModelForPreTraining` (and `AutoModel`) opens.

    Args:
        checkpoint: `torch.save` of a state dict, or of a dict with it under `online`, beside `ema_encoder` and
            `gmm_weights`, `gmm_means`, `gmm_variances` where there are any; or a safetensors file of a state dict.
        output_dir: directory to write, which must be empty or not be there; appears when it is complete.
        num_attention_heads: heads of the encoder; 64 dimensions each if not given.
        use_ema: take the weights of the EMA encoder instead of the trained one.

    Raises:
        ValueError: where the checkpoint cannot be read or understood, or something lies in `output_dir`.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists already: name a directory that is not there.")
    loaded = read_checkpoint(checkpoint)
    if use_ema and "ema_encoder" not in loaded:
        raise ValueError(f"{checkpoint} has no `ema_encoder`: convert without use_ema.")
    which = "ema_encoder" if use_ema else "online"
    released = loaded[which]
    try:
        check_state_dict(f"`{which}`", released)
        mixture = mixture_of(loaded)
        config = infer_config(released, num_attention_heads, mixture["mixture.means"].shape[1] if mixture else None)
        converted = convert_state_dict(released) | mixture
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{checkpoint} cannot be converted: {why(error)}") from error
    with torch.random.fork_rng():
        torch.manual_seed(0)  # a file without a mixture gets the same unfitted one each time
        model = SJepaForPreTraining(config)
    for name, tensor in model.state_dict().items():
        if name in converted and converted[name].shape != tensor.shape:
            raise ValueError(
                f"{checkpoint} cannot be converted: `{name}` has shape {tuple(converted[name].shape)} there, but"
                f" {tuple(tensor.shape)} goes with the others."
            )
    missing, unexpected = model.load_state_dict(converted, strict=False)
    missing = [name for name in missing if not name.startswith("mixture.")]
    if missing or unexpected:
        raise ValueError(f"{checkpoint} lacks {missing or 'nothing'} and has the unknown {unexpected or 'nothing'}.")
    with written_aside(output_dir) as aside:
        model.save_pretrained(aside)
        feature_extractor().save_pretrained(aside)
    return model.eval()


@command
def main(argv: list[str] | None = None) -> None:
    """Convert what the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint of the released code")
    parser.add_argument("output_dir", help="directory to write")
    parser.add_argument("--num_attention_heads", type=int, help="heads of the encoder (default: hidden size / 64)")
    parser.add_argument("--use_ema", action="store_true", help="take the EMA encoder's weights")
    arguments = parser.parse_args(argv)
    model = convert(arguments.checkpoint, arguments.output_dir, arguments.num_attention_heads, arguments.use_ema)
    print(f"{model.num_parameters():,} parameters, {model.sjepa.num_parameters():,} of them the encoder's")
    if arguments.num_attention_heads is None:
        heads, size = model.config.num_attention_heads, model.config.hidden_size
        print(f"assumed {heads} attention heads of {size // heads} dimensions: the weights do not say")
    print(f"wrote {arguments.output_dir}")


if __name__ == "__main__":
    main()
