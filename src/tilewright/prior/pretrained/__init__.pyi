from .llamagen import LlamaGen as LlamaGen
from .llamagen import LlamaGenTransformer as LlamaGenTransformer
from .mindalle import MinDALLE as MinDALLE
from .mindalle import MinDALLETransformer as MinDALLETransformer
