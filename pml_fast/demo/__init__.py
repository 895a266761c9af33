"""The command ``pml-fast demo``: an embedder trained on real images and judged on classes it never saw.

Needs the extra ``demo`` (matplotlib, Pillow, rich, scikit-learn, tqdm); nothing else in pml_fast imports this package.
"""
