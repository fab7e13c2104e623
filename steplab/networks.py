"""Networks: how they are wrapped, named, loaded and saved."""

from steplab.narrow import NarrowR2Plus1D, NarrowVGG16LSTM

__all__ = ["NarrowR2Plus1D", "NarrowVGG16LSTM"]
