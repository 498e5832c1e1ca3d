"""Beyond CIFAR: the papers' own data sets, in the protocols that are known of them, and DOS's experiment 1.

Each title says what must lie below the data root; `imbook.large` says where it comes from. Nothing here but
MNIST-back-rotation, which is made from MNIST, can be had by this package itself.
"""

from dataclasses import replace
from typing import Any

from imbook.large import LARGE
from imbook.rows import Row, Split, Table
from imbook.tables.cdb import CDB_DYNAMIC, CDB_FIXED
from imbook.tables.common import BASELINES, CE, CIFAR_200, deferred, rows, together
from imbook.tables.dos import DOS_CIFAR, DOS_ROUNDS, dos_table
from imbook.tables.mfw import MFW_CHOICE, MIXUP
from imbook.train import Protocol

#: Of CDB's released code for ImageNet-LT [C]; its augmentation is in `imbook.large`.
IMAGENET_LT = Protocol("imagenet-lt", 90, 512, 0.2, 0.9, 2e-4, cosine=True, watch=30)
#: For iNaturalist no paper's protocol is at hand: ResNet-50, otherwise as ImageNet-LT, with half the decay [R].
INATURALIST = replace(IMAGENET_LT, name="inaturalist", weight_decay=1e-4, watch=90)
#: The field's for CIFAR, at 64 x 64 pixels [R].
TINY = replace(CIFAR_200, name="tiny-imagenet", crop=8)
#: Of CDB's released code for EGTEA [C]; the batch is ours [R].
EGTEA = Protocol("egtea", 100, 8, 1e-3, 0.0, milestones=(60,), watch=20)
#: For the attribute sets only CRL's networks are known; this is ours [R].
FACES = Protocol("celeba", 10, 128, 0.02, cosine=True, flip=True, watch=5)
CLOTHES = replace(FACES, name="clothes", lr=0.05)
#: Batch and rounds are the paper's [P]; the rest is ours [R]: a round is one epoch, and two epochs come before.
DOS_BACK = Protocol("dos-back-rotation", epochs=7, batch=40, lr=0.01, cosine=True, watch=7)
DOS_STL = replace(DOS_CIFAR, name="dos-stl10", epochs=45)  # 20 epochs, 5 rounds of 5
DOS_ROUNDS |= {DOS_BACK: {"start": 2, "every": 1}, DOS_STL: {"start": 20, "every": 5}}

LAST = "layer4"  # the last stage of torchvision's residual networks
MFW = ("MFW", "MFW", MFW_CHOICE | {"stage": LAST})
BALANCING = (BASELINES[5], BASELINES[6])  # adjusted logits and balanced softmax
#: Images per class at most: 60,000 in all for the 120,000 of the ten folds, so that a run takes two minutes.
BACK = dict(data="mnist-back-rotation", n_max=6000, order="seed")
#: Class order whose first four are 0, 4, 5 and 6, the minority of the paper's table 1 [P].
TABLE_1 = 119


def needs(name: str) -> str:
    """What a title says of the data: the folders below the data root."""
    return f"needs {', '.join(dict.fromkeys(path.split('/')[0] for path in LARGE[name].needs))} in IMBOOK_DATA"


def official(name: str, title: str, net: str, protocol: Protocol, *methods: tuple[Any, ...], **more: Any) -> Table:
    """A table on a set as it comes, for a GPU: three training seeds."""
    made = rows(Split(name, "official", draw="file"), net, protocol, *methods)
    return Table(f"{title} ({needs(name)})", made, together(3), device="cuda", **more)


def back_rotation(reduction: int) -> Table:
    """Experiment 1 of Ando and Huang 2017 at an overall reduction in per cent; rows of the paper that are ours, too."""
    split = Split(profile="gaussian", share=reduction / 100, **BACK) if reduction else Split(profile="balanced", **BACK)
    # k_majority is 0 in the paper, but a Gaussian has no majority: all classes are over-sampled to the largest [R].
    dos = dict(k=5, minority="all", read=True, **DOS_ROUNDS[DOS_BACK])
    fact = f"dos/mnist-back-rotation-{reduction}/"
    cnn = (("CNN", None), ("CNN-CL, kNN", "knn"), ("CNN-CL, logistic regression", "logistic"))
    ours = (("DOS", None), ("DOS-LR", "logistic"), ("DOS-kNN", "knn"))
    even = ("OverSampling", {"whole": True, "start": DOS_ROUNDS[DOS_BACK]["start"]})
    make = lambda label, method, hyper, **more: Row(label, split, "dos_net", DOS_BACK, method, hyper, **more)  # noqa: E731
    return Table(
        f"DOS on MNIST-back-rotation, class sizes along a Gaussian, overall reduction {reduction} %",
        (
            *(make(label, "CNNCL", {}, reading=reading) for label, reading in cnn),
            make("over-sampling", *even),
            *(make(label, "DOS", dos, reading=reading, fact=f"{fact}{label}/recall") for label, reading in ours),
        ),
        together(5),
    )


