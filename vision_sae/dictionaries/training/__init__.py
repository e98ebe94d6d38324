"""Training sparse autoencoders: `loop.train` reads a store and drives one or several learners."""
