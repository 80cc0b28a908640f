"""Gradio page that generates images from captions: `python src/demo.py`."""
