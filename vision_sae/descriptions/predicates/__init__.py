"""Facts about the regions of pictures, from captions and pixels, and labels composed of facts."""
