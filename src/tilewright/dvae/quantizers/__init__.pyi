from .base import GumbelSoftmax as GumbelSoftmax
from .base import Quantizer as Quantizer
from .fsq import FiniteScalarQuantizer as FiniteScalarQuantizer
from .vq import VectorQuantizer as VectorQuantizer
