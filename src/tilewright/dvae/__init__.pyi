from .losses import Gaussian as Gaussian
from .losses import LogitLaplace as LogitLaplace
from .module import DiscreteVAEModule as DiscreteVAEModule
from .networks import DiscreteVAE as DiscreteVAE
from .quantizers import FiniteScalarQuantizer as FiniteScalarQuantizer
from .quantizers import GumbelSoftmax as GumbelSoftmax
from .quantizers import Quantizer as Quantizer
from .quantizers import VectorQuantizer as VectorQuantizer
