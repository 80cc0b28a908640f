from .fsdp import FullyShardedStrategy as FullyShardedStrategy
from .powersgd import PowerSGDStrategy as PowerSGDStrategy
