"""The functions and result types behind ``import vision_sae``; see docs/reference/api.md.

Each function is thin: it reads its arguments, calls the same functions as the command line and the
server, and wraps the answer in a type that prints in a terminal and renders in a notebook.
"""
