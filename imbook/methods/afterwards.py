"""What can be done after training: another last layer for the same network. Chapter 03 compares them.

Logit adjustment, tau-normalisation, classifier re-training and moved thresholds leave the body of a trained network
alone: each of them only puts another weight (C, D) and bias (C,) in the place of the classifier's own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imbook.data import AnyBatches
from imbook.methods.baselines import CrossEntropy, log_prior, over_sample, wide
from imbook.methods.features import embed
from imbook.nets import classifier, features
from imbook.train import Method

#: The strengths tau that `Afterwards` reads logit adjustment and tau-normalisation with.
TAUS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
#: The learning rates of the classifiers that `Afterwards` trains anew.
RATES = (0.02, 0.1)
#: For how many epochs it trains them.
EPOCHS = (2, 5, 10, 20)


class LastLayer(Method):
    """Predicts with another last layer: features W^T + b. weight: (C, D); bias: (C,), or None for no bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def predict(self, net: nn.Module, x: Tensor) -> Tensor:
        z = features(net, x).flatten(1)  # (B, D)
        return F.linear(z, self.weight.to(z.dtype), None if self.bias is None else self.bias.to(z.dtype))


def last_layer(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,), zeros where it has none, of a network's classifier.

    ValueError unless that is an nn.Linear: another last layer cannot take the place of anything else.
    """
    name = classifier(net)
    layer = net.get_submodule(name)
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise ValueError(f"the classifier {name!r} is {layer}: other last layers are for a plain nn.Linear")
    return layer.weight, layer.bias if layer.bias is not None else torch.zeros_like(layer.weight[:, 0])


def tau_normalised(weight: Tensor, tau: float = 1.0) -> Tensor:
    """Each class's weight vector divided by its length to the power tau: (C, D). tau 0 is the weight itself.

    Source: Kang et al. 2020, equation 3 (tau-normalised classifier; the bias is left out there).
    """
    return weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12) ** tau


@torch.enable_grad()
def retrained(
    z: Tensor, y: Tensor, classes: int, epochs: int = 10, lr: float = 0.1, batch: int = 32, weight_decay: float = 5e-4
) -> tuple[Tensor, Tensor]:
    """A linear classifier trained anew on fixed features with class-balanced sampling: weight (C, D), bias (C,).

    z: features (N, D); y: int64 (N,). SGD with momentum 0.9 and half a cosine from lr to 0, from a new random start, by
    torch's global generator. An epoch visits each class N / C times (see `over_sample`).
    Source: classifier re-training (cRT) of Kang et al. 2020; learning rate and epochs are ours [R].
    """
    layer = nn.Linear(z.shape[1], classes).to(z)
    optimiser = torch.optim.SGD(layer.parameters(), lr, momentum=0.9, weight_decay=weight_decay)
    per_class = -(-len(y) // classes)
    steps = epochs * -(-per_class * int((torch.bincount(y) > 0).sum()) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    for _ in range(epochs):
        order = over_sample(y, per_class)
        for i in order[torch.randperm(len(order)).to(order.device)].split(batch):
            optimiser.zero_grad()
            F.cross_entropy(layer(z[i]), y[i]).backward()
            optimiser.step()
            schedule.step()
    return layer.weight.detach(), layer.bias.detach()


@torch.enable_grad()
def moved_thresholds(h: Tensor, y: Tensor) -> Tensor:
    """One number per class to add to the logits, with mean 0: (C,); fitted to validation images.

    The least mean over classes of their cross entropy, by L-BFGS. h: logits (N, C); y: int64 (N,); a class without
    images has no part in the fit and gets 0. With as many images of each class in validation it is what `tau` of a
    logit adjustment does, with a free number in place of each log prior. Ours [R].
    """
    n = torch.bincount(y, minlength=h.shape[1])
    there = n > 0
    y, w, fitted = (there.cumsum(0) - 1)[y], 1 / n[there].double(), h.detach().double()[:, there]
    b = torch.zeros(len(w), dtype=torch.float64, device=h.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([b], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        # a very weak pull to 0 keeps b finite where a class is told apart without error
        loss = F.cross_entropy(fitted + b, y, weight=w) + 1e-4 * b.square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    b = b.detach()
    return torch.zeros(len(n), device=h.device).masked_scatter(there, (b - b.mean()).float())


@torch.enable_grad()
def temperature(h: Tensor, y: Tensor) -> float:
    """The number above 0 that divides the logits for the least cross entropy, the mean over the classes in y.

    h: logits (N, C) of held-out images; y: int64 (N,). By L-BFGS on its logarithm. Source: Guo et al. 2017, temperature
    scaling; that all classes count alike is ours [R]. ValueError without images.
    """
    if not len(y):
        raise ValueError("a temperature is fitted to held-out images: there are none")
    w, h = 1 / torch.bincount(y, minlength=h.shape[1]).clamp(min=1).double(), h.detach().double()
    log_t = torch.zeros((), dtype=torch.float64, device=h.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        # a very weak pull to 1 keeps it finite where no image is mistaken
        loss = F.cross_entropy(h / log_t.exp(), y, weight=w) + 1e-4 * log_t.square()
        loss.backward()
        return loss

    optimiser.step(closure)
    return float(log_t.detach().exp())


class Afterwards(CrossEntropy):
    """Cross entropy; its trained network is then also read with other last layers. One training gives all results.

    `predict` is the network's own; `readings` are named 'adjusted, tau T' (logits - T log prior), 'normalised, tau T'
    (`tau_normalised`), 're-trained, rate R, E epochs' (`retrained`) for the values of this module's TAUS, RATES and
    EPOCHS, and 'moved thresholds' (`moved_thresholds`, which needs the held-out images). The classifier must be an
    nn.Linear: ValueError for another.
    """

    several_labels = False
    needs_valid = True

    def __init__(self, n: Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", log_prior(n))  # (C,)

    def finish(self, net: nn.Module, train: AnyBatches, valid: AnyBatches | None = None) -> None:
        if valid is None:
            raise ValueError("thresholds are moved on held-out images: pass valid=Batches(...)")
        weight, bias = last_layer(net)
        prior, z = self.prior.to(weight), wide(embed(net, train))
        made = {f"adjusted, tau {t:g}": LastLayer(weight, bias - t * prior) for t in TAUS}
        made |= {f"normalised, tau {t:g}": LastLayer(tau_normalised(weight, t)) for t in TAUS}
        for lr, epochs in ((lr, epochs) for lr in RATES for epochs in EPOCHS):
            new = retrained(z, train.y, len(train.n), epochs, lr)
            made[f"re-trained, rate {lr:g}, {epochs} epochs"] = LastLayer(*new)
        h = F.linear(wide(embed(net, valid)), wide(weight), wide(bias))
        made["moved thresholds"] = LastLayer(weight, bias + moved_thresholds(h, valid.y).to(bias))
        self.readings = made


class TemperatureScaled(CrossEntropy):
    """Cross entropy; its adjusted logits are then divided by one `temperature`, fitted to held-out images.

    Decisions stay those of adjusted logits; the probabilities change. tau: the strength of the adjustment. `predict` is
    the network's own; the readings are 'adjusted' and 'adjusted, temperature'. The classifier must be an nn.Linear:
    ValueError for another. Source: Guo et al. 2017, after Menon et al. 2021; together [R].
    """

    several_labels = False
    needs_valid = True

    def __init__(self, n: Tensor, tau: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("shift", log_prior(n, tau))  # (C,)

    def finish(self, net: nn.Module, train: AnyBatches, valid: AnyBatches | None = None) -> None:
        if valid is None:
            raise ValueError("a temperature is fitted to held-out images: pass valid=Batches(...)")
        weight, bias = last_layer(net)
        bias = bias - self.shift.to(bias)
        t = temperature(F.linear(wide(embed(net, valid)), wide(weight), wide(bias)), valid.y)
        self.readings = {"adjusted": LastLayer(weight, bias), "adjusted, temperature": LastLayer(weight / t, bias / t)}


def adjusted(scores: Tensor, n: Tensor | Sequence[int], tau: float = 1.0) -> Tensor:
    """Any method's scores less tau * log(n_c / N): (N, C). n: images per class (C,). Source: Menon et al. 2021."""
    return scores - log_prior(torch.as_tensor(n), tau).to(scores)
