"""What the process from which ranks are forked imports before PyTorch and Lightning; it is imported for effect."""

from ratplus.training.foreign_settings import shut_out

shut_out()
