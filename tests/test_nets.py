"""Networks: sizes, named stages that can be cut anywhere, the shortcut against a literal loop."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
import torchvision
import toys
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from imbook import nets

SHAPES = {
    "mlp": (1, 8, 8),
    "lenet": (1, 28, 28),
    "dos_net": (1, 28, 28),
    "resnet8": (3, 32, 32),
    "resnet32": (3, 32, 32),
}


def vit():
    size = dict(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    return torchvision.models.VisionTransformer(**size, num_classes=3)


def build(name):
    torch.manual_seed(0)
    return nets.mlp(64, 10) if name == "mlp" else getattr(nets, name)(channels=SHAPES[name][0])


@pytest.mark.parametrize(
    "net, number",
    [
        (nets.lenet(), 61_706),
        (nets.resnet32(), 464_154),
        (nets.resnet32(100), 464_154 + 90 * 65),
        (nets.resnet8(), 75_290),
        (nets.mlp(64, 10), 64 * 64 + 64 + 64 * 64 + 64 + 650),
        (nets.dos_net(), 156 + 2_416 + 256 * 400 + 400 + 400 * 120 + 120 + 1_210),
    ],
)
def test_number_of_parameters(net, number):
    assert sum(p.numel() for p in net.parameters()) == number


@pytest.mark.parametrize(
    "name, stages",
    [
        ("mlp", "flat stage1 stage2 head"),
        ("lenet", "stage1 stage2 stage3 head"),
        ("dos_net", "stage1 stage2 stage3 stage4 head"),
        ("resnet8", "stem stage1 stage2 stage3 pool head"),
        ("resnet32", "stem stage1 stage2 stage3 pool head"),
    ],
)
def test_stages_are_named(name, stages):
    assert list(dict(build(name).named_children())) == stages.split()


@pytest.mark.parametrize("name", SHAPES)
def test_cutting_anywhere_changes_nothing(name):
    net, x = build(name).eval(), torch.randn(4, *SHAPES[name])
    logits = net(x)
    assert logits.shape == (4, 10)
    for k in range(1, len(net)):
        assert torch.equal(net[k:](net[:k](x)), logits)
    z = net[:-1](x)
    assert z.shape == (4, net.head.in_features) and torch.equal(net.head(z), logits)


def test_depths_and_sizes_that_cannot_be():
    for depth in (2, 9, 18, 33):
        with pytest.raises(ValueError, match=f"depth {depth}: .* 6 k"):
            nets.resnet(depth)
    assert len(nets.resnet(20).stage2) == 3
    with pytest.raises(ValueError, match="8 x 8 are too small .*at least 16 x 16"):
        nets.dos_net(10, 1, 8)
    nets.dos_net(10, 1, 16)(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="8 x 8 are too small"):
        nets.lenet(size=8)
    assert nets.lenet(size=32)(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_lenet_by_hand():
    net, x = build("lenet"), torch.randn(2, 1, 28, 28)
    pool = nn.functional.max_pool2d
    z = pool(net.stage1[0](x).relu(), 2)
    z = pool(net.stage2[0](z).relu(), 2).flatten(1)
    z = net.stage3[3](net.stage3[1](z).relu()).relu()
    assert torch.equal(net(x), net.head(z)) and z.shape == (2, 84)


@pytest.mark.parametrize("inputs, maps, stride", [(4, 4, 1), (4, 8, 2)])
def test_a_block_by_hand(inputs, maps, stride):
    torch.manual_seed(0)
    block, x = nets.Block(inputs, maps, stride).eval(), torch.randn(2, inputs, 6, 6)
    shortcut = torch.zeros(2, maps, 6 // stride, 6 // stride)
    for b in range(2):
        for c in range(inputs):
            for row in range(6 // stride):
                for column in range(6 // stride):
                    shortcut[b, c + (maps - inputs) // 2, row, column] = x[b, c, stride * row, stride * column]
    z = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert torch.equal(block(x), (z + shortcut).relu())
    assert block.conv1.stride == (stride, stride) and block.conv2.stride == (1, 1)


def test_a_residual_network_halves_the_image_twice():
    net, x = build("resnet8"), torch.randn(2, 3, 32, 32)
    assert net[:1](x).shape == (2, 16, 32, 32) and net[:2](x).shape == (2, 16, 32, 32)
    assert net[:3](x).shape == (2, 32, 16, 16) and net[:4](x).shape == (2, 64, 8, 8)
    assert torch.allclose(net[:5](x), net[:4](x).mean((2, 3)), atol=1e-6)


def test_residual_networks_start_kaiming_normal():
    torch.manual_seed(0)
    for layer in (nets.resnet32().stage3[2].conv2, nets.resnet32().stage2[3].conv1):
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.003


def test_the_cosine_head_is_a_cosine():
    torch.manual_seed(0)
    head, z = nets.CosineHead(16, 5), 100 * torch.randn(40, 16)
    cosine = head(z)
    assert cosine.abs().max() <= 1 + 1e-6
    by_hand = [[(a @ w / (a.norm() * w.norm())).item() for w in head.weight] for a in z]
    assert torch.allclose(cosine, torch.tensor(by_hand), atol=1e-6)
    assert torch.allclose(head(7 * z), cosine, atol=1e-6) and head.bias is None
    assert torch.allclose(head(head.weight).diagonal(), torch.ones(5))


def test_the_cosine_head_starts_with_rows_of_length_one():
    """As the released code: uniform(-1, 1), each class vector renormalised to length 1."""
    torch.manual_seed(0)
    ours = nets.CosineHead(64, 7).weight
    torch.manual_seed(0)
    theirs = torch.empty(7, 64).uniform_(-1, 1).T.clone().renorm_(2, 1, 1e-5).mul_(1e5)  # (D, C)
    assert torch.allclose(ours, theirs.T, atol=1e-6) and torch.allclose(ours.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("name", SHAPES)
def test_every_network_takes_several_labels(name):
    torch.manual_seed(0)
    if name == "mlp":
        net = nets.mlp(64, (5, 2, 3))
    else:
        net = getattr(nets, name)((5, 2, 3), channels=SHAPES[name][0])
    x = torch.randn(4, *SHAPES[name])
    logits = net.eval()(x)
    assert isinstance(logits, tuple) and [tuple(h.shape) for h in logits] == [(4, 5), (4, 2), (4, 3)]
    torch.manual_seed(0)
    one = (nets.mlp(64, 10) if name == "mlp" else getattr(nets, name)(10, channels=SHAPES[name][0])).eval()
    assert torch.equal(torch.cat(logits, 1), one(x)), "one layer of 10 outputs, cut, drawn as any head of this network"


def test_heads_are_separate_classifiers():
    torch.manual_seed(0)
    heads, z = nets.Heads(16, (4, 2)), torch.randn(6, 16)
    first, second = nn.Linear(16, 4), nn.Linear(16, 2)
    first.load_state_dict({"weight": heads.weight[:4], "bias": heads.bias[:4]})
    second.load_state_dict({"weight": heads.weight[4:], "bias": heads.bias[4:]})
    for h, alone in zip(heads(z), (first(z), second(z)), strict=True):
        assert torch.allclose(h, alone, atol=1e-6)
    heads(z)[1].sum().backward()
    assert not heads.weight.grad[:4].any() and heads.weight.grad[4:].any(), "one label's loss leaves the other's alone"
    for bad in ((), (3, 1), (0,)):
        with pytest.raises(ValueError, match="one number a label, each at least 2"):
            nets.Heads(16, bad)


def test_prior_bias_needs_a_bias():
    net = nets.lenet()
    net.head = nets.CosineHead(84, 10)
    with pytest.raises(ValueError, match="a classifier with a bias, here is CosineHead"):
        nets.prior_bias(net, 10)


def test_prior_bias_draws_the_weight_as_torch_does():
    """As the released code: its head is a plain nn.Linear, ours starts Kaiming-normal in residual networks."""
    net = nets.resnet8(10)
    before = net.head.weight.clone()
    torch.manual_seed(4)
    nets.prior_bias(net, 10)
    torch.manual_seed(4)
    assert torch.equal(net.head.weight, nn.Linear(64, 10).weight) and not torch.equal(before, net.head.weight)
    assert net.head.weight.abs().max() <= 1 / 8 < before.abs().max()


def test_prior_bias_of_any_network():
    net = nets.prior_bias(torchvision.models.resnet18(num_classes=4), 4)
    assert torch.allclose(net.fc.bias, torch.full((4,), -math.log(3)))
    with pytest.raises(ValueError, match="one label per image"):
        nets.prior_bias(nets.lenet((3, 2)), 5)


def test_prior_bias_starts_at_the_prior():
    net = nets.prior_bias(nets.lenet(100), 100)
    assert torch.allclose(net.head.bias, torch.full((100,), -math.log(99)))
    assert torch.allclose(net.head.bias.sigmoid(), torch.full((100,), 0.01))


# -- features and classifier of any network ---------------------------------------------------------------------------


class Functional(nn.Module):
    """A reader's network: no Sequential, a functional forward, a layer that is used twice, one that is not used."""

    def __init__(self):
        super().__init__()
        self.conv, self.twice = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.unused = nn.ReLU(inplace=True), nn.Linear(2, 2)
        self.pair, self.total = nn.Identity(), nn.Identity()
        self.hidden, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        z = self.act(self.conv(x))
        z = self.twice(F.relu(self.twice(z)))
        self.pair((z, z))
        z = self.hidden(z.mean((2, 3)))
        self.total(z.sum())
        return self.last(z.tanh())


