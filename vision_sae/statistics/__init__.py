"""Statistics with confidence intervals, and the split of pictures into independent sides."""
