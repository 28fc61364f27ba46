"""LoRA-MoE-HGD: brain-tumour segmentation from any non-empty subset of the MRI sequences.

The network consists of a stem, a transformer encoder over the present sequences (UNETR-style,
https://arxiv.org/abs/2103.10504) with mixtures of experts, and a holistically guided decoder
(https://arxiv.org/abs/2008.10487). This file imports all files that the network needs, so that transformers saves them
with the model.
"""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_lora_moe_hgd import TOKEN_STRIDE, LoraMoeHgdConfig
from .encoder import EncoderLayer, EncoderOutput, VisionTransformer
from .hgd_decoder import HolisticallyGuidedDecoder
from .losses import segmentation_losses, total_loss
from .sliding_window import OVERLAP, sliding_window_logits
from .stem import ModalityStem, StemOutput


@dataclass
class LoraMoeHgdEncoderOutput(ModelOutput):
    """Output of the encoder.

    Attributes with the note `On request` are `None` unless the call requests them.

    Attributes:
        last_hidden_state: Hidden states after the last block and the final LayerNorm, `(B, N, hidden)`. N is the
            number of tokens of the case with the most present sequences. Cases with fewer tokens are padded. A
            compiled graph also has tokens for absent sequences.
        hidden_states: On request, the hidden states before the first block and after each block, `(B, N, hidden)`. The
            last hidden state has passed the final LayerNorm.
        attentions: On request, the attention weights of each block, `(B, heads, N, N)`, zero for padding.
        router_logits: On request, the router logits `(T, experts)` of each block with experts. T is the number of
            tokens of present sequences in the batch. A compiled graph also counts tokens of absent sequences.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass
class LoraMoeHgdSegmenterOutput(ModelOutput):
    """Segmentation of a batch.

    Attributes with the note `On request` are `None` unless the call requests them.

    Attributes:
        loss: Weighted sum of all parts of the loss, a scalar; `None` without labels.
        logits: Region logits `(B, R, D, H, W)` in the order of `config.regions`, float32 or float64.
        hidden_states: On request, the hidden states before the first block and after each block, `(B, N, hidden)`. The
            last hidden state has passed the final LayerNorm.
        attentions: On request, the attention weights of each block, `(B, heads, N, N)`, zero for padding.
        router_logits: On request, the router logits `(T, experts)` of each block with experts. T is the number of
            tokens of present sequences in the batch. A compiled graph also counts tokens of absent sequences.
        codebook: On request, the codebook of the decoder, `(B, codeword size, codewords)`.
        losses: Parts of the loss by name, not weighted; `None` without labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None
    codebook: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class LoraMoeHgdPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading shared by the encoder and the segmenter."""

    config: LoraMoeHgdConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["EncoderLayer"]
    # The loss is a mean over cases, so a trainer must average it over accumulated batches, not sum it.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load weights as transformers does. For an adapter, also find and load its base, the network that it adapts.

        Raises:
            ValueError: If the network that an adapter adapts (its base) is not found, or has other weights than the
                adapter needs.
        """
        folder = Path(str(pretrained_model_name_or_path))
        if not (folder / "adapter_config.json").is_file() or any(folder.glob("model*.safetensors")):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        try:
            from lora_moe_hgd.loading import find_base, is_adapter, load_checkpoint
        except ImportError as error:
            raise ValueError(
                f"{folder} contains an adapter, but not the network that it adapts (its base). Install the package "
                "lora-moe-hgd, which finds the base."
            ) from error
        base: Any = find_base(folder)
        if is_adapter(base):
            merged, _ = load_checkpoint(base)
            kwargs = {"config": merged.config, **kwargs, "state_dict": merged.state_dict()}
            network = super().from_pretrained(None, *args, **kwargs)
            network.load_adapter(str(folder))
            return network
        kwargs["adapter_kwargs"] = {**(kwargs.get("adapter_kwargs") or {}), "_adapter_model_path": str(folder)}
        return super().from_pretrained(base, *args, **kwargs)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on. PEFT reads this property."""
        # Override the property of transformers, which is deprecated and warns each time an adapter is loaded.
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the parameters of a module. Raise a `TypeError` if no rule for this type of module is defined."""
        if isinstance(module, nn.Linear | nn.Embedding):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv3d):
            init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"No initialisation is defined for the parameters of {type(module).__name__}.")
        if isinstance(module, nn.Linear | nn.Conv3d | nn.LayerNorm | nn.GroupNorm) and module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, ModalityStem):
            # Volumes of different sequences that are constant in a crop must differ before the first norm.
            init.normal_(module.modality_embedding.weight, std=0.5)

    def _check_inputs(self, pixel_values: Tensor, modality_mask: Tensor | None) -> Tensor:
        """Check the inputs, and return `modality_mask` as bool `(B, M)`. All values are true if no mask was given."""
        num_modalities = len(self.config.modalities)
        if pixel_values.ndim != 5 or pixel_values.shape[1] != num_modalities:
            raise ValueError(
                f"`pixel_values` must have shape (batch, {num_modalities}, depth, height, width) with the channels "
                f"{', '.join(self.config.modalities)}, got {tuple(pixel_values.shape)}."
            )
        if any(edge % TOKEN_STRIDE for edge in pixel_values.shape[2:]):
            raise ValueError(
                f"Each spatial edge of `pixel_values` must be a multiple of {TOKEN_STRIDE} voxels, "
                f"got {tuple(pixel_values.shape[2:])}."
            )
        if modality_mask is None:
            return torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        if modality_mask.shape != pixel_values.shape[:2]:
            raise ValueError(
                f"`modality_mask` must have shape {tuple(pixel_values.shape[:2])} (batch, modalities), "
                f"got {tuple(modality_mask.shape)}."
            )
        return modality_mask.bool()

    def _asked(self, output_hidden_states: bool | None, output_attentions: bool | None) -> tuple[bool, bool]:
        """Return whether hidden states and attention weights are requested; replace `None` by the configured value.

        Raises:
            ValueError: If attention weights are requested, but the configured attention does not return them.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                "`output_attentions` needs the attention `eager`, got "
                f"{self.config._attn_implementation}. Call `set_attn_implementation('eager')`, or load the network "
                "with `attn_implementation='eager'`."
            )
        return bool(output_hidden_states), bool(output_attentions)


class LoraMoeHgdModel(LoraMoeHgdPreTrainedModel):
    """Stem and transformer encoder, without a decoder.

    Args:
        config: Sizes of the network.
        with_skips: Add the layers that fuse the stem's features for a decoder. Without a decoder, these layers would
            get no gradient.
    """

    # Parameters of a segmenter that its encoder does not have.
    _keys_to_ignore_on_load_unexpected = [
        r"^decoder\.",
        r"stem\.(fusions|full_resolution|full_resolution_norm|availability)\.",
    ]

    def __init__(self, config: LoraMoeHgdConfig, *, with_skips: bool = False) -> None:
        super().__init__(config)
        self.stem = ModalityStem(config, with_skips=with_skips)
        self.vit = VisionTransformer(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch projection. Accelerate calls this method with FSDP2."""
        return self.stem.patch_projection

    def encode(
        self, pixel_values: Tensor, modality_mask: Tensor, output_attentions: bool = False
    ) -> tuple[StemOutput, EncoderOutput]:
        """Run stem and transformer on checked inputs, and return the outputs that the decoder needs."""
        stem = self.stem(pixel_values, modality_mask)
        return stem, self.vit(stem.patches, stem.presence, output_attentions)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        modality_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_router_logits: bool = False,
    ) -> LoraMoeHgdEncoderOutput:
        """Encode the present sequences. The arguments are the same as in `LoraMoeHgdForSegmentation.forward`."""
        output_hidden_states, output_attentions = self._asked(output_hidden_states, output_attentions)
        modality_mask = self._check_inputs(pixel_values, modality_mask)
        _, encoded = self.encode(pixel_values, modality_mask, output_attentions)
        return LoraMoeHgdEncoderOutput(
            last_hidden_state=encoded.hidden_states[-1],
            hidden_states=encoded.hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
            router_logits=encoded.router_logits if output_router_logits else None,
        )


