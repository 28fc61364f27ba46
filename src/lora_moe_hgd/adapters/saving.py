"""Save an adapter so that it works on other computers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..loading import BASE_DIGEST, base_reference, checkpoint_folder, local_folder, read_settings, tensors_digest
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor

# Settings of a network that name code files in its folder. The folder of an adapter has no such files.
SETTINGS_OF_CODE = ("auto_map", "custom_pipelines")


def save_adapter(
    network: PeftModel, folder: Path, *, processor: LoraMoeHgdImageProcessor, place: Path | None = None
) -> None:
    """Save an adapter with all information that another computer needs to load it together with its base.

    PEFT writes the adapter. The folder also gets the settings of the network and of the image processor, so that
    `AutoModel` and `pipeline` can load the folder. `adapter_config.json` records the base by its name and by the
    digest of its weights. A base that is neither shipped nor on the Hub is recorded by its path relative to the
    adapter's folder.

    Args:
        network: Network with one adapter, as `add_adapter` or `get_peft_model` returned it.
        folder: Folder for the adapter.
        processor: Image processor that the adapter was trained with.
        place: Path to which the caller will move `folder`. `None` means that `folder` stays where it is.

    Raises:
        ValueError: If the base cannot be found.
    """
    has_card = (folder / "README.md").exists()
    # With the default of `save_embedding_layers`, PEFT asks the Hub for the vocabulary of the base.
    network.save_pretrained(str(folder), save_embedding_layers=False)
    if not has_card:
        # PEFT's card is empty, and names the base by its path on this machine.
        (folder / "README.md").unlink()
    base: Any = network.get_base_model()
    for file, settings in (
        ("config.json", base.config.to_diff_dict()),
        ("preprocessor_config.json", json.loads(processor.to_json_string())),
    ):
        _write(folder / file, {key: value for key, value in settings.items() if key not in SETTINGS_OF_CODE})
    name = str(network.peft_config["default"].base_model_name_or_path)
    record_base(folder, name, place=place or folder)


def record_base(folder: Path, base: str, *, place: Path) -> None:
    """Write the name and the weights' digest of `base` into the `adapter_config.json` in `folder`.

    `place` is the path to which the caller will move `folder`, or `folder` itself. If the base is a folder on this
    machine, `adapter_config.json` gets the path of the base relative to `place`.
    """
    path = folder / "adapter_config.json"
    config = read_settings(path)
    config["base_model_name_or_path"] = base_reference(base, adapter=place)
    folder_of_base = local_folder(base)
    digest = _digest_on_hub(base) if folder_of_base is None else tensors_digest(folder_of_base)
    config["auto_mapping"] = {**(config["auto_mapping"] or {}), BASE_DIGEST: digest}
    _write(path, config)


@functools.cache
def _digest_on_hub(base: str) -> str:
    """Digest of the weights in a Hub repository. The digest is cached, so that a run asks the Hub only once."""
    return tensors_digest(checkpoint_folder(base))


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
