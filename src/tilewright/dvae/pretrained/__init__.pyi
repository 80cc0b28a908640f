from .diffusers import Diffusers as Diffusers
from .folder_family import FolderFamily as FolderFamily
from .llamagen import LlamaGen as LlamaGen
from .openai import OpenAI as OpenAI
from .recognition import recognize as recognize
from .taming import Taming as Taming
from .transformers import Chameleon as Chameleon
from .transformers import Janus as Janus
