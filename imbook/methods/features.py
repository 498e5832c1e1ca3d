"""Classifiers on the features of a trained network: how good is the representation itself? (CNN-CL of Ando and Huang.)

Source: Ando and Huang 2017 (arXiv 1704.07515). Chapter 06.
"""

import torch

from imbook.methods.baselines import CrossEntropy
from imbook.train import Method


def embed(f, batches):
    """f(x) of all samples in order, flat: (N, D). f: the lower part of a network, such as net[:-1]."""
    return torch.cat([f(x).flatten(1) for x, _, _ in batches.plain()])


class OnFeatures(Method):
    """A scikit-learn classifier that predicts from the features in the place of the network's head.

    classifier: made, not fitted; it must know `predict_proba`. `finish` fits it to the training set's features.
    """

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def finish(self, net, train):
        self.classifier.fit(embed(net[:-1], train).cpu().numpy(), train.y.cpu().numpy())
        self.classes = len(train.n)

    def predict(self, net, x):
        """log of the classifier's probabilities: (B, C), -inf for a class that is not in the training set."""
        z = net[:-1](x).flatten(1)  # (B, D)
        p = z.new_zeros(len(z), self.classes)  # (B, C)
        there = torch.as_tensor(self.classifier.classes_, device=z.device)
        p[:, there] = torch.as_tensor(self.classifier.predict_proba(z.cpu().numpy()), dtype=z.dtype, device=z.device)
        return p.log()


def readings(net, train, k=5):
    """k nearest neighbours ('knn') and logistic regression ('logistic') fitted to a trained network's features.

    A dict of `OnFeatures`. The paper gives neither k nor a penalty: k = 5, and scikit-learn's penalty C = 1 on
    standardised features, are ours [R].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = {
        "knn": OnFeatures(KNeighborsClassifier(k)),
        "logistic": OnFeatures(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))),
    }
    for reading in made.values():
        reading.finish(net, train)
    return made


class CNNCL(CrossEntropy):
    """Cross entropy; afterwards its features are also read by k nearest neighbours and by logistic regression.

    One training gives three results: `predict` is that of the network, `readings` those of the two classifiers.
    Source: the CNN and CNN-CL of Ando and Huang 2017.
    """

    several_labels = False

    def finish(self, net, train):
        self.readings = readings(net, train)
