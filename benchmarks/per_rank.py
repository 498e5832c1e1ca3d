"""What mining per rank does to CRL on the digits: python benchmarks/per_rank.py [FILE]

Chapter 10 asks whether ranks that mine among their own rows only train a worse network than ranks that gather their
outputs. One process is enough: the loss of `loss="rank"` is the mean of the losses of the batch's parts, weighted by
their rows. Long-tailed digits, ratio 20, batches of 64, 20 epochs, seeds that no other run of the book has. Rows: CRL
gathered; per rank for 2, 4 and 8 ranks; controls for 8 ranks: one mean over the batch's triplets in place of a mean of
means, then also with the whole batch's minority classes, hard negatives or hard positives, or with all but the classes;
CRL's weight of cross entropy with nothing mined; cross entropy. Four of these rows also at two other learning rates:
at 0.079 CRL's cross entropy has as large a step as plain cross entropy has at 0.05. Writes the recall of the four
smallest classes after each epoch as one JSON record; the chapter reads it.
"""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from timing import write

from imbook import data, nets, records
from imbook.methods import CRL, CrossEntropy
from imbook.methods.crl import mine_classes, minority, relative
from imbook.train import Protocol, fit

SEEDS, PROTOCOL = range(100, 120), Protocol("digits, ranks", epochs=20, batch=64, lr=0.05)
RATES = (0.079, 0.2)  # 0.079 (1 - alpha) is 0.05: alpha is 0.37 on this tail


class PerRank(CRL):
    """CRL under DistributedDataParallel alone: the mean of the ranks' losses, weighted by their rows."""

    ranks = 8

    def forward(self, net, x, y, i):
        parts = zip(*(t.tensor_split(self.ranks) for t in (x, y, i)), strict=True)
        return sum(len(part[1]) / len(y) * super(PerRank, self).forward(net, *part) for part in parts)


class Controls(PerRank):
    """Each of three things is sought in the whole batch, or within a rank: the minority classes, hard positives and
    hard negatives.

    classes, positives, negatives: True for the whole batch. All True is CRL gathered. The mean is over the triplets of
    the batch.
    """

    classes = positives = negatives = False

    def forward(self, net, x, y, i):
        h, (a,) = net(x), self.alpha
        ranks = list(zip(h.tensor_split(self.ranks), y.tensor_split(self.ranks), strict=True))
        whole = mine_classes(h.softmax(1), y, 3)  # d_pos, d_neg, is_pos, is_neg, each (B, K)
        parts = [torch.cat(t) for t in zip(*(mine_classes(h_r.softmax(1), y_r, 3) for h_r, y_r in ranks), strict=True)]
        d_pos, d_neg, is_pos, is_neg = (
            (whole if wide else parts)[k] for k, wide in enumerate(2 * (self.positives, self.negatives))
        )
        of_rank = [minority(y_r, h.shape[1])[y_r] for _, y_r in ranks]
        anchor = (minority(y, h.shape[1])[y] if self.classes else torch.cat(of_rank))[:, None]
        return a * relative(d_pos, d_neg, is_pos & anchor, is_neg & anchor, 0.5) + (1 - a) * F.cross_entropy(h, y)


def over(ranks, kind=PerRank, **wide):
    """A method of `kind` for that many ranks: n -> method."""
    return type(f"{kind.__name__}{ranks}", (kind,), {"ranks": ranks, **wide})


WAYS = {
    "CRL, gathered": CRL,
    **{f"CRL, {ranks} ranks": over(ranks) for ranks in (2, 4, 8)},
    "8 ranks, but one mean": over(8, Controls),
    "8 ranks, but the batch's classes": over(8, Controls, classes=True),
    "8 ranks, but the batch's negatives": over(8, Controls, negatives=True),
    "8 ranks, but the batch's positives": over(8, Controls, positives=True),
    "gathered, but the ranks' classes": over(8, Controls, positives=True, negatives=True),
    "CRL's weight, nothing mined": lambda n: CRL(n, rho=0),
    "cross entropy": lambda n: CrossEntropy(),
}
AT_RATES = ("CRL, gathered", "CRL, 8 ranks", "CRL's weight, nothing mined", "cross entropy")


def trained(method, seed, protocol=PROTOCOL):
    """The mean recall of the four smallest classes after each epoch, in per cent."""
    images, rest = data.load("digits")
    torch.manual_seed(seed)
    train = data.Batches(images, data.long_tailed(images.y, ratio=20, seed=seed), protocol.batch, seed=seed)
    curve = fit(nets.mlp(64, 10), method(train.n), train, data.Batches(rest), seed=seed, protocol=protocol)
    four = train.n.argsort()[:4].tolist()
    return [25 * sum(row["valid"][k] for k in four) for row in curve]


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else records.RECORDS / "per-rank-digits.json"
    curves = {way: {str(seed): trained(method, seed) for seed in SEEDS} for way, method in WAYS.items()}
    rates = {
        str(rate): {
            way: {str(seed): trained(WAYS[way], seed, replace(PROTOCOL, lr=rate)) for seed in SEEDS} for way in AT_RATES
        }
        for rate in RATES
    }
    write(dict(recall=curves, rates=rates), path)
    for way, of in curves.items():
        ends = torch.tensor([curve[-1] for curve in of.values()])
        print(f"{way}: {ends.mean():.1f} % at the end")
