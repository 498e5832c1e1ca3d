"""Classifiers on the features of a trained network: how good is the representation itself? (CNN-CL of Ando and Huang.)

Source: Ando and Huang 2017 (arXiv 1704.07515). Chapter 06.
"""

from typing import Any

import torch
from torch import Tensor, nn

from imbook.data import AnyBatches
from imbook.distributed import gather
from imbook.methods.baselines import CrossEntropy, wide
from imbook.nets import features
from imbook.train import Method


@torch.no_grad()
def embed(net: nn.Module, batches: AnyBatches, stage: str | None = None) -> Tensor:
    """The features of all samples in order, in evaluation mode, flat: (N, D); modes are put back.

    stage: any stage of the network (see `imbook.nets`), default what the classifier is given. ValueError that names the
    samples whose features are not finite.
    """
    modes = {m: m.training for m in net.modules()}
    net.eval()
    try:
        z = gather(torch.cat([features(net, x, stage).flatten(1) for x, _, _ in batches.plain()]))
    finally:
        for m, mode in modes.items():
            m.training = mode
    bad = (~z.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        what = "features" if batches.inputs(bad).isfinite().all() else "inputs"
        cure = {"inputs": "mend the data", "features": "the network's weights or the sizes of its inputs are off"}[what]
        raise ValueError(
            f"the {what} of {len(bad)} of {len(z)} samples are not finite, at positions {bad[:5].tolist()}: {cure}"
        )
    return z


class OnFeatures(Method):
    """A scikit-learn classifier that predicts from the features in the place of the network's own.

    classifier: made, not fitted; it must know `predict_proba`. `finish` fits it to the training set's features. stage:
    where the features are taken (see `imbook.nets`), default what the network's classifier is given. The classifier
    sees them in double precision: in float32 the optimiser of scikit-learn stops where rounding lets it, which differs
    from one processor to the next.
    """

    def __init__(self, classifier: Any, stage: str | None = None) -> None:
        super().__init__()
        self.classifier, self.stage = classifier, stage

    def finish(self, net: nn.Module, train: AnyBatches, valid: AnyBatches | None = None) -> None:
        self.classifier.fit(embed(net, train, self.stage).double().cpu().numpy(), train.y.cpu().numpy())
        self.classes = len(train.n)

    def predict(self, net: nn.Module, x: Tensor) -> Tensor:
        """log of the classifier's probabilities: (B, C), -inf where one is 0, as for a class without training samples.

        In float32, or the features' dtype where that has more digits.
        """
        z = wide(features(net, x, self.stage).flatten(1))  # (B, D)
        p = z.new_zeros(len(z), self.classes)  # (B, C)
        there = torch.as_tensor(self.classifier.classes_, device=z.device)
        p[:, there] = torch.as_tensor(
            self.classifier.predict_proba(z.double().cpu().numpy()), dtype=z.dtype, device=z.device
        )
        return p.log()


def readings(net: nn.Module, train: AnyBatches, k: int = 5, stage: str | None = None) -> dict[str, OnFeatures]:
    """k nearest neighbours ('knn') and logistic regression ('logistic') fitted to a trained network's features.

    A dict of `OnFeatures`; stage: theirs. The paper gives neither k nor a penalty: k = 5, and scikit-learn's penalty
    C = 1 on standardised features, are ours [R].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = {
        "knn": OnFeatures(KNeighborsClassifier(k), stage),
        "logistic": OnFeatures(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), stage),
    }
    for reading in made.values():
        reading.finish(net, train)
    return made


class CNNCL(CrossEntropy):
    """Cross entropy; afterwards its features are also read by k nearest neighbours and by logistic regression.

    One training gives three results: `predict` is that of the network, `readings` those of the two classifiers.
    stage: where they read (see `imbook.nets`), default what the network's classifier is given.
    Source: the CNN and CNN-CL of Ando and Huang 2017.
    """

    several_labels = False

    def __init__(self, n: Tensor | None = None, stage: str | None = None) -> None:
        super().__init__()
        self.stage = stage

    def finish(self, net: nn.Module, train: AnyBatches, valid: AnyBatches | None = None) -> None:
        self.readings = readings(net, train, stage=self.stage)
