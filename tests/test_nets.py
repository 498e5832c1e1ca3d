"""Networks: sizes, named stages that can be cut anywhere, the shortcut against a literal loop."""

import math

import pytest
import torch
from torch import nn

from imbook import nets

SHAPES = {
    "mlp": (1, 8, 8),
    "lenet": (1, 28, 28),
    "dos_net": (1, 28, 28),
    "resnet8": (3, 32, 32),
    "resnet32": (3, 32, 32),
}


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
    with pytest.raises(ValueError, match="a head with a bias, here is CosineHead"):
        nets.prior_bias(net, 10)


def test_prior_bias_starts_at_the_prior():
    net = nets.prior_bias(nets.lenet(100), 100)
    assert torch.allclose(net.head.bias, torch.full((100,), -math.log(99)))
    assert torch.allclose(net.head.bias.sigmoid(), torch.full((100,), 0.01))
