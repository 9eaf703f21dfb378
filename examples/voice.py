"""When does somebody speak? A published network, frame by frame, its LSTM run by fusedrnn.

Silero VAD tells for every 32 ms of sound how likely it is that somebody speaks. Its weights come
with the package silero-vad, as a graph of ONNX. `fusedrnn.from_onnx` makes a module of the graph's
LSTM, and `fusedrnn.Streaming` runs it step by step. What stands around the LSTM is rebuilt here.

    sound    ... 64 | 512 samples | 512 samples | ...       16000 samples a second
                 \\________________/
                         |  a frame, and a little of the one before
              short Fourier transforms -> 4 convolutions    no memory
                         |
          state --->   LSTM   ---> state                    all that is known of the past
                         |
                  linear, sigmoid -> probability of speech

The same sound goes through onnxruntime, which runs the original graph. The run prints the largest
difference between both, and how long each of them takes. With one frame in a call most of our time
is torch's, which starts some thirty small operations before the LSTM; with a second of sound in a
call that no longer counts.

The sound is made up: phrases of vowels and consonants, and noise and a tone that are no speech.
Nothing is trained, and the network is an LSTM, so there is no --epochs and no --cell.

    python examples/voice.py
    python examples/voice.py --impl torch
    python examples/voice.py --wav speech.wav      16000 Hz, one channel, 16 bits
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from tqdm import tqdm

import fusedrnn
import pictures
import training
from training import BadInput, Result

RATE, FRAME, CONTEXT = 16000, 512, 64  # samples a second, in a frame, and from the one before
HIDDEN_SIZE = 128
WINDOW, HOP = 256, 128  # of the Fourier transforms
STRIDES = (1, 2, 2, 1)  # of the convolutions, in steps of HOP

FILE = "silero_vad_16k_sequence.onnx"
BASIS, OUTPUT = "stft.forward_basis_buffer", "output"  # what the graph calls its weights
ENCODER = [f"encoder.{i}" for i in range(len(STRIDES))]

THRESHOLD = 0.5  # a frame of that probability or more is speech
ALLOWED_DIFFERENCE = 1e-4  # of probabilities in float32
REQUIRED_ACCURACY = 0.9  # of the sound that is made up
CHUNK = 31  # frames, a second of sound
ROUNDS, PER_ROUND = 25, 2 * CHUNK  # of timing, and frames in each

VOWELS = torch.tensor(  # formants in Hz: the resonances of the mouth that make a, e, i, o and u
    [[750, 1250, 2600, 3500], [450, 1900, 2600, 3500], [290, 2250, 3000, 3600],
     [450, 850, 2500, 3400], [320, 800, 2300, 3300]], dtype=torch.float32,
)  # fmt: skip
FORMANT_WIDTHS = (80.0, 100.0, 140.0, 200.0)
HIGHEST = 5000  # Hz, of the overtones of a voice


@dataclass
class Sound:
    """Samples [N] between -1 and 1; `spans` says what is where, if that is known."""

    samples: Tensor
    spans: list[tuple[str, int, int]]  # what, and its first and last sample


def load_model(path: Path | None) -> tuple[Path, onnx.ModelProto]:
    """The graph, from a file or from the package."""
    expected = f"--model: expected {FILE}"
    if path is None:
        path = training.file_of("silero_vad", f"data/{FILE}", expected)
    if not path.is_file():
        raise BadInput(f"{expected}, found none at {path}")
    try:
        return path, onnx.load(path)
    except DecodeError as error:
        raise BadInput(f"--model: expected a file of ONNX, got {path} ({error})") from error


def load_weights(model: onnx.ModelProto, path: Path) -> dict[str, Tensor]:
    """The graph's initializers, by name."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = [f"{layer}.{part}" for layer in (*ENCODER, OUTPUT) for part in ("weight", "bias")]
    missing = [name for name in (BASIS, *layers) if name not in arrays]
    if missing:
        raise BadInput(f"--model: expected {FILE}, got {path}, which has no {missing[0]}")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


class Encoder:
    """From frames to what the LSTM sees of them.

    There are four steps in a frame, and torch's convolutions take long to start for so few. Each
    is written as what it is: a linear layer on windows of its input.
    """

    def __init__(self, weights: dict[str, Tensor], device: str) -> None:
        self.basis = weights[BASIS].squeeze(1).to(device)  # [cosines and sines, WINDOW]
        self.layers = []
        for name, stride in zip(ENCODER, STRIDES, strict=True):
            weight, bias = weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"]
            self.layers.append((weight.to(device), bias.to(device), stride))  # [out, in * 3], [out]

    def __call__(self, frames: Tensor) -> Tensor:
        """[N, HIDDEN_SIZE], of frames [N, CONTEXT + FRAME]."""
        mirrored = pad(frames, (0, CONTEXT), mode="reflect")
        cosines, sines = linear(mirrored.unfold(1, WINDOW, HOP), self.basis).chunk(2, dim=2)
        x = torch.hypot(cosines, sines)  # [N, 4 steps, frequencies]
        for weight, bias, stride in self.layers:
            windows = pad(x, (0, 0, 1, 1)).unfold(1, 3, stride).flatten(2)
            x = linear(windows, weight, bias).relu_()
        return x.squeeze(1)