def functional():
    torch.manual_seed(0)
    return Functional(), torch.randn(5, 1, 8, 8)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_a_stage_is_the_cut_of_the_sequence_to_the_last_bit(name, training):
    net, x = build(name).train(training), torch.randn(4, *SHAPES[name])
    stages = ["input", *dict(net.named_children())]
    with torch.no_grad():
        for k, stage in enumerate(stages):
            body, rest = copy.deepcopy(net), copy.deepcopy(net)
            assert torch.equal(nets.features(body, x, stage), rest[:k](x))
            assert toys.same(body.state_dict(), rest.state_dict()), "what comes later is not run: BatchNorm stays"
            whole, halves = copy.deepcopy(net), copy.deepcopy(net)
            changed = nets.tap(whole, x, {stage: lambda z: z.flip(0)})
            assert torch.equal(changed, halves[k:](halves[:k](x).flip(0)))
            assert toys.same(whole.state_dict(), halves.state_dict())
        body, rest = copy.deepcopy(net), copy.deepcopy(net)
        assert torch.equal(nets.features(body, x), rest[:-1](x))
        assert torch.equal(nets.tap(body, x, {None: lambda z: 2 * z}), rest.head(2 * rest[:-1](x)))


def test_gradients_pass_as_through_the_cut():
    net, x = build("resnet8"), torch.randn(4, 3, 32, 32)
    halves = copy.deepcopy(net)
    found = [nets.tap(net, x, {"stage2": lambda z: z * 0.5}), halves[3:](halves[:3](x) * 0.5)]
    for h in found:
        h.square().sum().backward()
    for a, b in zip(net.parameters(), halves.parameters()):
        assert torch.equal(a.grad, b.grad)


