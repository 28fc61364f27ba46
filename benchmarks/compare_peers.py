"""The network and MONAI's at equal data, loss, and steps or minutes, through the same training engine.

`python benchmarks/compare_peers.py --data ROOT` trains each from scratch on phantoms mixed with the cases in ROOT, for
the same steps, or with `--minutes M` for M minutes of processor time. Runs that are done are kept. Dice is the mean
over the 15 subsets, on phantoms that no run trains on and on the cases held out from ROOT. Every subset of the
sequences may occur from the first step: the curriculum advances by epochs, and slow networks have few of them.
"""

from __future__ import annotations

from peers import PEERS, make_network
from trials import Trial, main, without_curriculum

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.training.engine import FROM_SCRATCH_SPACING_MM, Build


def built(name: str) -> Build:
    """What builds the network of this name for the run's crops."""
    return lambda config: (
        make_network(name, config.sample.crop_size[0]),
        LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM),
    )


if __name__ == "__main__":
    trials = {name: Trial(built(name), training=without_curriculum) for name in ("tiny", *PEERS)}
    main(trials, about=__doc__, out="runs/compare_peers")
