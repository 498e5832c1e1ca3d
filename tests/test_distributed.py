"""Training over several ranks: the numbers of one process, method by method; choices, faults, checkpoints."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from forked import python
from ranks import ranks
from torch import nn

from imbook import checkpoints, data, distributed, experiments, nets, records
from imbook.methods import METHODS
from imbook.protocol import Protocol
from imbook.tables import TABLES
from imbook.train import evaluate, fit

RUN = Protocol("ranks", epochs=2, batch=11, lr=0.05)  # 42 images: rows are shared 6 to 5, in the last batch 5 to 4
N = torch.tensor([24, 12, 6])
HYPER = {
    "MFW": dict(stage="stage2", start=1),
    "LDAM": dict(start=1),
    "Weighted": dict(start=1, reduction="weights"),
    "OverSampling": dict(power=0.5),
    "CDB": dict(reduction="weights"),
    "CRL": dict(level="instance"),
    "DOS": dict(k=3, start=1, every=1),
    "DOSAbstract": dict(k=3, start=1, every=1),
}
MORE = {
    "CRL, classes": ("CRL", dict(level="class", form="distribution")),
    "OverSampling, weighted": ("OverSampling", dict(weighted=True)),
    "DOS, live": ("DOS", dict(k=3, start=1, every=1, v="live", stage="stage1", minority="all", read=True)),
    "Focal, weighted": ("Focal", dict(alpha="inverse")),
}
CASES = {**{name: (name, HYPER.get(name, {})) for name in METHODS}, **MORE}


def network(normed=False, drop=0.0):
    """flat, stage1, stage2, head; with BatchNorm and dropout where asked for."""
    torch.manual_seed(3)
    layers = lambda i: [nn.Linear(i, 24), *([nn.BatchNorm1d(24)] if normed else []), nn.ReLU(), nn.Dropout(drop)]  # noqa: E731
    stages = dict(flat=nn.Flatten(), stage1=nn.Sequential(*layers(64)), stage2=nn.Sequential(*layers(24)))
    return nn.Sequential(OrderedDict(**stages, head=nn.Linear(24, 3)))


def trained(case, loader=False, net=None, seed=5, device="cpu", **options):
    """Weights, method's state, curve and readings of one run."""
    name, hyper = CASES[case]
    net = network() if net is None else net
    if name == "LDAM":
        nets.replace_classifier(net, nets.CosineHead(24, 3))
    images, rest = toys.images(N.tolist()), toys.images((8, 8, 8), seed=1)
    train, valid = data.Batches(images, None, RUN.batch, seed, device=device), data.Batches(rest, device=device)
    if loader:
        plain = torch.utils.data.TensorDataset(train.inputs(torch.arange(42)), train.y)
        train = data.Loader(plain, RUN.batch, seed)
    method = METHODS[name](N, **hyper)
    run = replace(RUN, epochs=3) if "DOS" in name else RUN
    curve = fit(net, method, train, valid, valid, protocol=run, seed=seed, **options)
    read = {kind: evaluate(net, valid, reading)[0].softmax(1) for kind, reading in method.readings.items()}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    return dict(net=state, method=dict(method.state_dict()), curve=curve, read=read, order=train.order)


def every(cases):
    return {case: trained(case) for case in cases}


def far(a, b):
    """The largest difference of two results, relative where numbers are above 1; seconds are left out."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max([far(a[k], b[k]) for k in a if k != "seconds"], default=0.0)
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return max(map(far, a, b), default=0.0)
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape
        a, b = (t.double().nan_to_num(nan=-1, neginf=-2) for t in (a, b))
        return ((a - b).abs() / a.abs().clamp(min=1)).max().item() if a.numel() else 0.0
    if isinstance(a, float | int) and not isinstance(a, bool):
        return far(torch.tensor(a), torch.tensor(b))
    assert a == b
    return 0.0


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return every(CASES), ranks(every, tmp_path_factory.mktemp("ranks"), list(CASES))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process(both, case):
    one, two = both
    for rank in two:
        assert isinstance(rank, dict), rank
        assert far(one[case], rank[case]) < 1e-5


def several(cases):
    """Results of runs that differ from the plain ones, {name: result}: one pair of processes makes them all."""
    made = {}
    for name in cases:
        torch.manual_seed(0)
        made[name] = OTHERS[name]()
    return made


def normed(case, **changes):
    return trained(case, net=network(normed=True), **changes)


class Drawn(nn.Module):
    """Dropout that notes what is drawn."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, z):
        if self.training:
            self.seen.append(torch.rand(len(z)))
        return z


