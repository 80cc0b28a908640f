from .module import RankerModule as RankerModule
from .networks import DualEncoder as DualEncoder
