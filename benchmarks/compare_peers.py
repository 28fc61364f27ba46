"""The network and MONAI's at equal data, modality dropout, loss and steps, through the same training engine.

`python benchmarks/compare_peers.py --data ROOT` trains each from scratch on phantoms mixed with the cases in ROOT;
runs that are done are kept. Dice is the mean over the 15 subsets, on phantoms that no run trains on and on the cases
held out from ROOT.
"""

from __future__ import annotations

from peers import PEERS, make_network
from trials import Trial, main

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.training.engine import FROM_SCRATCH_SPACING_MM, Build


def built(name: str) -> Build:
    """What builds the network of this name for the run's crops."""
    return lambda config: (
        make_network(name, config.sample.crop_size[0]),
        LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM),
    )


if __name__ == "__main__":
    main({name: Trial(built(name)) for name in ("tiny", *PEERS)}, about=__doc__, out="runs/compare_peers")
