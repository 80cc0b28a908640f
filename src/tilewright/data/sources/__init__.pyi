from .emoji import EmojiSource as EmojiSource
from .folder import FolderSource as FolderSource
from .shapes import ShapesSource as ShapesSource
from .tables import HubSource as HubSource
from .tables import ParquetSource as ParquetSource
from .tables import Source as Source
from .webdataset import WebDatasetSource as WebDatasetSource
