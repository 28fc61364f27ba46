"""Export of the network as one graph for all subsets of the sequences, with `torch.export` or as ONNX.

The inputs are `pixel_values (B, M, D, H, W)` float32 and `modality_mask (B, M)` bool, for B cases and M sequences. The
output is `logits (B, R, D, H, W)` float32, for R regions. B may be any number. D, H and W must be multiples of 16
voxels, the length of one token, and at least 32 voxels, because `torch.export` would need a second graph for an axis
of one token.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..files import install_command
from ..model.configuration_lora_moe_hgd import TOKEN_STRIDE
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation

INPUTS = ("pixel_values", "modality_mask")
# Logits of the shipped networks differ by up to 3e-5, because other kernels sum in another order.
TOLERANCE = 1e-4


class _Logits(nn.Module):
    """Wrapper of the network whose inputs and output are tensors only."""

    def __init__(self, network: LoraMoeHgdForSegmentation) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, modality_mask: Tensor) -> Tensor:
        return self.network(pixel_values=pixel_values, modality_mask=modality_mask).logits


class _RowwiseGroupNorm(nn.Module):
    """Group normalisation that first averages each row of voxels, and then averages the rows.

    For PyTorch's group normalisation, onnxruntime adds up all voxels of a group one after another. For an input of
    96^3 voxels, the rounding errors then change logits by 2e-3.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps, self.weight, self.bias = norm.num_groups, norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (self.num_groups, -1)).flatten(2, -2)  # (B, C, D, H, W) -> (B, G, C/G * D * H, W)
        mean = rows.mean(dim=3).mean(dim=2)
        variance = (rows - mean[..., None, None]).square().mean(dim=3).mean(dim=2)
        scale = self.weight.unflatten(0, (self.num_groups, -1)) * (variance + self.eps).rsqrt()[..., None]
        shift = self.bias.unflatten(0, (self.num_groups, -1)) - mean[..., None] * scale
        scale, shift = (part.flatten(1)[..., None, None, None] for part in (scale, shift))  # (B, C, 1, 1, 1)
        return x * scale + shift


def _with_rowwise_norms(network: LoraMoeHgdForSegmentation) -> LoraMoeHgdForSegmentation:
    """Copy of the network for onnxruntime, with `_RowwiseGroupNorm` and the same weights."""
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, _RowwiseGroupNorm(child))
    return copied


def export_graph(network: LoraMoeHgdForSegmentation) -> ExportedProgram:
    """Export the network to a graph, in evaluation mode."""
    num_modalities = len(network.config.modalities)
    # Each axis has a different length, because the export would assume that axes of equal length are always equal.
    pixel_values = torch.zeros(3, num_modalities, 2 * TOKEN_STRIDE, 3 * TOKEN_STRIDE, 4 * TOKEN_STRIDE)
    modality_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool)
    batch = Dim("batch", min=1)
    edges = [TOKEN_STRIDE * Dim(name, min=2) for name in ("depth", "height", "width")]
    shapes = {"pixel_values": {0: batch, **dict(enumerate(edges, start=2))}, "modality_mask": {0: batch}}
    module = _Logits(network).eval()
    with torch.no_grad():
        return torch.export.export(module, (pixel_values, modality_mask), dynamic_shapes=shapes, strict=False)


def save_torch(network: LoraMoeHgdForSegmentation, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """Save the graph of a network for `torch.export.load`, and return the graph as read back from the file."""
    torch.export.save(export_graph(network), path)
    return torch.export.load(path).module()


def save_onnx(network: LoraMoeHgdForSegmentation, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """Save the graph of a network as ONNX in one file, and return a function that runs the file in onnxruntime.

    Raises:
        ValueError: If onnxruntime or onnxscript is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # PyTorch's exporter needs it
    except ImportError as error:
        raise ValueError(
            f"Export to ONNX needs a package: {error}. Install it: {install_command('export')}"
        ) from error
    graph = export_graph(_with_rowwise_norms(network))
    with _quiet():
        program = torch.onnx.export(
            graph, dynamo=True, input_names=INPUTS, output_names=["logits"], external_data=False, verbose=False
        )
    assert program is not None
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor, modality_mask: Tensor) -> Tensor:
        feed = dict(zip(INPUTS, (pixel_values.numpy(), modality_mask.numpy()), strict=True))
        return torch.from_numpy(session.run(None, feed)[0])

    return run


@torch.no_grad()
def check_graph(run: Callable[[Tensor, Tensor], Tensor], network: LoraMoeHgdForSegmentation) -> float:
    """Compare the logits of a saved graph with those of its network, for every subset of the sequences.

    In the graph's input, the channels of absent sequences are NaN, so a graph that reads such a channel does not pass.

    Returns:
        Largest absolute difference between the logits of the graph and those of the network.

    Raises:
        ValueError: If the difference is too large to be a rounding error.
    """
    masks = [mask for mask in itertools.product([False, True], repeat=len(network.config.modalities)) if any(mask)]
    generator = torch.Generator().manual_seed(0)
    differences = []
    # Compare one batch with all subsets, and a single case of another size.
    for chosen, edges in ((masks, (2, 2, 2)), (masks[:1], (3, 2, 4))):
        modality_mask = torch.tensor(chosen)
        shape = (*modality_mask.shape, *(TOKEN_STRIDE * edge for edge in edges))
        pixel_values = torch.randn(shape, generator=generator)
        expected = network(pixel_values=pixel_values, modality_mask=modality_mask).logits
        pixel_values[~modality_mask] = float("nan")
        differences.append((run(pixel_values, modality_mask) - expected).abs().max())
    largest = float(torch.stack(differences).max())
    # Write `not (a <= b)` instead of `a > b`, so that NaN counts as a difference.
    if not largest <= TOLERANCE:
        raise ValueError(f"The exported network differs from the checkpoint: logits differ by up to {largest:.2g}.")
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's log messages about optional packages that are not installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
