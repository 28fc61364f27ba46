"""Configuration of the LoRA-MoE-HGD network: all sizes that are needed to rebuild it, but no training options."""

import dataclasses
import difflib
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

MODALITIES = ("t1", "t1c", "t2", "flair")
REGIONS = ("wt", "tc", "et")

STEM_STRIDES = (2, 4, 8)
TOKEN_STRIDE = 16

# Keys that transformers, its Trainer and PEFT pass or write to config.json, although `PreTrainedConfig` has no such
# attributes.
KEYS_OF_TRANSFORMERS = (
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "distributed_config",
    "experts_implementation",
    "fusion_config",
    "is_causal",
    "kernel_config",
    "pretraining_tp",
    "quantization_config",
    "tie_word_embeddings",
    "use_cache",
)


@strict
class LoraMoeHgdConfig(PreTrainedConfig):
    """Sizes of the stem, the encoder, the experts and the holistically guided decoder.

    Args:
        modalities: Names of the MRI sequences in channel order. A case may have any non-empty subset of the sequences.
        regions: Names of the target regions in channel order.
        full_resolution_channels: Number of channels of the branch at stride 1, which reads all sequences at once.
        stem_channels: Number of channels of each sequence's features at strides 2, 4 and 8.
        stem_depths: Number of residual blocks at strides 2, 4 and 8.
        hidden_size: Length of the vector of a token. There is one token for each patch of 16^3 voxels of each present
            sequence.
        num_hidden_layers: Number of transformer blocks. Every second block, from the second on, has experts.
        num_attention_heads: Number of attention heads, a divisor of `hidden_size`.
        intermediate_size: Size of the hidden layer in a dense feed-forward block.
        expert_intermediate_size: Size of the hidden layer in an expert.
        num_free_experts: Number of routed experts that tokens of every sequence may use. In addition, each sequence
            has one routed expert of its own.
        num_experts_per_tok: Number of routed experts that process each token, at most `1 + num_free_experts`.
        position_grid: Grid `(depth, height, width)`, in patches, for which position embeddings are stored. For a
            volume with another number of patches, the stored embeddings are interpolated.
        hidden_state_depths: Numbers of the three blocks, counted from 1, whose outputs feed the decoder. The third of
            these numbers must be the number of the last block.
        fusion_size: Length `d` of the fused vector of a token. A linear layer fuses the outputs of the three blocks in
            `hidden_state_depths`. The decoder computes the codewords from the fused vectors.
        codeword_size: Length `q` of a codeword. A codeword is a vector that describes the complete image. The
            decoder's features at stride 8 also have `q` channels.
        num_codewords: Number `n` of codewords that are computed from the image.
        num_prior_codewords: Number `k` of learned codewords. They do not depend on the image, so they can replace
            information of missing sequences.
        refinement_channels: Number of channels of the decoder's features at strides 4, 2 and 1.
        load_balance_coef: Weight of the load-balancing loss.
        router_z_coef: Weight of the router's z-loss.
        deep_supervision_weights: Weights of the losses at strides 8 and 4, relative to the loss at full resolution.
        initializer_range: Standard deviation of truncated-normal initial weights in linear layers and embeddings.

    Raises:
        ValueError: If a key is not a field of the configuration, or if two fields contradict each other. The message
            of the error names the rule and the value.

    Example:
        >>> LoraMoeHgdConfig(hidden_size=100, num_attention_heads=6)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        huggingface_hub.errors.StrictDataclassClassValidationError: ...
            ValueError: `hidden_size` must be a multiple of `num_attention_heads` (6), got 100.
    """

    model_type = "lora_moe_hgd"
    # With these keys ignored, `Trainer` passes only logits and labels to `compute_metrics`.
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "router_logits", "codebook", "losses"]

    modalities: list[str] | tuple[str, ...] = MODALITIES
    regions: list[str] | tuple[str, ...] = REGIONS
    full_resolution_channels: int = 16
    stem_channels: list[int] | tuple[int, ...] = (16, 32, 64)
    stem_depths: list[int] | tuple[int, ...] = (1, 2, 2)
    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    intermediate_size: int = 768
    expert_intermediate_size: int = 384
    num_free_experts: int = 4
    num_experts_per_tok: int = 2
    position_grid: list[int] | tuple[int, ...] = (4, 4, 4)
    hidden_state_depths: list[int] | tuple[int, ...] = (2, 4, 6)
    fusion_size: int = 128
    codeword_size: int = 128
    num_codewords: int = 64
    num_prior_codewords: int = 16
    refinement_channels: list[int] | tuple[int, ...] = (64, 32, 16)
    load_balance_coef: float = 1e-2
    router_z_coef: float = 1e-3
    deep_supervision_weights: list[float] | tuple[float, ...] = (0.25, 0.5)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        # The base class keeps unknown keys as attributes, so a typo would silently leave a field at its default.
        for key in kwargs:
            if key not in KEYS_OF_TRANSFORMERS and not hasattr(PreTrainedConfig, key):
                names = [field.name for field in dataclasses.fields(self)]
                (nearest,) = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
                raise ValueError(f"`{key}` is not a field of LoraMoeHgdConfig. The nearest field is `{nearest}`.")
        # JSON turns tuples into lists. Convert them back, so that a reloaded configuration equals the saved one.
        for name in (
            "modalities",
            "regions",
            "stem_channels",
            "stem_depths",
            "position_grid",
            "hidden_state_depths",
            "refinement_channels",
            "deep_supervision_weights",
        ):
            setattr(self, name, tuple(getattr(self, name)))
        if not __name__.startswith("transformers_modules."):
            # If the package is installed, `pipeline` knows its task without this key. With the key, `pipeline` would
            # ask whether it may run the code of the checkpoint.
            kwargs.pop("custom_pipelines", None)
        num_labels = kwargs.pop("num_labels", len(self.regions))
        if num_labels != len(self.regions):
            raise ValueError(
                f"`num_labels` must be {len(self.regions)} (the number of the regions {', '.join(self.regions)}), "
                f"got {num_labels}."
            )
        super().__post_init__(**kwargs)
        if self.output_attentions and self._attn_implementation is None:
            # Only `eager` attention returns its weights. The base class chooses it only if `output_attentions` is set
            # later.
            self._attn_implementation = "eager"
        self.id2label = dict(enumerate(self.regions))
        self.label2id = {name: number for number, name in self.id2label.items()}

    def validate_lengths(self) -> None:
        for name, length in (
            ("stem_channels", len(STEM_STRIDES)),
            ("stem_depths", len(STEM_STRIDES)),
            ("position_grid", 3),
            ("hidden_state_depths", 3),
            ("refinement_channels", 3),
            ("deep_supervision_weights", 2),
        ):
            if len(getattr(self, name)) != length:
                raise ValueError(f"`{name}` must have {length} entries, got {getattr(self, name)}.")

    def validate_names(self) -> None:
        for name in ("modalities", "regions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"`{name}` must have at least one name and no name twice, got {values}.")

    def validate_positive(self) -> None:
        for name in (
            "full_resolution_channels",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "expert_intermediate_size",
            "num_experts_per_tok",
            "fusion_size",
            "codeword_size",
            "num_codewords",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("num_free_experts", "num_prior_codewords"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")

    def validate_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` ({self.num_attention_heads}), "
                f"got {self.hidden_size}."
            )

    def validate_experts(self) -> None:
        if self.num_experts_per_tok > 1 + self.num_free_experts:
            raise ValueError(
                f"`num_experts_per_tok` must be at most 1 + `num_free_experts` ({1 + self.num_free_experts}), got "
                f"{self.num_experts_per_tok}. A token may use only the expert of its own sequence and the free "
                "experts."
            )

    def validate_depths(self) -> None:
        depths = list(self.hidden_state_depths)
        if depths != sorted(set(depths)) or depths[0] < 1 or depths[-1] != self.num_hidden_layers:
            raise ValueError(
                f"The numbers in `hidden_state_depths` must be at least 1 and increase, and the last number must be "
                f"`num_hidden_layers` ({self.num_hidden_layers}), got {self.hidden_state_depths}."
            )

    @property
    def loss_coefficients(self) -> dict[str, float]:
        """Weights of the router losses relative to the segmentation loss."""
        return {"load_balance": self.load_balance_coef, "router_z": self.router_z_coef}

    def has_experts(self, layer: int) -> bool:
        """Whether block `layer`, counted from 0, has experts: blocks 1, 3, 5 and so on."""
        return layer % 2 == 1

    @classmethod
    def tiny(cls, **overrides: Any) -> "LoraMoeHgdConfig":
        """Configuration that is small enough for training and inference on two CPU cores."""
        return cls(**overrides)

    @classmethod
    def base(cls, **overrides: Any) -> "LoraMoeHgdConfig":
        """Configuration for a GPU."""
        sizes: dict[str, Any] = {
            "full_resolution_channels": 24,
            "stem_channels": (32, 64, 128),
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "expert_intermediate_size": 768,
            "position_grid": (8, 8, 8),
            "hidden_state_depths": (4, 8, 12),
            "fusion_size": 256,
            "codeword_size": 256,
            "num_codewords": 128,
            "num_prior_codewords": 32,
            "refinement_channels": (128, 64, 32),
        }
        return cls(**{**sizes, **overrides})