def with_dropout():
    """A network that draws on its own rows, and a method that draws on all of them."""
    net, drawn = network(drop=0.3), Drawn()
    net.stage1.append(drawn)
    return {**trained("Mixup", net=net), "seen": drawn.seen}


class Noted(torch.utils.data.Dataset):
    """A set in memory that notes which samples are read."""

    def __init__(self, x, y):
        self.x, self.labels, self.read = x, y, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, k):
        self.read.append(k)
        return self.x[k], self.labels[k]


def read_by():
    """Which samples a rank reads in the epochs of an over-sampled training, and their order on all ranks."""
    images = toys.images(N.tolist())
    some = data.Batches(images)
    noted = Noted(some.inputs(torch.arange(42)), some.y)
    orders, reads = [], []

    class Watched(METHODS["OverSampling"]):
        def update(self, epoch, net, train, valid):
            super().update(epoch, net, train, valid)
            state = train.generator.get_state()
            orders.append(train.order[torch.randperm(len(train.order), generator=train.generator)].tolist())
            train.generator.set_state(state)
            noted.read.clear()
            return {}

    def tick(epoch, row):
        reads.append(list(noted.read))

    train = data.Loader(noted, RUN.batch, seed=5, plain=torch.utils.data.TensorDataset(noted.x, noted.labels))
    fit(network(), Watched(N, whole=True), train, protocol=RUN, tick=tick)
    return dict(orders=orders, read=list(noted.read), ticks=len(reads))


def apart(what):
    """The message of a training whose ranks are not alike."""
    odd = distributed.rank() == 1
    images = toys.images(N.tolist())
    train = data.Batches(images, None, RUN.batch, 6 if odd and what == "order" else 5)
    method = METHODS["CDB" if odd and what == "method" else "Mixup"](N)

    class Draws(METHODS["CrossEntropy"]):
        def update(self, epoch, net, train, valid):
            return {}

        def forward(self, net, x, y, i):
            if odd:
                torch.rand(1)
            return super().forward(net, x, y, i)

    try:
        fit(network(), Draws() if what == "draws" else method, train, train, protocol=RUN)
    except ValueError as error:
        return str(error)


def refused(**asked):
    images = toys.images(N.tolist())
    try:
        fit(network(), METHODS["Mixup"](N), data.Batches(images, None, RUN.batch, 5), protocol=RUN, **asked)
    except ValueError as error:
        return str(error)


def few(n=(2, 1)):
    """A batch of 3 that four ranks cannot share, and one of 11 and 2 that they can."""
    try:
        return trained_on(n)
    except ValueError as error:
        return str(error)


def trained_on(n, batch=11):
    images = toys.images(n)
    net, run = network(), Protocol("few", epochs=2, batch=batch, lr=0.05)
    curve = fit(net, METHODS["CrossEntropy"](), data.Batches(images, None, batch, 5), protocol=run)
    return dict(net=net.state_dict(), curve=curve)


def outside():
    """What one rank evaluates alone, outside of fit, and a network that differs from rank to rank before it."""
    images = data.Batches(toys.images(N.tolist()), None, RUN.batch, 5)
    net = network()
    with torch.no_grad():
        net.head.bias += distributed.rank()
    alone = len(evaluate(net, images)[0]) if distributed.rank() == 1 else None
    x, y, _ = next(iter(images))
    fit(net, METHODS["CrossEntropy"](), images, protocol=RUN)
    return dict(alone=alone, batch=(len(x), len(y)), net=net.state_dict())


class Stop(Exception):
    pass


def stopped():
    """tick stops the run on the first rank alone: all end."""

    def tick(epoch, row):
        if distributed.rank() == 0 and epoch == 1:
            raise Stop
        assert distributed.rank() == 0, "it is asked there only"

    try:
        fit(network(), METHODS["Mixup"](N), data.Batches(toys.images(N.tolist()), None, RUN.batch, 5), protocol=RUN,
            tick=tick)  # fmt: skip
    except Stop:
        return "stopped"


