"""Make samples/: short noisy clips, and their clean references in samples/clean/. The demo gets a copy.

Speech is spoken by espeak-ng (install it first: apt-get install espeak-ng), every noise is made here, so nothing
carries a licence but ours. Run from anywhere: python scripts/make_samples.py
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000
ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"

# name, espeak-ng voice, words a minute, text, noise, SNR in dB, rate, channels, ending, sample format
CLIPS = [
    ("english-pink", "en-us", 150, "The quick brown fox jumps over the lazy dog, and then it rests.",
     "pink", 5, 16_000, 1, ".flac", "PCM_16"),
    ("english-babble", "en-gb+f2", 145, "Please leave the parcel with my neighbour at number seven.",
     "babble", 5, 48_000, 1, ".flac", "PCM_16"),
    ("german-traffic", "de+f3", 140, "Der Zug nach Hamburg fährt heute von Gleis neun ab.",
     "traffic", 0, 44_100, 2, ".flac", "PCM_16"),
    ("french-hum", "fr-fr+m3", 145, "Nous partirons demain matin avant le lever du soleil.",
     "hum", 0, 16_000, 1, ".wav", "PCM_16"),
    ("spanish-clicks", "es", 150, "El mercado abre a las ocho y cierra a las dos de la tarde.",
     "clicks", 5, 16_000, 1, ".ogg", "VORBIS"),
    ("portuguese-pink", "pt-br+f4", 145, "Amanhã vamos caminhar pela praia antes do café.",
     "pink", 10, 8_000, 1, ".wav", "PCM_16"),
]  # fmt: skip
FULL_BAND_CLIP = "english-hiss", "en-us+f3", 140, "Sister Susie sews six fresh silk shirts."
FULL_BAND_RATE, FULL_BAND_SNR = 48_000, 8
CHATTER = [("en-us+m1", "Did you hear what they said about it yesterday evening?"),
           ("de+m2", "Wir sollten das noch einmal in Ruhe besprechen."),
           ("fr-fr+f1", "Je ne sais pas encore si nous viendrons samedi."),
           ("es+m4", "Vamos a ver una película después de la cena."),
           ("en-gb+f3", "The meeting was moved to the big room upstairs.")]  # fmt: skip


def speak(voice: str, speed: int, text: str) -> np.ndarray:
    """Float (L,) at 16 kHz, a quarter of a second of silence on either side."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-w", str(path), text], check=True)
        speech, rate = soundfile.read(path)
    speech = soxr.resample(speech, rate, RATE)
    return np.pad(speech / np.abs(speech).max() * 0.4, RATE // 4)


def pink(rng: np.random.Generator, length: int) -> np.ndarray:
    frequencies = np.fft.rfftfreq(length, 1 / RATE)
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) / np.sqrt(np.maximum(frequencies, 20)), length)


def babble(rng: np.random.Generator, length: int) -> np.ndarray:
    voices = [np.resize(speak(voice, 160, text), length) for voice, text in CHATTER]
    return sum(np.roll(voice, int(rng.integers(length))) for voice in voices)


def traffic(rng: np.random.Generator, length: int) -> np.ndarray:
    """Low rumble that swells as vehicles pass."""
    frequencies = np.fft.rfftfreq(length, 1 / RATE)
    shape = 1 / (1 + (frequencies / 250) ** 1.5)
    rumble = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * shape, length)
    time = np.arange(length) / RATE
    passing = sum(np.exp(-(((time - t) / 0.6) ** 2)) for t in rng.uniform(0, length / RATE, 3))
    return rumble * (0.4 + passing)


def hum(rng: np.random.Generator, length: int) -> np.ndarray:
    time = np.arange(length) / RATE
    mains = sum(np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 6)) / k for k in range(1, 16))
    return mains + 0.3 * rng.standard_normal(length)


def clicks(rng: np.random.Generator, length: int) -> np.ndarray:
    noise = 0.02 * rng.standard_normal(length)
    for start in rng.integers(0, length - 400, size=8 * length // RATE):
        noise[start : start + 400] += rng.uniform(0.3, 1) * rng.standard_normal(400) * np.exp(-np.arange(400) / 60)
    return noise


def full_band(speech: np.ndarray) -> np.ndarray:
    """Speech at 16 kHz -> at 48 kHz, with consonants above 8 kHz: noise that follows what lies between 4 and 8 kHz.

    espeak-ng stops there. The noise falls by 12 dB from 8 to 16 kHz, as that of an s does, and ends at 18 kHz.
    """
    wide = soxr.resample(speech, RATE, FULL_BAND_RATE)
    frequencies = np.fft.rfftfreq(wide.size, 1 / FULL_BAND_RATE)
    top = np.fft.irfft(np.fft.rfft(wide) * ((frequencies > 4_000) & (frequencies < 8_000)), wide.size)
    smoothing = np.hanning(FULL_BAND_RATE // 100)
    envelope = np.sqrt(np.convolve(top**2, smoothing / smoothing.sum(), "same"))
    shape = (frequencies / 8_000).clip(1) ** -2 * ((frequencies > 7_700) & (frequencies < 18_000))
    hiss = np.fft.rfft(np.random.default_rng(0).standard_normal(wide.size)) * shape
    bursts = np.fft.irfft(hiss, wide.size)
    return wide + envelope * bursts / bursts.std()


NOISES = {"pink": pink, "babble": babble, "traffic": traffic, "hum": hum, "clicks": clicks}


def main() -> None:
    (SAMPLES / "clean").mkdir(parents=True, exist_ok=True)
    (SAMPLES / "clean" / ".nomedia").touch()  # fastenh enhance samples/ leaves the references out
    for index, (name, voice, speed, text, noise_name, snr, rate, channels, ending, subtype) in enumerate(CLIPS):
        clean = speak(voice, speed, text)
        noise = NOISES[noise_name](np.random.default_rng(index), clean.size)
        noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
        for folder, samples in ((SAMPLES, clean + noise), (SAMPLES / "clean", clean)):
            resampled = soxr.resample(samples, RATE, rate)
            resampled = np.stack([resampled, 0.7 * resampled], axis=1) if channels == 2 else resampled
            soundfile.write(folder / f"{name}{ending}", np.clip(resampled, -1, 1), rate, subtype=subtype)
    make_full_band_clip()
    shutil.copytree(  # for those who have the package without the repository
        SAMPLES, ROOT / "fastenh" / "demo" / "samples", ignore=shutil.ignore_patterns(".nomedia"), dirs_exist_ok=True
    )


def make_full_band_clip() -> None:
    """At 48 kHz, in white noise up to 24 kHz."""
    name, voice, speed, text = FULL_BAND_CLIP
    clean = full_band(speak(voice, speed, text))
    clean *= 0.5 / np.abs(clean).max()
    noise = np.random.default_rng(1).standard_normal(clean.size)
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-FULL_BAND_SNR / 20)
    for folder, samples in ((SAMPLES, clean + noise), (SAMPLES / "clean", clean)):
        soundfile.write(folder / f"{name}.flac", np.clip(samples, -1, 1), FULL_BAND_RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
