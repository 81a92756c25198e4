"""Draw the spectrograms of a recording before and after, one below the other, at its own rate.

python scripts/plot_enhancement.py NOISY ENHANCED PICTURE.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fastenh.audio.files import read, read_mono

WINDOW = 0.032  # seconds


def main(noisy: Path, enhanced: Path, picture: Path) -> None:
    rate = read(noisy)[1].sample_rate
    window = round(WINDOW * rate)
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.2), sharex=True, layout="constrained")
    for axis, path, title in zip(axes, (noisy, enhanced), ("noisy", "enhanced"), strict=True):
        samples = read_mono(path, rate) + 1e-6 * np.random.default_rng(0).standard_normal(1)
        options = {"NFFT": window, "Fs": rate, "noverlap": window * 3 // 4, "cmap": "magma", "vmin": -120, "vmax": -35}
        image = axis.specgram(samples, **options)[3]
        axis.set(title=title, ylabel="frequency (Hz)")
    axes[1].set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="dB")
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