OTHERS = {
    "loader": lambda: trained("Mixup", loader=True),
    "loader, live neighbours": lambda: trained("DOS, live", loader=True),
    "statistics of all": lambda: normed("CRL"),
    "statistics of all, more rows": lambda: normed("DOS, live"),
    "dropout": with_dropout,
    "read": read_by,
    **{f"apart: {what}": (lambda what=what: apart(what)) for what in ("order", "method", "draws")},
    "fast": lambda: refused(fast=True),
    "instrument": lambda: refused(instrument="stage1"),
    "outside": outside,
    "stopped": stopped,
}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return ranks(several, tmp_path_factory.mktemp("others"), list(OTHERS))


def of(others, name):
    for rank in others:
        assert isinstance(rank, dict), rank
    return [rank[name] for rank in others]


SAME = ("loader", "loader, live neighbours", "statistics of all", "statistics of all, more rows")


@pytest.mark.parametrize("name", SAME)
def test_sets_of_files_and_batch_norm_over_ranks(others, name):
    one = OTHERS[name]()
    for rank in of(others, name):
        assert far(one, rank) < 1e-5


def test_over_sampling_is_shared_without_repeats(others):
    """Each visit of an epoch is one rank's, and a rank reads nothing else."""
    one, (a, b) = read_by(), of(others, "read")
    assert one["orders"] == a["orders"] == b["orders"] and len(one["orders"][-1]) == 3 * 24
    assert sorted(a["read"] + b["read"]) == sorted(one["orders"][-1]) == sorted(one["read"])
    assert (len(a["read"]), len(b["read"])) == (39, 33), "of six batches of 11 and one of 6"
    assert a["read"][:6] + b["read"][:5] == one["read"][:11], "of the same batch"


def test_dropout_draws_apart_and_the_method_alike(others):
    a, b = of(others, "dropout")
    assert far(a["net"], b["net"]) == 0 and far(a["curve"], b["curve"]) == 0
    assert not any(torch.equal(s[:4], t[:4]) for s, t in zip(a["seen"], b["seen"]))
    assert len({tuple(s[:4].tolist()) for s in a["seen"]}) == len(a["seen"]) == 8, "anew at each step"


@pytest.mark.parametrize("what", ["order", "method", "draws"])
def test_ranks_that_are_not_alike_are_refused(others, what):
    a, b = of(others, f"apart: {what}")
    assert a == b and a.startswith("rank 1 has other data, another order of them, another method or random state than")
    assert f"in epoch {1 if what == 'draws' else 0}" in a


def test_what_one_process_alone_can_do_is_refused(others):
    for name in ("fast", "instrument"):
        for said in of(others, name):
            assert said == f"fit(..., {name}=...) is for one process, here are 2: leave it out"


def test_outside_of_fit_a_rank_is_alone(others):
    """One rank may evaluate what it likes, sets yield whole batches; fit starts from the network of rank 0."""
    a, b = of(others, "outside")
    assert b["alone"] == 42 and a["batch"] == b["batch"] == (11, 11)
    assert far(a["net"], b["net"]) == 0 and far(a["net"], outside()["net"]) < 1e-5


