"""Facts that can be looked up for a region of a picture, and labels made of them."""
