"""imbook: the helper package of a tutorial book on deep learning under class imbalance.

Losses (`imbook.methods`), the training loop (`imbook.train`), data with controlled imbalance (`imbook.data`),
networks of named stages (`imbook.nets`), metrics (`imbook.metrics`), figures (`imbook.plots`), and every table of the
book as data (`imbook.experiments`) with its run records (`imbook.results`).
"""

__version__ = "0.2.0"
