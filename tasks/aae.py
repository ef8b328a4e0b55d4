"""The adversarial autoencoder of point clouds: its three networks, their training and the encoding of frames.

An adversarial autoencoder (Makhzani et al. 2015, arXiv:1511.05644) for point clouds (3D-AAE, Zamorski et al. 2018,
arXiv:1811.07605): a PointNet encoder (Qi et al. 2017, arXiv:1612.00593), a generator that rebuilds the points, and a
critic that draws the latent towards a normal distribution by the Wasserstein distance with gradient penalty
(Gulrajani et al. 2017, arXiv:1704.00028). Nothing here normalises over a batch, so a frame's latent depends on that
frame alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tasks.errors import NotFinite

LEARNING_RATE = 1e-3
CRITIC_LEARNING_RATE = 2e-3
# With three, some dimensions of the latent are left with half the spread of others.
CRITIC_STEPS = 5
GRADIENT_PENALTY = 10.0
ADVERSARIAL_WEIGHT = 0.05

# Frames encoded at once. The last block is filled up, because matrix products of another size round otherwise.
ENCODE_BLOCK = 128

LOSSES = ("reconstruction", "critic", "adversarial")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the networks are built from; kept with the weights, so that old ones load when the defaults change.

    Attributes
    ----------
    encoder_kernels
        In points along the chain. Kernels wider than one let the encoder tell neighbours from other points; with
        kernels of one it is blind to permutations and gives distinct conformations the same latent.
    """

    n_points: int
    latent: int
    encoder_widths: tuple[int, ...] = (32, 64, 128)
    encoder_kernels: tuple[int, ...] = (5, 5, 3)
    generator_widths: tuple[int, ...] = (64, 128)
    critic_widths: tuple[int, ...] = (64, 32)


