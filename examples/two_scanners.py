"""What an adapter gains at the scanner it is fitted to, and what it costs at another one.

`python examples/two_scanners.py --out runs/two_scanners` makes phantoms, images them by two simulated scanners, fits
an adapter over the shipped weights to a few cases of site A, and compares it with its base on cases that it has not
seen, the same at both sites.
"""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lora_moe_hgd import DEFAULT_CHECKPOINT, load_checkpoint, save_adapter
from lora_moe_hgd.adapters.presets import TRAINED_IN_FULL, add_adapter
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.evaluation.compare import paired_differences
from lora_moe_hgd.evaluation.evaluate import evaluate
from lora_moe_hgd.loading import base_name
from lora_moe_hgd.phantoms.noise import gaussian_blur, normal, smooth_noise
from lora_moe_hgd.phantoms.phantom import Phantom, make_phantom, write_phantom_case
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.subsets import parse_subset
from lora_moe_hgd.training.data.crops import SubsetCrops
from lora_moe_hgd.training.data.datasets import CaseDataset
from lora_moe_hgd.training.schedule import draw_subset, learning_rate_factor

# Of no training or validation set.
FITTED_SEED, UNSEEN_SEED = 6_000_000, 6_500_000


@dataclass(frozen=True)
class Scanner:
    """What a scanner does to the images of a phantom, beyond what each phantom draws for itself.

    Attributes:
        gamma: Power of the signal: below 1 contrasts are weaker, above 1 stronger.
        slice_mm: Thickness of an axial slice, as the full width at half maximum of a blur.
        bias: Standard deviation of the logarithm of the bias field.
        noise: Standard deviation of the noise in each of both channels, relative to the brain's own spread (MAD).
    """

    gamma: float
    slice_mm: float
    bias: float
    noise: float

    def image(self, phantom: Phantom, *, seed: int) -> Phantom:
        """The same case as this scanner sees it."""
        generator = torch.Generator().manual_seed(seed)
        spacing_mm = float(abs(phantom.affine[2, 2]))
        volumes = {name: self._image(volume, spacing_mm, generator) for name, volume in phantom.volumes.items()}
        return dataclasses.replace(phantom, volumes=volumes)

    def _image(self, volume: Tensor, spacing_mm: float, generator: torch.Generator) -> Tensor:
        brain = volume != 0
        median = volume[brain].median()
        # The outside is no darker than the brain, or the blur would darken the brain's border.
        signal = torch.where(brain, (volume / median) ** self.gamma, 1.0)
        signal = gaussian_blur(signal, (0.0, 0.0, self.slice_mm / 2.355 / spacing_mm))
        spread = (signal[brain] - signal[brain].median()).abs().median()
        field = smooth_noise(signal.shape, scale_mm=90, spacing_mm=spacing_mm, generator=generator)
        signal = signal * torch.exp(self.bias * field)
        real, imaginary = (self.noise * spread * normal(signal.shape, generator) for _ in range(2))
        return torch.where(brain, torch.sqrt((signal + real) ** 2 + imaginary**2).clamp(min=1e-2), 0.0)


# A: weak contrasts, thick slices, a bias field strong beside them. B: near what the weights were trained on.
SCANNERS = {
    "a": Scanner(gamma=0.5, slice_mm=5, bias=0.06, noise=0.3),
    "b": Scanner(gamma=1.3, slice_mm=3, bias=0.05, noise=0.3),
}


def make_cases(out: Path, args: argparse.Namespace) -> None:
    """Write `fitted` and `unseen` phantoms of each site, where they are not there yet; A and B show the same ones."""
    for part, number, seed in ("fitted", args.cases, FITTED_SEED), ("unseen", args.unseen, UNSEEN_SEED):
        for index in tqdm(range(number), desc=f"{part} phantoms"):
            sites = {site: out / site / part / f"case_{index:03d}" for site in SCANNERS}
            if all(folder.exists() for folder in sites.values()):
                continue
            phantom = make_phantom(seed + index, spacing_mm=args.spacing_mm, style=NARROW)
            for number_of_site, (site, folder) in enumerate(sites.items()):
                if not folder.exists():
                    write_phantom_case(SCANNERS[site].image(phantom, seed=2 * index + number_of_site), folder)