class LoraMoeHgdForSegmentation(LoraMoeHgdPreTrainedModel):
    """Complete network, which segments the regions from any non-empty subset of the sequences."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__(config)
        self.encoder = LoraMoeHgdModel(config, with_skips=True)
        self.decoder = HolisticallyGuidedDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        modality_mask: Tensor | None = None,
        labels: Tensor | None = None,
        region_weights: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_router_logits: bool = False,
        output_codebook: bool = False,
        geometry: Any = None,
    ) -> LoraMoeHgdSegmenterOutput:
        """Segment a batch. As in every model of transformers, `return_dict=False` makes the result a tuple.

        Args:
            pixel_values: Images `(B, M, D, H, W)`, channels in the order of `config.modalities`, each edge a multiple
                of 16.
            modality_mask: Mask `(B, M)`, true where a sequence was acquired, or `None` if all sequences were acquired.
                Channels marked false are never read, so their content does not matter.
            labels: Region masks `(B, R, D, H, W)`, 0 or 1, in the order of `config.regions`.
            region_weights: Weight of each region in the loss, `(R,)`, or `None` for equal weights.
            output_hidden_states: Return the hidden states of the encoder (default: the value in the configuration).
            output_attentions: Return the attention weights, which only `eager` attention computes (default: the value
                in the configuration).
            output_router_logits: Return the router logits.
            output_codebook: Return the codebook of the decoder.
            geometry: Ignored. The argument exists because the image processor also returns `geometry`, so that
                `model(**processor(case))` works.

        Raises:
            ValueError: If a shape is wrong, if a case has no sequence, or if attention weights are requested that the
                configured attention does not return. A compiled or exported graph cannot check the mask, and gives NaN
                for a case without a sequence.
        """
        output_hidden_states, output_attentions = self._asked(output_hidden_states, output_attentions)
        modality_mask = self._check_inputs(pixel_values, modality_mask)
        stem, encoded = self.encoder.encode(pixel_values, modality_mask, output_attentions)
        decoded = self.decoder(stem, encoded)
        loss, losses = None, None
        if labels is not None:
            losses = self._losses(decoded.logits, encoded, labels, region_weights)
            loss = total_loss(losses, self.config.loss_coefficients)
        return LoraMoeHgdSegmenterOutput(
            loss=loss,
            logits=decoded.logits[-1],
            hidden_states=encoded.hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
            router_logits=encoded.router_logits if output_router_logits else None,
            codebook=decoded.codebook if output_codebook else None,
            losses=losses,
        )

    def _losses(
        self,
        logits: tuple[Tensor, ...],
        encoded: EncoderOutput,
        labels: Tensor,
        region_weights: Tensor | None,
    ) -> dict[str, Tensor]:
        if labels.shape != logits[-1].shape:
            raise ValueError(
                f"`labels` must be region masks of shape {tuple(logits[-1].shape)} "
                f"(batch, {', '.join(self.config.regions)}, depth, height, width), got {tuple(labels.shape)}."
            )
        if region_weights is None:
            region_weights = logits[-1].new_ones(len(self.config.regions))
        losses = segmentation_losses(
            logits,
            labels,
            scale_weights=(*self.config.deep_supervision_weights, 1.0),
            region_weights=region_weights.to(logits[-1]),
        )
        losses |= encoded.router_losses(self.config.num_experts_per_tok)
        return losses

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the model with its code, so that `AutoModel` and `AutoModelForSemanticSegmentation` load it."""
        found = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": found,
            "AutoModelForSemanticSegmentation": found,
        }
        super().save_pretrained(*args, **kwargs)

    def segment_volume(
        self,
        pixel_values: Tensor,
        modality_mask: Tensor,
        *,
        overlap: float = OVERLAP,
        batch_size: int = 2,
        mirror: bool = False,
        bf16: bool = False,
        progress: bool = False,
    ) -> Tensor:
        """Compute the logits `(1, R, D, H, W)` of a complete case `(1, M, D, H, W)` in overlapping windows.

        With `bf16`, the network computes in bfloat16. The other arguments are those of `sliding_window_logits`.
        """
        with torch.autocast(pixel_values.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            return sliding_window_logits(
                functools.partial(self, return_dict=True),
                pixel_values,
                modality_mask,
                overlap=overlap,
                batch_size=batch_size,
                mirror=mirror,
                progress=progress,
            )


__all__ = ["EncoderLayer", "LoraMoeHgdForSegmentation", "LoraMoeHgdModel", "LoraMoeHgdPreTrainedModel"]