class Encoder(nn.Module):
    """PointNet: convolutions along the points, the maximum over the points, then a small perceptron."""

    def __init__(self, widths: tuple[int, ...], kernels: tuple[int, ...], latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_channels = 3
        for width, kernel in zip(widths, kernels, strict=True):
            layers += [nn.Conv1d(n_channels, width, kernel, padding=kernel // 2), nn.ReLU()]
            n_channels = width
        # Without the last ReLU: the maximum is taken of signed features.
        self.points = nn.Sequential(*layers[:-1])
        self.head = _perceptron(n_channels, (n_channels,), latent)

    def forward(self, points: Tensor) -> Tensor:
        """Return the latent (n, latent) of points (n, n_points, 3)."""
        features: Tensor = self.points(points.transpose(1, 2))
        latent: Tensor = self.head(features.amax(dim=2))
        return latent


class Generator(nn.Module):
    """Points from a latent."""

    def __init__(self, latent: int, widths: tuple[int, ...], n_points: int) -> None:
        super().__init__()
        self.n_points = n_points
        self.layers = _perceptron(latent, widths, 3 * n_points)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the points (n, n_points, 3) of latents (n, latent)."""
        coordinates: Tensor = self.layers(latent)
        return coordinates.view(-1, self.n_points, 3)


class Critic(nn.Module):
    """A score of latents, trained to be high for a normal distribution and low for what the encoder yields."""

    def __init__(self, latent: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = _perceptron(latent, widths, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """Return the scores (n, 1) of latents (n, latent)."""
        scores: Tensor = self.layers(latent)
        return scores


class Autoencoder(nn.Module):
    """The three networks, so that their weights are kept and restored together."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.encoder = Encoder(a.encoder_widths, a.encoder_kernels, a.latent)
        self.generator = Generator(a.latent, a.generator_widths, a.n_points)
        self.critic = Critic(a.latent, a.critic_widths)


def new_autoencoder(architecture: Architecture, seed: int) -> Autoencoder:
    """Return fresh networks, equal for equal seeds; torch's global generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every GPU as well.
        torch.default_generator.manual_seed(seed)
        return Autoencoder(architecture)


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_epochs(
    network: Autoencoder,
    inputs: np.ndarray,
    epochs: int,
    batch: int,
    rng: torch.Generator,
    device: torch.device,
) -> dict[str, tuple[float, ...]]:
    """Train the networks in place and return the mean losses of each epoch.

    Parameters
    ----------
    inputs : ndarray of shape (n_frames, n_points, 3), float32
        Aligned points of unit variance.
    rng
        On the CPU, so that its numbers do not depend on the device.

    Returns
    -------
    dict
        ``reconstruction``: half the Chamfer distance plus half the squared error, per point; ``critic``: the
        critic's loss with its penalty; ``adversarial``: minus the mean score that the encoder obtains.

    Raises
    ------
    NotFinite
        After the first epoch with a loss that is NaN or infinite.
    """
    network.to(device)
    points = torch.as_tensor(inputs, device=device)
    trainer = _Trainer(network)
    epochs_losses = []
    with _repeatable():
        for epoch in range(epochs):
            losses = trainer.run_epoch(points, batch, rng)
            if not np.isfinite(losses).all():
                raise NotFinite(f"losses of epoch {epoch + 1} are not finite: {losses.tolist()}")
            epochs_losses.append(losses)
    columns = np.array(epochs_losses).reshape(-1, len(LOSSES)).T
    return {name: tuple(column.tolist()) for name, column in zip(LOSSES, columns, strict=True)}


def encode(network: Autoencoder, inputs: np.ndarray) -> np.ndarray:
    """Return the latent of each frame, bit for bit whatever other frames are encoded with it.

    Parameters
    ----------
    inputs : ndarray of shape (n_frames, n_points, 3), float32
        Aligned points of unit variance.

    Returns
    -------
    ndarray of shape (n_frames, latent), float32
    """
    device = pick_device()
    network.to(device)
    n_frames = len(inputs)
    n_blocks = -(-n_frames // ENCODE_BLOCK)
    padded = np.zeros((n_blocks * ENCODE_BLOCK, *inputs.shape[1:]), dtype=np.float32)
    padded[:n_frames] = inputs
    latent = np.empty((len(padded), network.architecture.latent), dtype=np.float32)
    with torch.inference_mode(), _repeatable():
        for start in range(0, len(padded), ENCODE_BLOCK):
            block = slice(start, start + ENCODE_BLOCK)
            latent[block] = network.encoder(torch.as_tensor(padded[block], device=device)).cpu().numpy()
    return latent[:n_frames]


class _Trainer:
    """The two optimizers of one training."""

    def __init__(self, network: Autoencoder) -> None:
        self.network = network
        autoencoder = [*network.encoder.parameters(), *network.generator.parameters()]
        self.optimizer = torch.optim.Adam(autoencoder, LEARNING_RATE, betas=(0.9, 0.99), fused=True)
        # Without momentum: what the critic is shown drifts as the encoder learns.
        self.critic_optimizer = torch.optim.Adam(
            network.critic.parameters(), CRITIC_LEARNING_RATE, betas=(0.0, 0.9), fused=True
        )

    def run_epoch(self, points: Tensor, batch: int, rng: torch.Generator) -> np.ndarray:
        """Go once through all points in random order and return the mean of each of `LOSSES`."""
        n_frames, device, latent = len(points), points.device, self.network.architecture.latent
        order = torch.randperm(n_frames, generator=rng).to(device)
        normal = torch.randn(CRITIC_STEPS, n_frames, latent, generator=rng).to(device)
        mixing = torch.rand(CRITIC_STEPS, n_frames, 1, generator=rng).to(device)
        total = torch.zeros(len(LOSSES), dtype=torch.float64, device=device)
        for start in range(0, n_frames, batch):
            rows = slice(start, start + batch)
            losses = self._step(points[order[rows]], normal[:, rows], mixing[:, rows])
            total += losses * len(order[rows])
        return np.asarray((total / n_frames).cpu().numpy())

    def _step(self, points: Tensor, normal: Tensor, mixing: Tensor) -> Tensor:
        latent = self.network.encoder(points)
        for real, mix in zip(normal, mixing, strict=True):
            critic_loss = _critic_loss(self.network.critic, latent.detach(), real, mix)
            self.critic_optimizer.zero_grad()
            torch.autograd.backward(critic_loss)
            self.critic_optimizer.step()
        reconstruction = _reconstruction_loss(self.network.generator(latent), points)
        adversarial = -self.network.critic(latent).mean()
        self.optimizer.zero_grad()
        torch.autograd.backward(reconstruction + ADVERSARIAL_WEIGHT * adversarial)
        self.optimizer.step()
        return torch.stack([reconstruction, critic_loss, adversarial]).detach()


def _critic_loss(critic: Critic, latent: Tensor, normal: Tensor, mixing: Tensor) -> Tensor:
    between = (mixing * normal + (1 - mixing) * latent).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (gradient.norm(dim=1) - 1).square().mean()
    loss: Tensor = critic(latent).mean() - critic(normal).mean() + GRADIENT_PENALTY * penalty
    return loss


def _reconstruction_loss(rebuilt: Tensor, points: Tensor) -> Tensor:
    """Half the Chamfer distance, and half the squared error, without which points may trade places."""
    squares = rebuilt.square().sum(2)[:, :, None] + points.square().sum(2)[:, None, :]
    distances = torch.baddbmm(squares, rebuilt, points.transpose(1, 2), alpha=-2)
    chamfer = distances.amin(2).mean() + distances.amin(1).mean()
    squared_error = distances.diagonal(dim1=1, dim2=2).mean()
    return 0.5 * chamfer + 0.5 * squared_error


def _perceptron(n_in: int, widths: tuple[int, ...], n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(n_in, width), nn.ReLU()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


@contextmanager
def _repeatable() -> Iterator[None]:
    """One CPU thread (two are slower on networks this small) and repeatable float32 convolutions on a GPU."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(n_threads)