def test_several_stages_in_the_order_of_the_pass():
    net, x, seen = build("lenet"), torch.randn(3, 1, 28, 28), []
    note = lambda name: lambda z: seen.append((name, tuple(z.shape))) or z  # noqa: E731
    stages = (None, "stage3.3", "stage1", "input", "stage3")
    assert torch.equal(nets.tap(net, x, {s: note(s) for s in stages}), net(x))
    assert [name for name, _ in seen] == ["input", "stage1", "stage3.3", "stage3", None]
    assert dict(seen)[None] == (3, 84) and dict(seen)["stage1"] == (3, 6, 14, 14)


def test_more_rows_than_samples_go_on():
    net, x = build("lenet").eval(), torch.randn(3, 1, 28, 28)
    for stage in ("stage2", None):
        h = nets.tap(net, x, {stage: lambda z: torch.cat([z, 2 * z])})
        assert h.shape == (6, 10) and torch.allclose(h[:3], net(x), atol=1e-6)


def test_a_change_may_call_the_network():
    net, x, seen = build("lenet").eval(), torch.randn(3, 1, 28, 28), []

    def change(z):
        seen.append(nets.features(net, 2 * x, "stage2"))
        return z

    h = nets.tap(net, x, {"stage1": change, "stage2": lambda z: 3 * z})
    assert torch.equal(seen[0], net[:2](2 * x)) and torch.equal(h, net[2:](3 * net[:2](x)))


