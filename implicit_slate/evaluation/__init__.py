"""From a checkpoint to the numbers of the paper's table: `implicit-slate evaluate` and `implicit-slate generate`."""

METRICS = {
    "reconstruction": "MSE, PSNR and SSIM of the image through the slots (with all but segmentation alone)",
    "cross_entropy": "cross-entropy of the image's own tokens, predicted from the slots",
    "segmentation": "FG-ARI, ARI and mBO of the slots' masks, if the data has masks",
    "fid": "Fréchet Inception distance between the images and their reconstructions",
    "kid": "kernel Inception distance, which suits few images better (only if asked for)",
}
"""What can be asked for: groups of `implicit_slate.measures.EVALUATED`."""
BY_DEFAULT = ("reconstruction", "cross_entropy", "segmentation", "fid")
