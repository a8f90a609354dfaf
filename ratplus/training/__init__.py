"""One optimisation run, on one device or on several ranks."""

from ratplus.training.lazy_torchmetrics import put_off

put_off()  # before any module of this folder imports Lightning