def test_a_stop_of_the_first_rank_stops_all(others):
    assert of(others, "stopped") == ["stopped", "stopped"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", ["CRL", "DOS, live", "Mixup"])
def test_two_ranks_on_a_gpu(case, tmp_path):
    """Two ranks share one GPU, over gloo, as NCCL wants a GPU for each: SyncBatchNorm is that of one process."""
    one = on_gpu(case)
    for rank in ranks(on_gpu, tmp_path, case, device="cuda:0", backend="gloo"):
        assert isinstance(rank, dict), rank
        assert far(one, rank) < 1e-4


def on_gpu(case):
    found = normed(case, device="cuda:0")
    return {k: {n: t.cpu() for n, t in found[k].items()} for k in ("net", "read")} | {"curve": found["curve"]}


# Losses and statistics of each rank alone


class PerRank(METHODS["CrossEntropy"]):
    """The slow twin: the loss of each rank's rows, weighted by them, in one process."""

    def __init__(self, method, size):
        super().__init__()
        self.method, self.size = method, size

    def forward(self, net, x, y, i):
        parts = zip(*(t.tensor_split(self.size) for t in (x, y, i)))
        return sum(len(y_r) / len(y) * self.method(net, x_r, y_r, i_r) for x_r, y_r, i_r in parts)


MINED = {"instance": dict(level="instance"), "class": dict(level="class", form="absolute")}


def mined(hyper, per_rank=0, **options):
    net, method = network(**options), METHODS["CRL"](N, **hyper)
    train = data.Batches(toys.images(N.tolist()), None, RUN.batch, 5)
    curve = fit(net, PerRank(method, per_rank) if per_rank else method, train, train, protocol=RUN)
    return dict(net=net.state_dict(), curve=curve)


def by_rank():
    return {**{name: mined(hyper) for name, hyper in MINED.items()}, "normed": mined(MINED["class"], normed=True),
            "abstract": trained("DOSAbstract")}  # fmt: skip


def test_mining_among_the_rows_of_a_rank(tmp_path):
    """CRL's loss of each rank's rows: that of a literal loop over the ranks, and not that of the whole batch."""
    a, b = ranks(by_rank, tmp_path, loss="rank", batchnorm="rank")
    assert isinstance(a, dict) and isinstance(b, dict), (a, b)
    for name, hyper in MINED.items():
        twin, whole = mined(hyper, per_rank=2), mined(hyper)
        assert far(twin, a[name]) < 1e-5 and far(twin, b[name]) < 1e-5
        assert far(twin["net"], whole["net"]) > 1e-4, "fewer look-alikes are found among fewer rows"
    for some in (a, b):
        del some["abstract"]["method"]["seen"]  # sums of the rank's rows: what is logged is of both
    for name in ("normed", "abstract"):
        assert far(a[name], b[name]) == 0, "weights, statistics and what is logged are alike on both"
    twin = mined(MINED["class"], per_rank=2, normed=True)
    mean = "stage1.1.running_mean"
    assert far(twin["net"][mean], a["normed"]["net"][mean]) > 1e-5, "statistics of a rank's rows, averaged"


def test_more_ranks_than_a_batch_has_samples(tmp_path):
    """42 = 3 * 13 + 3: the last three join the batch before them, so that each of four ranks has a row."""
    found = ranks(forty_two, tmp_path / "joined", size=4)
    assert [len(r["curve"]) for r in found] == [2] * 4, found
    images = data.Batches(toys.images(N.tolist()), None, 13, 5)
    assert [len(y) for _, y, _ in images] == [13, 13, 13, 3]
    assert all("3 samples cannot be shared by 4 ranks" in said for said in ranks(few, tmp_path / "few", size=4))


def forty_two():
    return trained_on(N.tolist(), batch=13)


def test_settings():
    with distributed.start("cpu") as device:
        assert device == torch.device("cpu") and distributed.size() == 1 and not distributed.launched()
        assert distributed.choices() == distributed.described() == {}
    with pytest.raises(ValueError, match="loss 'all', batchnorm 'global': both are 'global' or 'rank'"):
        with distributed.start("cpu", loss="all"):
            pass


# Checkpoints


def resumed(path, every=1, until=None, case="CRL", **settings):
    def tick(epoch, row):
        if epoch == until:
            raise Stop

    try:
        return trained(case, checkpoint=path, every=every, tick=tick)
    except Stop:
        return None
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 3)])
def test_resumed_by_another_number_of_ranks(before, after, tmp_path):
    whole = trained("CRL")
    path = tmp_path / "run.pt"
    for size, until in ((before, 1), (after, None)):
        if size == 1:
            found = [resumed(path, until=until)]
        else:
            found = ranks(resumed, tmp_path / str(size), path, 1, until, size=size)
        assert path.exists()
    for rank in found:
        assert far(whole, rank) < 1e-5, rank


def test_a_checkpoint_is_of_its_choices(tmp_path):
    """What has other numbers is another run."""
    path = tmp_path / "run.pt"
    assert resumed(path, until=1) is None and path.exists()
    for said in ranks(resumed, tmp_path / "ranks", path, loss="rank"):
        assert "holds a checkpoint of another run (loss over ranks: None there, 'rank' here)" in said


# Faults


def dies(path):
    """Rank 1 is killed in the third epoch."""

    class Dies(METHODS["Mixup"]):
        def update(self, epoch, net, train, valid):
            if distributed.rank() == 1 and epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return {}

    return lasting(path, Dies)


def lasting(path, kind=None):
    train = data.Batches(toys.images(N.tolist()), None, RUN.batch, 5)
    method = (kind or METHODS["Mixup"])(N)
    method.__class__.__name__ = "Mixup"
    net, run = network(), replace(RUN, epochs=4)
    curve = fit(net, method, train, protocol=run, checkpoint=path, every=1)
    return dict(net=net.state_dict(), curve=curve)