TABLES = {
    **{f"dos-mnist-back-rotation-{reduction}": back_rotation(reduction) for reduction in (0, 20, 40)},
    "dos-table-1": Table(  # the share is not known to us [R]
        "DOS's table 1: MNIST-back-rotation, classes 0, 4, 5 and 6 without 90 % of their images",
        rows(
            Split("mnist-back-rotation", "reduced", share=0.9, reduce=4, order="seed"),
            "dos_net",
            replace(DOS_BACK, name="dos-table-1", epochs=4, watch=4),
            ("CNN", "CrossEntropy", {}),
            ("DOS, k = 5", "DOS", {"k": 5, "start": 1, "every": 1}),
        ),
        tuple(dict(order=TABLE_1, draw=s, train=s) for s in range(5)),
    ),
    "dos-stl10-balanced": dos_table(
        "DOS on STL-10, balanced (python -m imbook data stl10)",
        Split("stl10", "balanced"),
        "dos_net_large",
        DOS_STL,
        together(5),
        device="cuda",
    ),
    "imagenet-lt": official(
        "imagenet-lt",
        "CDB on ImageNet-LT, ResNet-10, the released protocol",
        "resnet10",
        IMAGENET_LT,
        CE,
        (*CDB_DYNAMIC, "cdb/imagenet-lt/CDB, dynamic tau"),
        ("CDB, dynamic tau, mean over weights", "CDB", {"tau": "dynamic", "reduction": "weights"}),
        CDB_FIXED[1],
        *BALANCING,
        deferred(IMAGENET_LT),
        MFW,
        ("CRL, class, relative", "CRL", {"level": "class", "alpha": 0.1}),
        metric="accuracy",
    ),
    "inaturalist2018": official(
        "inaturalist2018",
        "iNaturalist 2018, ResNet-50",
        "resnet50",
        INATURALIST,
        CE,
        *BALANCING,
        deferred(INATURALIST),
        MFW,
        metric="accuracy",
    ),
    "egtea": official(
        "egtea",
        "CDB on EGTEA Gaze+, verbs of 10-frame clips, r3d_18 pre-trained on Kinetics",
        "r3d_18",
        EGTEA,
        CE,
        BASELINES[3],
        CDB_DYNAMIC,
        CDB_FIXED[1],
    ),
    "celeba": official(
        "celeba",
        "CRL on CelebA's 40 attributes, a network of DeepID2's size",
        "deepid2",
        FACES,
        (*CE, "crl/celeba/cross entropy"),
        *(
            (f"CRL, {level}, {form}", "CRL", {"level": level, "form": form})
            for level in ("class", "instance")
            for form in ("relative", "absolute", "distribution")
        ),
    ),
    **{
        name: official(name, title, "resnet18", CLOTHES, CE, ("CRL, class, relative", "CRL", {"level": "class"}))
        for name, title in (
            ("deepfashion", "CRL on DeepFashion's 1,000 attributes, ResNet-18"),
            ("x-domain", "CRL on X-Domain's attributes, ResNet-18"),
        )
    },
    **{
        f"tiny-imagenet-{short}-100": Table(
            f"Tiny-ImageNet, {profile.replace('_', '-')}, ratio 100, ResNet-18 ({needs('tiny-imagenet')})",
            rows(
                Split("tiny-imagenet", profile, ratio=100, n_max=475, valid=25),
                "resnet18",
                TINY,
                CE,
                *BALANCING,
                deferred(TINY),
                MIXUP,
                MFW,
                CDB_DYNAMIC,
            ),
            together(3),
            device="cuda",
        )
        for short, profile in (("lt", "long_tailed"), ("step", "step"))
    },
}
