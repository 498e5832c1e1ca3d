"""Every method on networks of every form: trained through `fit`, or refused with an error that says what to do."""

import copy
import inspect
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import TensorDataset

from imbook import data, nets
from imbook.methods import METHODS
from imbook.train import Protocol, fit

N = (8, 4, 3)


class Readers(nn.Module):
    """A reader's own network: plain layers, a functional forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8)
        self.hidden, self.out = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        z = F.relu(self.norm(self.conv(x)), inplace=True).mean((2, 3))
        return self.out(F.relu(self.hidden(z)))


def vit():
    size = dict(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    net = torchvision.models.VisionTransformer(**size, num_classes=3)
    nn.init.normal_(net.heads.head.weight, std=0.1)  # torchvision's start is 0: nothing would reach the body at first
    return net


def vectors():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


# Network: how it is made, its learning rate, where manifold mixup mixes, where MFW does, where DOS divides it.
NETWORKS = {
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=3), 0.005, ("input", "layer1", "layer2"), "layer3", "layer4",
    ),
    "mobilenet": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=3, dropout=0),
        0.005, ("features.0", "features.4"), "features", "avgpool",
    ),
    "vit": (vit, 0.01, ("conv_proj", "encoder.layers.encoder_layer_0"), "encoder.layers.encoder_layer_1", "encoder"),
    "vectors": (vectors, 0.05, ("input", "1"), "3", "1"),
    "reader's": (Readers, 0.02, ("input", "norm"), "hidden", "hidden"),
    "mlp": (lambda: nets.mlp(3 * 32 * 32, 3, 16), 0.01, ("input", "stage1"), "stage2", None),
    "lenet": (lambda: nets.lenet(3, 3, 32), 0.05, ("input", "stage1", "stage2"), "stage3", None),
    "dos_net": (lambda: nets.dos_net(3, 3, 32), 0.02, ("input", "stage1", "stage2"), "stage4", "stage3"),
    "resnet8": (lambda: nets.resnet8(3), 0.01, ("input", "stage1", "stage2"), "stage3", "pool"),
}  # fmt: skip
READERS = ("resnet18", "mobilenet", "vit", "vectors", "reader's")
both = pytest.mark.parametrize("method", METHODS)
all_networks = pytest.mark.parametrize("network", NETWORKS)


def sets(network, seed=0):
    """A training set that can be learnt: the channel, or the number, c is large in class c. And one to validate on."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(3).repeat_interleave(torch.tensor(N))
    if network == "vectors":
        x = 0.3 * torch.randn(len(y), 12, generator=g) + 2 * F.one_hot(y, 12)
        return tuple(data.Loader(TensorDataset(x, y), batch=16, seed=s, labels=y) for s in (1, None))
    x = torch.randint(0, 80, (len(y), 3, 32, 32), generator=g) + 120 * F.one_hot(y, 3)[:, :, None, None]
    images = data.Images(x.to(torch.uint8), y, ("a", "b", "c"), (0.3,) * 3, (0.3,) * 3)
    return tuple(data.Batches(images, batch=16, seed=s) for s in (1, None))


@cache
def _built(network):
    torch.manual_seed(0)
    return NETWORKS[network][0]()


def built(network):
    """The network, the same at each call."""
    torch.manual_seed(0)
    return copy.deepcopy(_built(network))


def run(network):
    """Three epochs, each one step or two."""
    return Protocol("three epochs", epochs=3, batch=16, lr=NETWORKS[network][1], watch=3)


def make(network, method):
    """The network and the method, at the stages of the table above; what begins late begins at epoch 1."""
    _, _, mixed, weakened, cut = NETWORKS[network]
    stage = {"ManifoldMixup": {"stages": mixed}, "MFW": {"stage": weakened}, "DOS": {"stage": cut}}
    hyper = dict(stage.get(method.removesuffix("Abstract"), {}))
    if method.startswith("DOS"):
        # After one step the running statistics of BatchNorm are far from a batch's own, and with them the features of
        # evaluation that DOS stores and measures: a weak pull, and no scale taken from them.
        hyper |= {"k": 2, "minority": "half", "every": 1, "lambda_": 0.1, "scale": "features"}
    if method == "LDAM":
        hyper |= {"scale": 5.0}
    if method == "CRL":
        hyper |= {"level": "instance", "alpha": 0.2}
    if "start" in inspect.signature(METHODS[method]).parameters:
        hyper |= {"start": 1}
    net = built(network)
    if method == "LDAM":
        nets.replace_classifier(net, nets.CosineHead(net.get_submodule(nets.classifier(net)).in_features, 3))
    return net, METHODS[method](torch.tensor(N), **hyper)


def loss(net, train, scale=1):
    """Cross entropy on the training set, with BatchNorm as in training, whose statistics it leaves behind."""
    with torch.no_grad():
        return F.cross_entropy(scale * net.train()(train.inputs(torch.arange(len(train.y)))), train.y).item()


@both
@all_networks
def test_every_method_trains_every_network(network, method):
    (net, trained), (train, valid) = make(network, method), sets(network)
    scale = 5 if method == "LDAM" else 1  # of cosines
    before = loss(net, train, scale)
    curve = fit(net, trained, train, valid, protocol=run(network))
    assert loss(net, train, scale) < before and curve[-1]["epoch"] == 3
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()), "no hook is left"
    assert all(p.grad is not None for name, p in net.named_parameters()), "all of it was trained"


@pytest.mark.parametrize("method", ["MFW", "ManifoldMixup"])
@pytest.mark.parametrize("network", READERS)
def test_a_default_stage_that_is_not_there_is_refused_with_those_there_are(network, method):
    net, (train, _) = built(network), sets(network)
    with pytest.raises(ValueError, match=r"stage 'stage\d': this network has input, ") as error:
        fit(net, METHODS[method](torch.tensor(N)), train, protocol=run(network))
    assert all(name in str(error.value) for name, _ in net.named_children())


@pytest.mark.parametrize("network", NETWORKS)
def test_ldam_says_how_to_put_its_classifier_in(network):
    net, (train, _) = built(network), sets(network)
    name = nets.classifier(net)
    with pytest.raises(ValueError, match=r"LDAM needs a classifier of cosines, .*replace_classifier\(net") as error:
        fit(net, METHODS["LDAM"](torch.tensor(N)), train, protocol=run(network))
    assert repr(name) in str(error.value)
    advice = str(error.value).split("call imbook.nets.")[1].split(" before")[0]
    exec(advice, {**vars(nets), "net": net})
    fit(net, METHODS["LDAM"](torch.tensor(N)), train, protocol=run(network))


@pytest.mark.parametrize("network", ["resnet18", "vit", "reader's"])
def test_stages_that_no_method_can_use(network):
    """Attention's tuple, a layer that is called twice, one that the next overwrites."""
    net, (train, _) = built(network), sets(network)
    stage, message = {
        "resnet18": ("layer1.0.relu", "called more than once"),
        "vit": ("encoder.layers.encoder_layer_0.self_attention", "puts out a tuple"),
        "reader's": ("norm", "overwrites"),
    }[network]
    with pytest.raises(ValueError, match=message):
        fit(net, METHODS["CRL"](torch.tensor(N), level="instance", stage=stage), train, protocol=run(network))
