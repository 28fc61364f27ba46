"""Segment brain tumours from any non-empty subset of the MRI sequences T1, T1c, T2 and FLAIR.

    import lora_moe_hgd as lmh

    seg = lmh.segment(lmh.example_case(), sequences=["t1c", "flair"])  # or a folder, or {"t1c": "a.nii.gz"}
    seg.volumes_ml, seg.confidence, seg.warnings        # WT, TC and ET
    seg.label_map, seg.regions, seg.probabilities       # on the case's own grid
    seg.save("outputs/case_000")                        # what `lora-moe-hgd segment` writes
    model, processor = lmh.load_checkpoint()            # a transformers model and its image processor

This module also exports functions for adapters (`save_adapter`, `load_adapters`, `using_adapter`, `adapter_disabled`,
`combine_adapters`, `merge_adapter`) and the classes `Segmentation`, `LoraMoeHgdConfig`, `LoraMoeHgdModel`,
`LoraMoeHgdForSegmentation`, `LoraMoeHgdImageProcessor` and `BrainTumorSegmentationPipeline`.
"""

from __future__ import annotations

from importlib.metadata import version

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.pipelines import PIPELINE_REGISTRY

from .adapters.saving import save_adapter as save_adapter
from .adapters.switching import adapter_disabled as adapter_disabled
from .adapters.switching import combine_adapters as combine_adapters
from .adapters.switching import load_adapters as load_adapters
from .adapters.switching import merge_adapter as merge_adapter
from .adapters.switching import using_adapter as using_adapter
from .api import example_case, segment
from .inference.segmentation import Segmentation as Segmentation
from .loading import load_checkpoint
from .model.configuration_lora_moe_hgd import LoraMoeHgdConfig as LoraMoeHgdConfig
from .model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor as LoraMoeHgdImageProcessor
from .model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation as LoraMoeHgdForSegmentation
from .model.modeling_lora_moe_hgd import LoraMoeHgdModel as LoraMoeHgdModel
from .model.pipeline_lora_moe_hgd import BrainTumorSegmentationPipeline as BrainTumorSegmentationPipeline
from .pretrained import DEFAULT_CHECKPOINT as DEFAULT_CHECKPOINT
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

# `help(lora_moe_hgd)` explains only the names below, so that the help fits on two screens. The other imported names
# are public as well.
__all__ = ["example_case", "load_checkpoint", "pretrained_path", "segment"]
