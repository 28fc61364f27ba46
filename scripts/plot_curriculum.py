"""Draw the curriculum of a training run: `python scripts/plot_curriculum.py docs/curriculum.png`."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_moe_hgd.pictures import COLOURS
from lora_moe_hgd.training.schedule import learning_rate_factor, most_dropped, region_weights


def main() -> None:
    progress = np.linspace(0, 1, 401)
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    weights = np.array([region_weights(value) for value in progress])
    # Yellow is hard to see on white.
    colours = COLOURS | {"TC": "#e69f00"}
    for name, column in zip(colours, weights.T, strict=True):
        left.plot(progress, column, color=colours[name], label=name)
    left.set(title="Weight in the loss", xlabel="progress", ylim=(0, 1.05))
    left.legend()
    middle.step(progress, [most_dropped(value) for value in progress], color="black")
    middle.set(title="Sequences dropped at most", xlabel="progress", yticks=(0, 1, 2, 3), ylim=(0, 3.2))
    right.plot(progress, [learning_rate_factor(value, warmup=0.05) for value in progress], color="black")
    right.set(title="Learning rate, share of highest", xlabel="progress", ylim=(0, 1.05))
    figure.savefig(Path(sys.argv[1]), dpi=110)


if __name__ == "__main__":
    main()
