"""The page on which one types a caption and sees pictures: `python src/demo.py`."""