class PlainStream:
    """What a `fusedrnn.Streaming` is, with torch.nn.LSTM."""

    def __init__(self, lstm: fusedrnn.LSTM) -> None:
        self.lstm = nn.LSTM(lstm.input_size, lstm.hidden_size).to(lstm.weight_hh_l0.device)
        self.lstm.load_state_dict(lstm.state_dict())
        self.reset()

    def reset(self) -> None:
        self.state: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        output, self.state = self.lstm(x, self.state)
        return output


class Detector:
    """The network, rebuilt. It keeps its state from call to call."""

    def __init__(self, model: onnx.ModelProto, path: Path, options: argparse.Namespace) -> None:
        weights, self.device = load_weights(model, path), options.device
        try:
            lstm = fusedrnn.from_onnx(model).to(self.device)
        except ValueError as error:
            raise BadInput(f"--model: expected {FILE}, got {path} ({error})") from error
        self.encoder = Encoder(weights, self.device)
        self.stream = (PlainStream if options.impl == "torch" else fusedrnn.Streaming)(lstm)
        self.weight = weights[f"{OUTPUT}.weight"].squeeze(2).to(self.device)  # [1, HIDDEN_SIZE]
        self.bias = weights[f"{OUTPUT}.bias"].to(self.device)

    def reset(self) -> None:
        """As before the first frame."""
        self.stream.reset()

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Probabilities [N] of the next frames, [N, CONTEXT + FRAME]."""
        features = self.encoder(frames.to(self.device))
        hidden = self.stream(features.unsqueeze(1))  # steps of one sequence, [T, 1, HIDDEN_SIZE]
        return linear(hidden.relu(), self.weight, self.bias).sigmoid().flatten().cpu()


class Original:
    """The graph in onnxruntime, which is handed its state with every call."""

    def __init__(self, model: onnx.ModelProto) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        self.reset()

    def reset(self) -> None:
        """As before the first frame."""
        self.h = self.c = numpy.zeros((1, 1, HIDDEN_SIZE), dtype=numpy.float32)

    def __call__(self, frames: Tensor) -> Tensor:
        """As the detector's."""
        found, self.h, self.c = self.session.run(
            ["speech_probs", "hn", "cn"], {"input": frames.numpy(), "h": self.h, "c": self.c}
        )
        return torch.from_numpy(found).flatten()


