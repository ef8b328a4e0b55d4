import numpy as np
import pytest
import torch

from tasks import aae
from tasks.errors import NotFinite

ARCHITECTURE = aae.Architecture(n_points=6, latent=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs():
    """Zigzag chains that bend by two angles, with a little noise: (256, 6, 3), unit variance."""
    rng = np.random.default_rng(1)
    bend = rng.uniform(-1.5, 1.5, (256, 2))
    along = np.arange(6.0)
    chains = np.stack(
        [np.tile(along, (256, 1)), np.sin(bend[:, :1] * along), np.sin(bend[:, 1:] * along)],
        axis=2,
    )
    chains += rng.normal(0, 0.01, chains.shape)
    chains -= chains.mean(axis=1, keepdims=True)
    return (chains / chains.std()).astype(np.float32)


def trained(inputs, epochs, seed=0):
    network = aae.new_autoencoder(ARCHITECTURE, seed)
    losses = aae.train_epochs(network, inputs, epochs, 32, torch.Generator().manual_seed(seed), CPU)
    return network, losses


def same_weights(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_shapes_of_the_three_networks():
    network = aae.new_autoencoder(ARCHITECTURE, 0)
    latent = network.encoder(torch.zeros(5, 6, 3))
    assert latent.shape == (5, 3)
    assert network.generator(latent).shape == (5, 6, 3)
    assert network.critic(latent).shape == (5, 1)


def test_training_lowers_the_reconstruction_and_spreads_the_latent(inputs):
    network, losses = trained(inputs, 40)
    assert set(losses) == {"reconstruction", "critic", "adversarial"}
    assert all(len(values) == 40 for values in losses.values())
    assert losses["reconstruction"][-1] < 0.15 * losses["reconstruction"][0]
    # The critic's work: without it the latent of this recipe drifts or shrinks freely.
    spread = aae.encode(network, inputs).std(axis=0)
    assert (spread > 0.4).all()
    assert (spread < 2.0).all()


def test_reconstruction_loss_sees_what_chamfer_is_blind_to(inputs):
    points = torch.from_numpy(inputs[:4])
    assert aae._reconstruction_loss(points, points).item() == pytest.approx(0.0, abs=1e-5)
    reversed_chain = aae._reconstruction_loss(points.flip(1), points).item()
    expected = 0.5 * (points.flip(1) - points).square().sum(2).mean().item()
    assert reversed_chain == pytest.approx(expected, rel=1e-4)


def test_reconstruction_loss_is_half_chamfer_and_half_squared_error(inputs):
    rebuilt, points = inputs[:4].astype(float), inputs[4:8].astype(float)
    distances = ((rebuilt[:, :, None] - points[:, None]) ** 2).sum(3)
    chamfer = distances.min(2).mean() + distances.min(1).mean()
    squared = ((rebuilt - points) ** 2).sum(2).mean()
    loss = aae._reconstruction_loss(torch.from_numpy(rebuilt), torch.from_numpy(points)).item()
    assert loss == pytest.approx(0.5 * chamfer + 0.5 * squared, rel=1e-9)


def test_encoder_tells_the_order_of_the_points(inputs):
    network = aae.new_autoencoder(ARCHITECTURE, 0)
    difference = aae.encode(network, inputs) - aae.encode(network, inputs[:, [1, 0, 2, 3, 5, 4]])
    assert np.abs(difference).max() > 1e-3


def test_equal_seeds_give_equal_weights_and_others_do_not(inputs):
    one, one_losses = trained(inputs, 2, seed=3)
    same, same_losses = trained(inputs, 2, seed=3)
    other, _ = trained(inputs, 2, seed=4)
    assert same_weights(one, same)
    assert one_losses == same_losses
    assert not same_weights(one, other)


def test_global_state_of_torch_stays_as_it_was(inputs):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    n_threads = torch.get_num_threads()
    network, _ = trained(inputs[:32], 1)
    aae.encode(network, inputs)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == n_threads


def test_a_frame_is_encoded_alike_in_any_company(inputs):
    network, _ = trained(inputs, 1)
    together = aae.encode(network, inputs)
    rng = np.random.default_rng(5)
    for n_rows in (1, 2, 7, 127, 128, 129, 256):
        rows = rng.permutation(len(inputs))[:n_rows]
        np.testing.assert_array_equal(aae.encode(network, inputs[rows]), together[rows])
    assert together.dtype == np.float32
    assert aae.encode(network, inputs[:0]).shape == (0, 3)


def test_a_loss_that_is_not_finite_is_named(inputs):
    with pytest.raises(NotFinite, match="losses of epoch 1 are not finite"):
        trained(inputs * np.float32(1e25), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_trains_and_encodes_as_the_cpu_does(inputs):
    fresh = aae.new_autoencoder(ARCHITECTURE, 0)
    with torch.inference_mode():
        on_cpu = fresh.encoder(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(aae.encode(fresh, inputs), on_cpu, atol=1e-4)
    rng = torch.Generator().manual_seed(0)
    losses = aae.train_epochs(fresh, inputs, 5, 32, rng, torch.device("cuda"))
    _, cpu_losses = trained(inputs, 5)
    assert losses["reconstruction"] == pytest.approx(cpu_losses["reconstruction"], rel=0.1)