def fit(cases: Path, folder: Path, args: argparse.Namespace) -> None:
    """Fit an adapter to the cases and save it in `folder`."""
    torch.manual_seed(args.seed)
    base, processor = load_checkpoint()
    network = add_adapter(base, args.preset, options={"r": 8}, base=base_name(DEFAULT_CHECKPOINT)).train()
    torch.nn.Module.to(network, memory_format=torch.channels_last_3d)
    source = CaseDataset(find_cases(cases), processor=processor, cache_dir=folder.parent / "cache")
    # As many crops as there are steps, each drawn anew.
    crops = SubsetCrops(
        source,
        crop_size=(args.crop,) * 3,
        crops_per_case=-(-args.steps * args.batch_size // len(source)),
        seed=args.seed,
        draw_subset=draw_subset,
    )
    crops.begin_epoch(0, progress=1.0)
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step / args.steps, 0.1))
    batches = DataLoader(crops, batch_size=args.batch_size, shuffle=True)
    for _, batch in zip(bar := tqdm(range(args.steps), desc="steps"), batches, strict=False):
        loss = network(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    save_adapter(network, folder, processor=processor)


def scores(checkpoint: str | Path, cases: Path, out: Path, args: argparse.Namespace) -> pd.DataFrame:
    """Dice by case, subset and region."""
    network, processor = load_checkpoint(checkpoint)
    subsets = [parse_subset(name) for name in args.subsets.split(",")]
    found = evaluate(network, processor, find_cases(cases), out=out, subsets=subsets)
    return pd.DataFrame([row for case in found.scores.values() for row in case.rows])


def table(differences: dict[str, pd.DataFrame]) -> str:
    """A row a subset: base, adapter and difference at each site."""
    lines = [
        "| sequences | site A: base | adapter A | difference | site B: base | adapter A | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    by_site = [frame[frame["region"] == "mean"].set_index("subset") for frame in differences.values()]
    for subset in [*(name for name in by_site[0].index if name != "mean"), "mean"]:
        cells = []
        for frame in by_site:
            row = frame.loc[subset]
            interval = "" if pd.isna(row.low) else f" ({row.low:+.3f} to {row.high:+.3f})"
            cells += [f"{row['first']:.3f}", f"{row.second:.3f}", f"{row.difference:+.3f}{interval}"]
        lines.append(f"| {subset} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for cases, adapter and table")
    parser.add_argument("--preset", choices=list(TRAINED_IN_FULL), default="lora+decoder", help="what is trained")
    parser.add_argument("--cases", type=int, default=4, help="cases of site A to fit to")
    parser.add_argument("--unseen", type=int, default=6, help="cases to compare on, at each site")
    parser.add_argument("--subsets", default="flair,t1+t2,t1c+flair,all", help="sequences to compare with")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=2, help="crops of a step")
    parser.add_argument("--crop", type=int, default=64, help="edge of a training crop in voxels")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fit")
    parser.add_argument("--spacing-mm", type=float, default=2.0, help="voxel size of the phantoms")
    args = parser.parse_args()
    started = time.perf_counter()
    make_cases(args.out / "sites", args)
    adapter = args.out / "adapter"
    fit(args.out / "sites/a/fitted", adapter, args)
    differences = {}
    for site in SCANNERS:
        unseen = args.out / "sites" / site / "unseen"
        pair = [
            scores(name, unseen, args.out / f"{word}_on_{site}", args)
            for word, name in (("base", DEFAULT_CHECKPOINT), ("adapter", adapter))
        ]
        differences[site] = paired_differences(*pair)
    text = table(differences)
    (args.out / "table.md").write_text(text + "\n")
    print(
        f"\nMean Dice over regions and {args.unseen} unseen cases, difference with 95 % interval over cases.\n\n{text}"
    )
    print(
        f"\n{time.perf_counter() - started:.0f} s; the table is in {args.out / 'table.md'}, the adapter in {adapter}."
    )


if __name__ == "__main__":
    main()
