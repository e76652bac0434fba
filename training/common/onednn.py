"""
oneDNN keeps kernels for the last 1,024 shapes, and almost every batch of speech has its own: memory would grow for
hours. Imported before torch, this module has it keep 64.
"""

import os


os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
