"""Brain-tumour segmentation from any non-empty subset of T1, T1c, T2 and FLAIR.

Importing the package makes its classes known to the `Auto` classes and the pipelines of transformers, so that no
`trust_remote_code` is needed. What is saved or pushed brings its code along, for those who have not the package.
"""

from __future__ import annotations

from importlib.metadata import version

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.pipelines import PIPELINE_REGISTRY

from .adapters.switching import adapter_disabled, combine_adapters, load_adapters, merge_adapter, using_adapter
from .loading import load_checkpoint
from .model.configuration_lora_moe_hgd import LoraMoeHgdConfig
from .model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from .model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation, LoraMoeHgdModel
from .model.pipeline_lora_moe_hgd import BrainTumorSegmentationPipeline
from .pretrained import pretrained_path

__version__ = version("lora-moe-hgd")

AutoConfig.register(LoraMoeHgdConfig.model_type, LoraMoeHgdConfig)
AutoModel.register(LoraMoeHgdConfig, LoraMoeHgdForSegmentation)
AutoModelForSemanticSegmentation.register(LoraMoeHgdConfig, LoraMoeHgdForSegmentation)
AutoImageProcessor.register(LoraMoeHgdConfig, image_processor_classes={"pil": LoraMoeHgdImageProcessor})
PIPELINE_REGISTRY.register_pipeline(
    "brain-tumor-segmentation", pipeline_class=BrainTumorSegmentationPipeline, pt_model=AutoModel, type="image"
)
LoraMoeHgdConfig.register_for_auto_class()
LoraMoeHgdForSegmentation.register_for_auto_class("AutoModel")
LoraMoeHgdImageProcessor.register_for_auto_class()

__all__ = [
    "BrainTumorSegmentationPipeline",
    "LoraMoeHgdConfig",
    "LoraMoeHgdForSegmentation",
    "LoraMoeHgdImageProcessor",
    "LoraMoeHgdModel",
    "adapter_disabled",
    "combine_adapters",
    "load_adapters",
    "load_checkpoint",
    "merge_adapter",
    "pretrained_path",
    "using_adapter",
]
