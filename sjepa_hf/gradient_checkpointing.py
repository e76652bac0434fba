"""Gradient checkpointing: layers that compute activations anew in the backward pass, in both of PyTorch's ways."""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


class CheckpointedLayer(GradientCheckpointingLayer):
    """
    A layer that learns with `use_reentrant=True` even where its input needs no gradient: the first one over the
    waveform, or one with adapters over frozen layers. PyTorch gives the parameters inside a reentrant checkpoint a
    gradient only if something that enters it needs one.
    """

    def __call__(self, hidden_states: torch.Tensor, *args, **kwargs):
        if (
            self.gradient_checkpointing
            and self.training
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()  # compiled checkpoints are never reentrant
            and getattr(self._gradient_checkpointing_func, "keywords", {}).get("use_reentrant", True)
            and not hidden_states.requires_grad
            and any(parameter.requires_grad for parameter in self.parameters())
        ):
            hidden_states = hidden_states.detach().requires_grad_()  # the caller's tensor stays as it is
        return super().__call__(hidden_states, *args, **kwargs)
