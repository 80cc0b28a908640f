from .errors import UserError as UserError
from .pipeline import TextToImage as TextToImage
