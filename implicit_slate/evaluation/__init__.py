"""Evaluation of trained models: `implicit-slate evaluate`, `generate`, `view` and `fixed-points`; and of data sets."""

METRICS = {
    "reconstruction": "MSE, PSNR and SSIM of the image through the slots (with all but segmentation alone)",
    "cross_entropy": "cross-entropy of the image's own tokens, predicted from the slots",
    "segmentation": "FG-ARI, ARI and mBO of the slots' masks, if the data has masks",
    "fid": "Fréchet Inception distance between the images and their reconstructions",
    "kid": "kernel Inception distance, which suits few images better (only if asked for)",
}
"""The choices of `--metrics`, which are groups of `implicit_slate.measures.EVALUATED`."""
BY_DEFAULT = ("reconstruction", "cross_entropy", "segmentation", "fid")
