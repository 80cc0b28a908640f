"""Gradio page that draws images for captions: `python src/demo.py`."""
