"""Compare the network with MONAI's networks at equal data, loss, and steps or minutes, in the same training engine.

`python benchmarks/compare_peers.py --data ROOT` trains each network from scratch on phantoms mixed with the cases in
ROOT, for the same steps, or with `--minutes M` for M minutes of processor time. Finished runs are not repeated when
the command is started again. Dice is the mean over the 15 subsets, on phantoms that no run trains on, and on the cases
of ROOT that are held out from training. There is no curriculum, which would advance by epochs, because slow networks
have few epochs. So every subset of the sequences may occur from the first step.
"""

from __future__ import annotations

from peers import PEERS, make_network
from trials import Trial, main, without_curriculum

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.training.engine import FROM_SCRATCH_SPACING_MM, Build


def built(name: str) -> Build:
    """Return a function that builds the named network for the crop size of the run."""
    return lambda config: (
        make_network(name, config.sample.crop_size[0]),
        LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM),
    )


if __name__ == "__main__":
    trials = {name: Trial(built(name), training=without_curriculum) for name in ("tiny", *PEERS)}
    main(trials, about=__doc__, out="runs/compare_peers")