def read_wav(path: Path) -> Sound:
    """The sound of a WAV file."""
    if not path.is_file():
        raise BadInput(f"--wav: expected a WAV file, found none at {path}")
    try:
        with wave.open(str(path)) as file:
            rate, channels, bits = file.getframerate(), file.getnchannels(), 8 * file.getsampwidth()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise BadInput(
            f"--wav: expected a WAV file of PCM samples, got {path} ({str(error) or 'too short'})"
        ) from error
    if (rate, channels, bits) != (RATE, 1, 16):
        raise BadInput(
            f"--wav: expected {RATE} Hz, 1 channel and 16 bits, got {rate} Hz, {channels} "
            f"channel{'s' * (channels != 1)} and {bits} bits in {path}"
        )
    data = data[: len(data) // 2 * 2]  # a file may have been cut anywhere
    samples = torch.from_numpy(numpy.frombuffer(data, "<i2").astype(numpy.float32)) / 2**15
    if len(samples) < FRAME:
        raise BadInput(f"--wav: expected {FRAME} samples or more, got {len(samples)} in {path}")
    return Sound(samples, [])


class Speaker:
    """Makes sounds up: syllables by additive synthesis, and noise. The same from the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def noise(self, seconds: float, low: float, high: float) -> Tensor:
        """Noise with frequencies from `low` to `high` Hz."""
        count = int(seconds * RATE)
        spectrum = torch.fft.rfft(torch.randn(count, generator=self.generator))
        frequencies = torch.fft.rfftfreq(count, 1 / RATE)
        spectrum *= (low <= frequencies) & (frequencies <= high)
        noise = torch.fft.irfft(spectrum, count)
        return faded(noise / noise.std())

    def vowel(self, seconds: float, pitch: float) -> Tensor:
        """One vowel on its way to another: the overtones of a falling pitch, as a mouth lets them
        through."""
        count = int(seconds * RATE)
        falling = torch.linspace(1.05, 0.95, count) * pitch
        phase = 2 * math.pi * torch.cumsum(falling.double() / RATE, 0)
        first, second = VOWELS[torch.randint(len(VOWELS), (2,), generator=self.generator)]
        formants = torch.lerp(first, second, 0.7 * torch.linspace(0, 1, count).square()[:, None])
        sound = torch.zeros(count)
        for overtone in range(1, int(HIGHEST / pitch) + 1):
            frequency = overtone * falling
            gain = torch.ones(count) / overtone  # the voice itself is weaker in higher ones
            for formant, width in zip(formants.T, FORMANT_WIDTHS, strict=True):
                off = formant.square() - frequency.square()
                gain *= formant.square() / torch.hypot(off, width * frequency)
            sound += gain * torch.sin(overtone * phase).float()
        return faded(sound / sound.abs().max())

    def phrase(self, seconds: float) -> Tensor:
        """Syllables: a hiss, or a stop and a burst, and a vowel."""
        parts, pitch, count = [], self.between(100, 190), 0
        while count < seconds * RATE:
            if self.between(0, 1) < 0.6:
                low = self.between(1500, 4500)
                consonant = 0.08 * self.noise(self.between(0.05, 0.11), low, low + 3000)
            else:
                stop = torch.zeros(int(self.between(0.03, 0.07) * RATE))
                consonant = torch.cat([stop, 0.15 * self.noise(0.015, 500, 6000)])
            lower = 1.15 - 0.3 * count / (seconds * RATE)  # as at the end of a sentence
            vowel = self.vowel(self.between(0.12, 0.25), lower * pitch)
            parts += [consonant, self.between(0.3, 0.45) * vowel]
            count += len(consonant) + len(vowel)
        return torch.cat(parts)


def faded(sound: Tensor) -> Tensor:
    """Without a click where it begins and ends."""
    edge = min(RATE // 40, len(sound) // 3)
    rising = torch.linspace(0, 1, edge)
    return torch.cat([sound[:edge] * rising, sound[edge:-edge], sound[-edge:] * rising.flip(0)])


def make_sound(seed: int) -> Sound:
    """Speech in silence, speech in noise, and what is no speech."""
    speaker, silence = Speaker(seed), torch.zeros(RATE)
    noise = 0.05 * speaker.noise(1.5, 0, RATE / 2)
    tone = 0.2 * faded(torch.sin(2 * math.pi * 440 * torch.arange(1.5 * RATE) / RATE))
    order = [("", silence), ("speech", speaker.phrase(2.2)), ("", silence), ("noise", noise),
             ("", silence), ("speech", speaker.phrase(1.6)), ("", silence), ("tone", tone),
             ("", silence), ("speech", speaker.phrase(2.4)), ("", silence)]  # fmt: skip
    spans, end = [], 0
    for what, part in order:
        spans.append((what, end, end := end + len(part)))
    samples = torch.cat([part for _, part in order])
    samples += 0.002 * torch.randn(len(samples), generator=speaker.generator)
    return Sound(samples, [span for span in spans if span[0]])


def frames_of(sound: Sound) -> Tensor:
    """[frames, CONTEXT + FRAME]; the last one is filled with silence."""
    missing = -len(sound.samples) % FRAME
    return pad(sound.samples, (CONTEXT, missing)).unfold(0, CONTEXT + FRAME, FRAME).contiguous()


def is_speech(sound: Sound, frames: int) -> Tensor:
    """Whether each frame is speech for at least half of its length, [frames]."""
    samples = torch.zeros(frames * FRAME)
    for what, first, last in sound.spans:
        if what == "speech":
            samples[first:last] = 1
    return samples.view(frames, FRAME).mean(1) >= 0.5


def listen(network: Detector | Original, frames: Tensor, name: str) -> Tensor:
    """Probabilities [frames] from a run of one frame at a time."""
    network.reset()
    return torch.cat([network(frame) for frame in tqdm(frames.split(1), name, unit="frame")])


def seconds_per_hour(networks: Sequence[Detector | Original], frames: Tensor) -> list[float]:
    """Seconds of work for an hour of sound, for each network, with all of `frames` in one call."""
    taken: list[list[float]] = [[] for _ in networks]
    calls = PER_ROUND // len(frames)
    for _ in range(ROUNDS):  # in turns, so that whatever else the machine does slows all of them
        for network, times in zip(networks, taken, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                network(frames)
            times.append((time.perf_counter() - start) / calls / len(frames))
    return [statistics.median(times) * 3600 * RATE / FRAME for times in taken]


def draw(sound: Sound, ours: Tensor, theirs: Tensor, name: str, plot: Path) -> None:
    """The sound, its spectrum, and what both networks say."""
    made, (loudness, spectrum, speech) = pictures.figure(
        "When does somebody speak?", 3, 1, size=(9.4, 6.2), sharex=True, height_ratios=(2, 3, 3)
    )
    end = len(ours) * FRAME / RATE
    times = (torch.arange(len(ours)) + 0.5) * FRAME / RATE
    parts = frames_of(sound)[:, CONTEXT:]
    loudness.fill_between(times, parts.amin(1), parts.amax(1), color=pictures.GRAY, linewidth=0)
    loudness.set(ylabel="amplitude", xlim=(0, end))
    loudness.set_title("Sound", loc="left")

    power = torch.stft(sound.samples, 512, FRAME, window=torch.hann_window(512),
                       return_complex=True).abs()  # fmt: skip
    decibels = 20 * (power / power.max().clamp(min=1e-9)).clamp(min=1e-9).log10()
    image = spectrum.imshow(
        (decibels / 5).round() * 5,  # in steps, which make a small file
        origin="lower", aspect="auto", interpolation="nearest", cmap="magma", vmin=-50,
        extent=(0, end, 0, RATE / 2000),
    )  # fmt: skip
    spectrum.grid(False)
    spectrum.set_ylabel("kHz")
    spectrum.set_title("Spectrum", loc="left")
    made.colorbar(image, ax=spectrum, label="dB", pad=0.01)

    speech.plot(times, theirs, color=pictures.ORANGE, linewidth=4, label="onnxruntime")
    speech.plot(times, ours, color=pictures.BLUE, linewidth=1.2, label=name)
    speech.axhline(THRESHOLD, color=pictures.GRAY, linestyle=":")
    speech.set(xlabel="seconds", ylabel="probability", ylim=(-0.05, 1.05))
    speech.set_title("Speech, frame by frame", loc="left")
    speech.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)
    for what, first, last in sound.spans:
        color = pictures.GREEN if what == "speech" else pictures.PURPLE
        for axes in (loudness, speech):
            axes.axvspan(first / RATE, last / RATE, color=color, alpha=0.15, linewidth=0)
        loudness.text((first + last) / 2 / RATE, 1.0, what, color=color, ha="center", va="bottom",
                      transform=loudness.get_xaxis_transform())  # fmt: skip
    pictures.save(made, plot)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--impl", choices=training.PACKAGES, default="fused",
                        help="fusedrnn's LSTM or torch.nn's; default: %(default)s")  # fmt: skip
    parser.add_argument("--wav", type=Path, metavar="FILE", help="a sound to listen to")
    parser.add_argument("--model", type=Path, metavar="FILE",
                        help=f"{FILE}; default: that of the package")  # fmt: skip
    parser.add_argument("--plot", type=Path, default=Path("results/voice.png"), metavar="FILE",
                        help="the picture; default: %(default)s")  # fmt: skip
    training.add_machine(parser, threads=1)
    parser.set_defaults(epochs=1, whole=1)  # every run is a whole one
    return training.parse(parser, words)


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    path, model = load_model(options.model)
    detector, original = Detector(model, path, options), Original(model)
    sound = read_wav(options.wav) if options.wav else make_sound(options.seed)
    frames = frames_of(sound)
    name = "fusedrnn" if options.impl == "fused" else "torch.nn"
    what = str(options.wav) if options.wav else "made up"
    print(f"{len(sound.samples) / RATE:.1f} seconds of sound, {what}, in {len(frames)} frames")
    print(training.setting(options, "lstm"))

    ours, theirs = listen(detector, frames, name), listen(original, frames, "onnxruntime")
    draw(sound, ours, theirs, name, options.plot)

    print("\nseconds of work for an hour of sound (ratio: onnxruntime's by ours)")
    print(f"{'frames in a call':24}{name:>14}{'onnxruntime':>14}{'ratio':>8}")
    for count in sorted({1, min(CHUNK, len(frames))}):
        own, other = seconds_per_hour((detector, original), frames[:count])
        print(f"{count:<24}{own:14.2f}{other:14.2f}{other / own:8.2f}")

    heard = ours >= THRESHOLD
    results = [
        Result("largest difference, in millionths", 1e6 * (ours - theirs).abs().max().item(),
               at_most=1e6 * ALLOWED_DIFFERENCE),
        Result("share of frames with speech", heard.float().mean().item()),
    ]  # fmt: skip
    if sound.spans:
        right = heard == is_speech(sound, len(frames))
        results.append(
            Result("frames classified correctly", right.float().mean().item(), REQUIRED_ACCURACY)
        )
    return training.conclude(options, results)


if __name__ == "__main__":
    training.run(main)