def hooks_of(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_a_network_of_functions():
    net, x = functional()
    assert nets.classifier(net) == "last" and torch.equal(net.last(nets.features(net, x)), net(x))
    z = nets.features(net, x, "hidden")
    assert torch.equal(nets.tap(net, x, {"hidden": lambda z: z}), net(x))
    assert torch.equal(nets.tap(net, x, {"hidden": lambda z: -z}), net.last((-z).tanh()))


@pytest.mark.parametrize(
    "stage, message",
    [
        ("head", "stage 'head': this network has input, conv, twice, act, unused, pair, total, hidden, last"),
        ("", "stage '': this network has input, conv"),
        ("unused", "stage 'unused' is not called in a pass"),
        ("twice", "stage 'twice' is called more than once in a pass"),
        ("pair", "stage 'pair' puts out a tuple for 5 samples"),
        ("total", r"stage 'total' puts out a tensor \(\) for 5 samples"),
        ("conv", "stage 'conv' puts out what the next layer overwrites"),
    ],
)
def test_stages_that_cannot_be(stage, message):
    net, x = functional()
    with pytest.raises(ValueError, match=message):
        nets.tap(net, x, {"hidden": lambda z: z, stage: lambda z: z})
    assert hooks_of(net) == 0, "nothing is left on the network"


def test_features_before_they_are_overwritten():
    """ReLU(inplace=True) follows: `features` stops before it, and what is replaced is no longer the stage's own."""
    net, x = functional()
    assert (nets.features(net, x, "conv") < 0).any() and hooks_of(net) == 0
    assert torch.allclose(nets.tap(net, x, {"conv": lambda z: z * 1}), net(x))


def test_a_long_list_of_names_is_cut():
    with pytest.raises(ValueError, match=r"has input, conv1, .*avgpool, fc, layer1\.0, .*all: net\.named_modules\(\)"):
        nets.features(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32), "stage3")


def test_rows_that_are_not_samples_are_refused():
    net = nn.Sequential(OrderedDict(turn=nn.Flatten(0, 1), head=nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"stage 'turn' puts out a tensor \(6, 4\) for 3 samples"):
        nets.features(net, torch.zeros(3, 2, 4), "turn")


@pytest.mark.parametrize("stage", ["stage1", None])
def test_a_tap_adds_no_operation(stage):
    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    net, x, found = build("resnet8"), torch.randn(2, 3, 32, 32), []
    for run in (lambda: net(x), lambda: nets.tap(net, x, {stage: lambda z: z})):
        calls = []
        with Count():
            run()
        found.append(calls)
    assert found[0] == found[1] and len(calls) > 20


@pytest.mark.parametrize(
    "make, name, size",
    [
        (lambda: nets.lenet(3), "head", 84),
        (lambda: torchvision.models.resnet18(num_classes=3), "fc", 512),
        (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), "classifier.3", 1024),
        (vit, "heads.head", 32),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), "1", 7),
        (lambda: nn.Sequential(OrderedDict(head=nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)), late=nn.Linear(3, 3))),
         "head.1", 5),
    ],
)  # fmt: skip
def test_the_classifier_is_found_and_replaced(make, name, size):
    net = make().double()
    assert nets.classifier(net) == name
    assert nets.replace_classifier(net, 5) is net
    layer = net.get_submodule(name)
    assert type(layer) is nn.Linear and layer.weight.shape == (5, size) and layer.weight.dtype == torch.float64
    nets.replace_classifier(net, (4, 2))
    assert isinstance(net.get_submodule(name), nets.Heads) and net.get_submodule(name).classes == (4, 2)
    nets.replace_classifier(net, nets.CosineHead(size, 5))
    assert net.get_submodule(name).weight.dtype == torch.float64 and nets.classifier(net) == name
    with pytest.raises(ValueError, match=f"'{name}' takes {size} features, the new layer takes 9"):
        nets.replace_classifier(net, nn.Linear(9, 5))
    with pytest.raises(ValueError, match="stage 'nowhere': this network has"):
        nets.replace_classifier(net, 5, "nowhere")


def test_a_classifier_that_is_no_linear_layer():
    net = nn.Sequential(OrderedDict(body=nn.Linear(4, 4), head=nn.Identity()))
    assert nets.classifier(net) == "head", "what is called head is it"
    with pytest.raises(ValueError, match=r"'head' is Identity\(\), which does not say how many features"):
        nets.replace_classifier(net, 5)
    assert nets.replace_classifier(net, nn.Linear(4, 5)).head.out_features == 5
    with pytest.raises(ValueError, match="Conv2d has no linear layer to classify"):
        nets.classifier(nn.Conv2d(1, 1, 1))
    assert nets.replace_classifier(functional()[0], 8, "hidden").hidden.out_features == 8