def test_a_killed_rank_ends_the_others_and_leaves_the_checkpoint_whole(tmp_path):
    path = tmp_path / "run.pt"
    other, killed = ranks(dies, tmp_path / "killed", path)
    assert killed is None, "it had no last word"
    assert "RankLost: rank 0: another rank has ended or cannot be reached, so the training ends" in other
    assert checkpoints.read(path)["epoch"] == 2
    for rank in ranks(lasting, tmp_path / "again", path):
        assert far(lasting(tmp_path / "whole.pt"), rank) < 1e-5


PAGE = (Path(__file__).parents[1] / "book/distributed.md").read_text()
SCRIPT = re.search(r"```python\n(# train.py\n.*?)```", PAGE, re.DOTALL)[1]
COMMANDS = re.findall(r"```bash\n(.*?)\n```", PAGE, re.DOTALL)


def shell(command, folder):
    """A command of the page, in that folder: (exit status, what it printed)."""
    torchrun, *rest = shlex.split(command)
    assert torchrun == "torchrun"
    there = dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    line = [sys.executable, "-m", "torch.distributed.run", *rest]
    run = subprocess.run(line, cwd=folder, env={**os.environ, **there}, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_the_pages_command_in_another_folder(tmp_path):
    """The script as it stands there, over two ranks and then, from its checkpoint, in one process."""
    (tmp_path / "train.py").write_text(SCRIPT)
    status, printed = shell(COMMANDS[0], tmp_path)
    (said,) = re.findall(r"^2 ranks: (0\.\d{4})$", printed, re.MULTILINE)
    assert status == 0 and float(said) > 0.5, printed
    status, again = python(SCRIPT, tmp_path)
    assert status == 0 and again == f"1 ranks: {said}\n"


def test_two_trainings_of_one_job(tmp_path):
    """A second `start` in the same processes meets the store of the first, and must not read what that left there."""
    (tmp_path / "twice.py").write_text(
        "from pathlib import Path\n"
        "import torch, torch.distributed as dist\n"
        "from imbook import distributed\n"
        "for k in range(2):\n"
        "    with distributed.start('cpu'):\n"
        "        one = torch.ones(())\n"
        "        dist.all_reduce(one)\n"
        "        Path(f'start {k} rank {distributed.rank()}').write_text(str(int(one)))\n"
    )
    status, printed = shell("torchrun --standalone --nproc-per-node 2 twice.py", tmp_path)
    found = {path.name: path.read_text() for path in tmp_path.glob("start *")}
    assert status == 0 and found == {f"start {k} rank {r}": "2" for k in (0, 1) for r in (0, 1)}, printed


@pytest.mark.long
def test_a_table_over_two_ranks(tmp_path):
    """The page's command makes the records that one process makes."""
    command = next(c for c in COMMANDS if "-m imbook run" in c)
    status, printed = shell(command, tmp_path)
    assert status == 0 and "missing" not in printed, printed
    made = records.load(tmp_path / "runs")
    table = TABLES["digits"]
    for row in table.rows:
        ours = records.read(tmp_path / f"runs/{row.key(table.seeds[0])}.json")[0]
        one = experiments.run(row, table.seeds[0])
        assert ours["ranks"] == 2 and made[ours["key"]]["key"] == one["key"]
        assert far(one["metrics"], ours["metrics"]) < 1e-5 and one["confusion"] == ours["confusion"]


@pytest.mark.long
def test_torchrun_restarts_what_was_killed(tmp_path):
    """Without a restart the job fails and names the rank; with one it ends as if nothing had been."""
    killer = SCRIPT.replace("    curve = fit(", DYING + "    curve = fit(")
    killer = killer.replace('"run.pt"', '"run.pt", every=1, tick=tick')
    (tmp_path / "train.py").write_text(killer)
    status, printed = shell(COMMANDS[0], tmp_path)
    assert status != 0 and "local_rank: 0" in printed and "SIGKILL" in printed, printed
    assert checkpoints.read(tmp_path / "run.pt")["epoch"] == 4
    (tmp_path / "killed").unlink(), (tmp_path / "run.pt").unlink()
    status, printed = shell(COMMANDS[0].replace("torchrun", "torchrun --max-restarts 1"), tmp_path)
    assert status == 0 and re.search(r"^2 ranks: 0\.\d{4}$", printed, re.MULTILINE), printed


DYING = """
    import os, signal
    from pathlib import Path

    def tick(epoch, row):
        if epoch == 4 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

"""
