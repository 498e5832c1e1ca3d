"""The page of loops without `fit`: each block runs, and trains as `fit` does with the same seeds."""

import re
from pathlib import Path

import pytest
import torch

from imbook import nets
from imbook.methods import METHODS
from imbook.train import Protocol, evaluate, fit

PAGE = (Path(__file__).parents[1] / "book/own-loop.md").read_text()
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
PARTS = re.findall(r"^#+ (.*?)\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
SECTIONS = {name: BLOCK.findall(text) for name, text in PARTS}
SETUP = next(iter(SECTIONS.values()))[0]
RUN = Protocol("own loop", epochs=3, batch=32, lr=0.02, weight_decay=0.0)
READ = ("CNNCL", "Afterwards", "TemperatureScaled")  # whose blocks end with a call of `finish`
DRAWN_APART = {"OverSampling", "DOSAbstract"}  # `update` draws random numbers, in `fit` from a generator of its own


def network():
    """The page's network with fixed weights; the random numbers that follow are those of fit(seed=3)."""
    torch.manual_seed(7)
    net = nets.mlp(64, 10)
    torch.manual_seed(3)
    return net


def setting():
    """What the first block makes."""
    made = {}
    exec(SETUP, made)
    return made | {"network": network}


def test_the_page_has_a_loop_for_every_method():
    assert METHODS.keys() <= SECTIONS.keys() and all(len(SECTIONS[name]) == 1 for name in METHODS)
    loops = {tuple(SECTIONS[name][0].splitlines()[-4:]) for name in METHODS if name not in READ}
    assert len(loops) == 1, "all end with the same four lines"
    assert all(len(SECTIONS[name][0].splitlines()) <= 7 for name in METHODS)


def test_features_of_a_readers_network():
    made = setting()
    exec(SECTIONS["Features of your own network"][0], made)
    assert made["nets"].classifier(made["resnet"]) == "fc"


@pytest.mark.parametrize("name", METHODS)
def test_the_loop_trains_as_fit_does(name):
    ours = setting()
    exec(SECTIONS[name][0], ours)
    theirs, method = setting(), ours["method"]
    assert type(method) is METHODS[name]
    net = network()
    if name == "LDAM":
        nets.replace_classifier(net, nets.CosineHead(64, 10))
    given, named = method._made_with
    fitted = METHODS[name](*given, **named)
    fit(net, fitted, theirs["train"], theirs["valid"], protocol=RUN, seed=3)
    scores, y = evaluate(ours["net"], ours["valid"], method)
    assert (scores.argmax(1) == y).float().mean() > 0.2, "chance is 0.1"
    if name not in DRAWN_APART:
        assert torch.allclose(scores, evaluate(net, theirs["valid"], fitted)[0], atol=2e-4)
    assert method.readings.keys() == fitted.readings.keys() and bool(method.readings) == (name in READ)
